"""Reads manifest, learning curves and usage from a job's archive, without unpacking it."""

import contextlib
import dataclasses
import json
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

from train_classifier.core.report.curves import thinned
from train_classifier.core.report.page import MAX_PAGE

#: Largest manifest that is read, in bytes.
MAX_MANIFEST = 16 << 20
#: Seconds after which the rest of a large archive is not read.
MAX_SECONDS = 60.0
MANIFEST = "job/manifest.json"
REPORT = "job/report.html"
TABLES = ("job/usage.csv", "artefacts/history.csv")


@dataclasses.dataclass(frozen=True)
class ArchiveFiles:
    """The files of an archive; missing text is empty, and long tables are thinned."""

    manifest: bytes = b""
    usage: str = ""
    history: str = ""
    #: The page that the host made of the job.
    report: bytes = b""

    @property
    def manifest_data(self) -> dict[str, Any]:
        """The manifest as data."""
        try:
            data = json.loads(self.manifest or b"{}")
        except (ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}


def read(archive: Path, seconds: float = MAX_SECONDS) -> ArchiveFiles:
    """Return the files of an archive. From a damaged archive, those before the damage are returned."""
    end = time.monotonic() + seconds

    def is_late() -> bool:
        return time.monotonic() > end

    contents: dict[str, bytes] = {}
    damage = (OSError, EOFError, tarfile.TarError, zlib.error)
    with contextlib.suppress(*damage), tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            # TarFile stores every member: a million of them would need a gigabyte.
            tar.members = []  # type: ignore[attr-defined]
            source = tar.extractfile(member) if member.isreg() else None
            if source and member.size <= {MANIFEST: MAX_MANIFEST, REPORT: MAX_PAGE}.get(member.name, -1):
                contents[member.name] = source.read()
            elif source and member.name in TABLES:
                contents[member.name] = thinned(source, is_late)
            if len(contents) == 2 + len(TABLES) or is_late():
                break
    manifest, report, usage, history = (contents.get(name, b"") for name in (MANIFEST, REPORT, *TABLES))
    return ArchiveFiles(
        manifest, usage.decode("utf-8", "replace"), history.decode("utf-8", "replace"), report
    )
