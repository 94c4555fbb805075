"""Reads a job's papers out of its archive, without unpacking anything: manifest, learning curves, use."""

import contextlib
import dataclasses
import json
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

#: Largest paper that is read, in bytes.
MOST = 16 << 20
#: Seconds after which the rest of a large archive is left unread.
MOST_S = 60.0
NAMES = ("job/manifest.json", "job/usage.csv", "artefacts/history.csv")


@dataclasses.dataclass(frozen=True)
class Papers:
    """What was found; text that is missing is empty."""

    manifest: bytes = b""
    usage: str = ""
    history: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """The manifest as data."""
        try:
            found = json.loads(self.manifest or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def read(archive: Path, seconds: float = MOST_S) -> Papers:
    """Return the papers in an archive of ours. A damaged archive gives those in front of the damage."""
    end = time.monotonic() + seconds
    found: dict[str, bytes] = {}
    damage = (OSError, EOFError, tarfile.TarError, zlib.error)
    with contextlib.suppress(*damage), tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            # TarFile remembers every member: a million of them would take a gigabyte.
            tar.members = []  # type: ignore[attr-defined]
            if member.name in NAMES and member.isreg() and member.size <= MOST:
                source = tar.extractfile(member)
                found[member.name] = source.read() if source else b""
            if len(found) == len(NAMES) or time.monotonic() > end:
                break
    manifest, usage, history = (found.get(name, b"") for name in NAMES)
    return Papers(manifest, usage.decode("utf-8", "replace"), history.decode("utf-8", "replace"))
