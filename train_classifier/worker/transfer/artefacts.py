"""The content of the folders of results: a walk that follows no link, and a list of it before training."""

import contextlib
import dataclasses
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Callable, Optional

from train_classifier.core.job import WORKSPACE
from train_classifier.core.regular_file import O_FILE
from train_classifier.worker.state.file_trees import (
    give_rights_to_file,
    open_folder,
    restore_owner_rights_part,
)
from train_classifier.worker.system import program

BASE = b"artefacts"
#: Each level keeps a folder open, and a program may open 1024 files.
MAX_DEPTH = 400
#: Links that the kernel follows in one path, and a number of parts that no path exceeds.
MAX_LINKS = 40
MAX_PARTS = 4096


def show_name(name: bytes) -> str:
    """Return a name as text, bytes that are no UTF-8 escaped."""
    return name.decode("utf-8", "backslashreplace")


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A folder of results or one entry below it; `name` is its path in the archive."""

    name: bytes
    stat: os.stat_result
    #: Descriptor of its folder, open while the walk is at this entry; -1 for the folder of results itself.
    folder: int
    target: bytes = b""
    #: Why it is not delivered; None when it is.
    left_out: Optional[str] = None

    @property
    def path(self) -> str:
        """Its path as text, bytes that are no UTF-8 escaped."""
        return show_name(self.name)

    def version(self) -> list[int]:
        """Return the values that change when a file is rewritten."""
        return [self.stat.st_size, self.stat.st_mtime_ns, self.stat.st_ino]

    def open(self) -> BinaryIO:
        """Open a regular file for reading, making it readable first if its mode forbids that."""
        name = os.path.basename(self.name)
        try:
            descriptor = os.open(name, O_FILE, dir_fd=self.folder)
        except PermissionError:
            give_rights_to_file(name, self.folder, 0o400)
            descriptor = os.open(name, O_FILE, dir_fd=self.folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "no longer a regular file", self.path)
        return open(descriptor, "rb")


def bases(folders: Iterable[str]) -> list[bytes]:
    """Return artefacts/ and a job's other folders of results, without those inside another one."""
    outer: list[bytes] = []
    # A folder sorts before what is in it.
    for folder in sorted({BASE, *map(os.fsencode, folders)}):
        if not any(folder.startswith(base + b"/") for base in outer):
            outer.append(folder)
    return outer


def results(
    workspace: int, folders: Sequence[str], stock: dict[str, list[int]]
) -> Iterator[tuple[Artefact, bool]]:
    """Yield artefacts/ with its content, then what training wrote into the other folders; and what is new.

    `stock` is the list from before training.
    """
    for base in bases(folders):
        for entry in walk(workspace, base):
            is_new = not stat.S_ISDIR(entry.stat.st_mode) and stock.get(entry.path) != entry.version()
            # The other folders may hold sources, or the results of earlier runs.
            if is_new or base == BASE:
                yield entry, is_new


def walk(workspace: int, base: bytes = BASE) -> Iterator[Artefact]:
    """Yield a folder of an open workspace and everything below, parents first. Missing: nothing.

    A link in its place is followed to a folder of the workspace, and a file in place of another folder than
    artefacts/ is yielded; nothing else is read. Raises OSError.
    """
    try:
        top, path = open_top(workspace, base)
    except OSError:
        yield from _in_place_of_folder(workspace, base)
        return
    try:
        yield Artefact(base, os.fstat(top), -1)
        yield from _walk(top, base, _Top(base, top, path), 1)
    finally:
        os.close(top)


def _in_place_of_folder(workspace: int, base: bytes) -> Iterator[Artefact]:
    """Yield what has the name of a folder of results and is none."""
    parent, name = os.path.split(base)
    try:
        folder = open_top(workspace, parent)[0] if parent else os.dup(workspace)
    except OSError:
        return
    try:
        status = os.lstat(name, dir_fd=folder)
        is_result = stat.S_ISREG(status.st_mode) and base != BASE
        reason = None if is_result else f"{show_name(base)} is {_kind(status.st_mode)}, not a folder"
        yield Artefact(base, status, folder, left_out=reason)
    except OSError:
        return
    finally:
        os.close(folder)


def open_top(workspace: int, base: bytes = BASE) -> tuple[int, bytes]:
    """Open a folder, or the folder of the workspace that a link in its place names; return its path, too.

    Raises OSError when there is no such folder.
    """
    parts = _resolve([], base, workspace, lambda target: _inside(target, b""))
    if not parts:
        raise NotADirectoryError(errno.ENOTDIR, "a link out of the workspace, or to all of it", base)
    folder = os.dup(workspace)
    for part in parts:
        try:
            subfolder = open_folder(part, folder)
        finally:
            os.close(folder)
        folder = subfolder
    return folder, b"/".join(parts)


def _inside(target: bytes, *folders: bytes) -> Optional[bytes]:
    """Return the path below one of the workspace's folders of an absolute path in the container, or None."""
    for folder in folders:
        prefix = os.path.join(WORKSPACE.encode(), folder).rstrip(b"/")
        if (target + b"/").startswith(prefix + b"/"):
            return target[len(prefix) :].lstrip(b"/") or b"."
    return None


