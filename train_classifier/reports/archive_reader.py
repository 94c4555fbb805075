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
MAX_MANIFEST = 16 << 20
#: Most bytes kept of a table: a chart has some sixty points, and reading a megabyte takes a second.
MAX_TABLE = 1 << 20
#: Most rows with the same first field that are kept together: one for each GPU of a host.
MAX_GROUP = 64
#: Seconds after which the rest of a large archive is not read.
MAX_SECONDS = 60.0
MANIFEST = "job/manifest.json"
TABLES = ("job/usage.csv", "artefacts/history.csv")


@dataclasses.dataclass(frozen=True)
class ArchiveFiles:
    """The files of an archive; missing text is empty, and long tables are thinned."""

    manifest: bytes = b""
    usage: str = ""
    history: str = ""

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
            if source and member.name == MANIFEST and member.size <= MAX_MANIFEST:
                contents[member.name] = source.read()
            elif source and member.name in TABLES:
                contents[member.name] = thinned(source, is_late)
            if len(contents) == 1 + len(TABLES) or is_late():
                break
    manifest, usage, history = (contents.get(name, b"") for name in (MANIFEST, *TABLES))
    return ArchiveFiles(manifest, usage.decode("utf-8", "replace"), history.decode("utf-8", "replace"))


def thinned(table: IO[bytes], is_late: Callable[[], bool] = lambda: False, limit: int = MAX_TABLE) -> bytes:
    """Return a CSV file with its head and every n-th row, so that it is at most `limit` bytes or little more.

    Consecutive rows with the same first field stay together: usage.csv has one for each GPU. First and last
    row stay too. Rows after `is_late` returns True, and after a line longer than the limit, are left out.
    """
    head = table.readline(limit)
    if not head.endswith(b"\n"):
        return b"" if len(head) == limit else head
    groups: list[list[bytes]] = []
    group: list[bytes] = []
    size, step, number = 0, 1, -1
    key: bytes | None = None
    count = 0
    while line := table.readline(limit):
        count += 1
        if len(line) == limit or (count % 4096 == 0 and is_late()):
            break
        first = line.partition(b",")[0]
        if first != key or len(group) == MAX_GROUP:
            key, group = first, []
            number += 1
            if number % step == 0:
                groups.append(group)
        group.append(line)
        if number % step == 0:
            size += len(line)
            if size > limit and len(groups) > 2:
                groups = groups[::2]
                step *= 2
                size = sum(map(len, (line for rows in groups for line in rows)))
    if groups and groups[-1] is not group:
        groups.append(group)
    return head + b"".join(line for rows in groups for line in rows)
