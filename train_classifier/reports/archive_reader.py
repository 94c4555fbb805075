"""Reads manifest, learning curves and usage from a job's archive, without unpacking it."""

import contextlib
import dataclasses
import json
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

#: Largest manifest that is read, in bytes.
MOST = 16 << 20
#: Most bytes kept of a table: a chart has some sixty points, and reading a megabyte takes a second.
MOST_TABLE = 1 << 20
#: Most rows with the same first field that are kept together: one for each GPU of a host.
MOST_GROUP = 64
#: Seconds after which the rest of a large archive is not read.
MOST_S = 60.0
MANIFEST = "job/manifest.json"
TABLES = ("job/usage.csv", "artefacts/history.csv")


@dataclasses.dataclass(frozen=True)
class Papers:
    """The files of an archive; missing text is empty, and long tables are thinned."""

    manifest: bytes = b""
    usage: str = ""
    history: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """The manifest as data."""
        try:
            found = json.loads(self.manifest or b"{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def read(archive: Path, seconds: float = MOST_S) -> Papers:
    """Return the files of an archive. From a damaged archive, those before the damage are returned."""
    end = time.monotonic() + seconds

    def late() -> bool:
        return time.monotonic() > end

    found: dict[str, bytes] = {}
    damage = (OSError, EOFError, tarfile.TarError, zlib.error)
    with contextlib.suppress(*damage), tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            # TarFile stores every member: a million of them would need a gigabyte.
            tar.members = []  # type: ignore[attr-defined]
            source = tar.extractfile(member) if member.isreg() else None
            if source and member.name == MANIFEST and member.size <= MOST:
                found[member.name] = source.read()
            elif source and member.name in TABLES:
                found[member.name] = thinned(source, late)
            if len(found) == 1 + len(TABLES) or late():
                break
    manifest, usage, history = (found.get(name, b"") for name in (MANIFEST, *TABLES))
    return Papers(manifest, usage.decode("utf-8", "replace"), history.decode("utf-8", "replace"))


def thinned(table: IO[bytes], late: Callable[[], bool] = lambda: False, most: int = MOST_TABLE) -> bytes:
    """Return a CSV file with its head and every n-th row, so that it is at most `most` bytes or little more.

    Consecutive rows with the same first field stay together: usage.csv has one for each GPU. First and last
    row stay too. Rows after `late` returns True, and after a line longer than the limit, are left out.
    """
    head = table.readline(most)
    if not head.endswith(b"\n"):
        return b"" if len(head) == most else head
    kept: list[list[bytes]] = []
    group: list[bytes] = []
    size, every, number = 0, 1, -1
    key: bytes | None = None
    count = 0
    while line := table.readline(most):
        count += 1
        if len(line) == most or (count % 4096 == 0 and late()):
            break
        first = line.partition(b",")[0]
        if first != key or len(group) == MOST_GROUP:
            key, group = first, []
            number += 1
            if number % every == 0:
                kept.append(group)
        group.append(line)
        if number % every == 0:
            size += len(line)
            if size > most and len(kept) > 2:
                kept = kept[::2]
                every *= 2
                size = sum(map(len, (line for rows in kept for line in rows)))
    if kept and kept[-1] is not group:
        kept.append(group)
    return head + b"".join(line for rows in kept for line in rows)