@dataclasses.dataclass(frozen=True)
class _Top:
    """A folder of results: its name, a descriptor, and the path in the workspace that the name leads to."""

    name: bytes
    descriptor: int
    path: bytes


def _walk(folder: int, parent: bytes, top: _Top, depth: int) -> Iterator[Artefact]:
    # os.listdir of a descriptor returns names as text; os.fsencode restores their bytes.
    for entry in map(os.fsencode, sorted(os.listdir(folder))):
        path = parent + b"/" + entry
        status = os.lstat(entry, dir_fd=folder)
        if stat.S_ISDIR(status.st_mode):
            if depth >= MAX_DEPTH:
                yield Artefact(path, status, folder, left_out=f"more than {MAX_DEPTH} folders deep")
                continue
            yield Artefact(path, status, folder)
            subfolder = open_folder(entry, folder)
            try:
                yield from _walk(subfolder, path, top, depth + 1)
            finally:
                os.close(subfolder)
        elif stat.S_ISLNK(status.st_mode):
            target = os.readlink(entry, dir_fd=folder)
            inside = _inside(target, top.name, top.path)
            if inside is not None:
                # An absolute path of the container means nothing elsewhere.
                target = b"../" * (depth - 1) + inside
            reason = _reason_left_out(path, target, top)
            yield Artefact(path, status, folder, target=target, left_out=reason)
        elif stat.S_ISREG(status.st_mode):
            yield Artefact(path, status, folder)
        else:
            yield Artefact(path, status, folder, left_out=_kind(status.st_mode))


def _reason_left_out(path: bytes, target: bytes, top: _Top) -> Optional[str]:
    """Return why a link is not delivered, None for a link that stays inside its folder of results."""
    if target.startswith(b"/"):
        return f"a link to {show_name(target)}, an absolute path"
    folders = path[len(top.name) + 1 :].split(b"/")[:-1]
    name = show_name(top.name)
    if _climbs(len(folders), target):
        return f"a link to {show_name(target)}, which is outside {name}/"
    if _resolve(folders, target, top.descriptor, lambda link: _inside(link, top.name, top.path)) is None:
        return f"a link to {show_name(target)}, which leads out of {name}/"
    return None


def _resolve(
    folder: list[bytes], target: bytes, top: int, inside: Callable[[bytes], Optional[bytes]]
) -> Optional[list[bytes]]:
    """Return the path below the open folder `top` that a link in `folder` reaches; None when it leads out.

    It is resolved by name. `inside` returns an absolute path as one below `top`. A path that the kernel does
    not follow either, such as a loop, reaches nothing: [].
    """
    reached, remaining = list(folder), target.split(b"/")
    links = 0
    while remaining:
        if len(remaining) > MAX_PARTS or links > MAX_LINKS:
            return []
        part, remaining = remaining[0], remaining[1:]
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not reached:
                return None
            reached.pop()
            continue
        try:
            link = os.readlink(b"/".join([*reached, part]), dir_fd=top)
        except OSError:
            # A file, a folder, or nothing yet.
            reached.append(part)
            continue
        if link.startswith(b"/"):
            path = inside(link)
            if path is None:
                return None
            reached, link = [], path
        links += 1
        remaining = [*link.split(b"/"), *remaining]
    return reached


def _climbs(depth: int, target: bytes) -> bool:
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


@program.part
def record_initial_artefacts(request: dict[str, Any]) -> dict[str, Any]:
    """List the folders of results before training, in the file `stock`; make artefacts/ if it is missing.

    The request: `workspace` and `stock`, descriptors of the folder and of the new file; `folders` that an
    earlier job may have closed; `results`, the folders of results beside artefacts/.
    """
    restore_owner_rights_part(request)
    workspace = request["workspace"]
    # The checkout may already contain the folder.
    with contextlib.suppress(FileExistsError):
        os.mkdir(BASE, dir_fd=workspace)
    stock = {
        entry.path: entry.version()
        for base in bases(request["results"])
        for entry in walk(workspace, base)
        if not stat.S_ISDIR(entry.stat.st_mode)
    }
    with open(os.dup(request["stock"]), "w", encoding="ascii") as file:
        json.dump(stock, file)
    return {}


def read_initial_artefacts(descriptor: int) -> dict[str, list[int]]:
    """Return the list of the folders of results from before training."""
    with open(os.dup(descriptor), encoding="ascii") as file:
        file.seek(0)
        stock: dict[str, list[int]] = json.load(file)
    return stock


def measure(entries: Iterable[tuple[Artefact, bool]], check: Callable[[], None]) -> tuple[int, int]:
    """Return the bytes of entries on the disk, and the apparent size of their files.

    They differ by the holes of sparse files, which take some time to read too.
    """
    real = apparent = 0
    for entry, _ in entries:
        check()
        if entry.left_out is None and stat.S_ISREG(entry.stat.st_mode):
            real += min(entry.stat.st_size, entry.stat.st_blocks * 512)
            apparent += entry.stat.st_size
    return real, apparent
