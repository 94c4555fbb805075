"""What lies in artefacts/: a walk that follows no link, and the stock taken of it before training."""

import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Optional

from train_classifier.worker.store import read_json, write_json

#: Each level keeps a folder open, and a program may open 1024 files.
DEEPEST = 400
O_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
O_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing below artefacts/; `name` begins with that word."""

    name: bytes
    stat: os.stat_result
    #: Descriptor of its folder, open while the walk stands at this entry; -1 for artefacts/ itself.
    folder: int
    target: bytes = b""
    #: Why it is not delivered; None when it is.
    left_out: Optional[str] = None

    @property
    def shown(self) -> str:
        """Its path as text, bytes that are no UTF-8 escaped."""
        return self.name.decode("utf-8", "backslashreplace")

    def mark(self) -> list[int]:
        """Return what changes when a file is written anew."""
        return [self.stat.st_size, self.stat.st_mtime_ns, self.stat.st_ino]

    def open(self) -> BinaryIO:
        """Open a regular file for reading, making it readable first if its mode forbids that."""
        base = os.path.basename(self.name)
        try:
            descriptor = os.open(base, O_FILE, dir_fd=self.folder)
        except PermissionError:
            os.chmod(base, stat.S_IMODE(self.stat.st_mode) | 0o400, dir_fd=self.folder)
            descriptor = os.open(base, O_FILE, dir_fd=self.folder)
        return open(descriptor, "rb")


def walk(root: Path) -> Iterator[Entry]:
    """Yield artefacts/ and everything below, parents first. Missing: nothing."""
    base = os.fsencode(root.name)
    try:
        mode = os.stat(root.parent).st_mode
        if mode & 0o700 != 0o700:
            # The model may have shut its working directory; what it delivers is not lost for that.
            os.chmod(root.parent, stat.S_IMODE(mode) | 0o700)
        found = os.lstat(root)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        yield Entry(base, found, -1, left_out=f"{root.name} is {_kind(found.st_mode)}, not a folder")
        return
    yield Entry(base, found, -1)
    if found.st_mode & 0o700 != 0o700:
        os.chmod(root, stat.S_IMODE(found.st_mode) | 0o700)
    descriptor = os.open(root, O_FOLDER)
    try:
        yield from _walk(descriptor, base, os.fsencode(os.path.realpath(root)), 1)
    finally:
        os.close(descriptor)


def _walk(folder: int, name: bytes, root: bytes, depth: int) -> Iterator[Entry]:
    # Listed by descriptor, a folder's names come as text: bytes are got by the same rule back.
    for text in sorted(os.listdir(folder)):
        base = os.fsencode(text)
        path = name + b"/" + base
        found = os.lstat(base, dir_fd=folder)
        if stat.S_ISDIR(found.st_mode):
            if depth >= DEEPEST:
                yield Entry(path, found, folder, left_out=f"more than {DEEPEST} folders deep")
                continue
            yield Entry(path, found, folder)
            if found.st_mode & 0o700 != 0o700:
                os.chmod(base, stat.S_IMODE(found.st_mode) | 0o700, dir_fd=folder)
            below = os.open(base, O_FOLDER, dir_fd=folder)
            try:
                yield from _walk(below, path, root, depth + 1)
            finally:
                os.close(below)
        elif stat.S_ISLNK(found.st_mode):
            target = os.readlink(base, dir_fd=folder)
            yield Entry(path, found, folder, target=target, left_out=_why_not(path, target, root))
        elif stat.S_ISREG(found.st_mode):
            yield Entry(path, found, folder)
        else:
            yield Entry(path, found, folder, left_out=_kind(found.st_mode))


def _why_not(path: bytes, target: bytes, root: bytes) -> Optional[str]:
    """Return why a link is not delivered: kept is only one that stays inside artefacts/."""
    shown = target.decode("utf-8", "backslashreplace")
    if target.startswith(b"/"):
        return f"a link to {shown}, an absolute path"
    top = root.rpartition(b"/")[0]
    here = os.path.dirname(path)
    written = os.path.normpath(os.path.join(b"/", here, target))
    inside = b"/" + os.path.basename(root)
    if not (written == inside or written.startswith(inside + b"/")) or _climbs(here, target):
        return f"a link to {shown}, which is outside artefacts/"
    real = os.path.realpath(os.path.join(top, here, target))
    if not (real == root or real.startswith(root + b"/")):
        return f"a link to {shown}, which leads out of artefacts/"
    return None


def _climbs(here: bytes, target: bytes) -> bool:
    depth = here.count(b"/")
    for part in target.split(b"/"):
        depth += -1 if part == b".." else (0 if part in (b"", b".") else 1)
        if depth < 0:
            return True
    return False


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFREG: "a file",
    }
    return kinds.get(stat.S_IFMT(mode), "an unknown kind of file")


def take_stock(request: dict[str, Any]) -> dict[str, Any]:
    """Write down what lies in a workspace's artefacts/ before training; the folder is made if missing.

    The request: `job` (folder). The answer: `files`.
    """
    job = Path(request["job"])
    root = job / "workspace" / "artefacts"
    if not os.path.lexists(root):
        root.mkdir()
    stock = {entry.shown: entry.mark() for entry in walk(root) if not stat.S_ISDIR(entry.stat.st_mode)}
    write_json(job / "stock.json", stock)
    return {"files": len(stock)}


def read_stock(path: Path) -> dict[str, list[int]]:
    """Return the stock taken before training; empty when none was."""
    return read_json(path) or {}
