"""Files and trees that come through a pipe from a stranger: they stay below a folder, and leave some room.

A tree is one object for each entry, `path` with `mode`, and `link` or `folder`; the blocks of a file follow
it, and `seek` skips a hole. `end` ends it, `failed` says why it does not.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core.errors import NotReady, TrainClassifierError
from train_classifier.core.regular_file import open_regular
from train_classifier.core.text import show_bytes
from train_classifier.worker.slurm_node.pipe import MOST_BLOCK, Malformed, Pipe
from train_classifier.worker.state.file_trees import restore_owner_rights
from train_classifier.worker.state.files import O_FOLDER, opened_folder
from train_classifier.worker.system import host_faults

#: Deeper folders do not travel: each entry is reached from the top.
MOST_DEPTH = 200
MOST_PATH = 4096
#: A file that is received has at most this size, with its holes.
MOST_SIZE = 1 << 50
#: Bytes and entries between two looks at the room.
LOOK_BYTES = 64 << 20
LOOK_ENTRIES = 1000
#: Files that the file system must still have room for.
LEAST_FILES = 10_000

Check = Callable[[], None]


class Stopped(NotReady):
    """The other half said why it does not send the rest."""


class Room:
    """The room on the disk of a folder; what is received must leave `floor` bytes of it."""

    def __init__(self, folder: Path, floor: int) -> None:
        self._folder = folder
        self._floor = floor
        self._bytes = self._entries = 0
        self._look()

    def use(self, size: int = 0, entries: int = 0) -> None:
        """Count what is about to be written. Raises NotReady when the room is used up."""
        self._bytes += size
        self._entries += entries
        if self._bytes >= LOOK_BYTES or self._entries >= LOOK_ENTRIES:
            self._bytes = self._entries = 0
            self._look()

    def _look(self) -> None:
        system = os.statvfs(self._folder)
        free = system.f_bavail * system.f_frsize
        if free < self._floor or (system.f_files and system.f_favail < LEAST_FILES):
            raise NotReady(
                f"the disk of {self._folder} has no room for the job's files ({show_bytes(free)} free)",
                "free some space there",
            )


def send_tree(pipe: Pipe, folder: Path, check: Check) -> None:
    """Send what is in a folder, where a model may have written. Raises OSError when the other half is gone.

    Links are sent as links, other special files not at all. `check` is called repeatedly, and may raise: the
    other half is told why.
    """
    try:
        restore_owner_rights(folder)
        with opened_folder(folder) as top:
            stack = [b""]
            while stack:
                path = stack.pop()
                with _opened(top, path) as descriptor:
                    for name in map(os.fsencode, os.listdir(descriptor)):
                        check()
                        whole = path + b"/" + name if path else name
                        if _send_entry(pipe, descriptor, name, whole, check):
                            stack.append(whole)
    except TrainClassifierError as error:
        pipe.send({"failed": error.reason})
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        pipe.send({"failed": str(error)})
    else:
        pipe.send({"end": True})


def _send_entry(pipe: Pipe, folder: int, name: bytes, path: bytes, check: Check) -> bool:
    """Send one entry; return whether it is a folder."""
    status = os.lstat(name, dir_fd=folder)
    entry: dict[str, Any] = {"path": os.fsdecode(path), "mode": stat.S_IMODE(status.st_mode)}
    if stat.S_ISLNK(status.st_mode):
        pipe.send({**entry, "link": os.fsdecode(os.readlink(name, dir_fd=folder))})
    elif stat.S_ISDIR(status.st_mode):
        pipe.send({**entry, "folder": True})
        return True
    elif stat.S_ISREG(status.st_mode):
        descriptor = open_regular(name, folder)
        try:
            pipe.send({**entry, "time": status.st_mtime_ns})
            _send_content(pipe, descriptor, check)
        finally:
            os.close(descriptor)
    return False


def send_file(pipe: Pipe, path: Path, check: Check) -> None:
    """Send a file of this account as a record, by its name; one that is missing is fine."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = open_regular(path)
        try:
            pipe.send({"record": path.name})
            _send_content(pipe, descriptor, check)
        finally:
            os.close(descriptor)
        pipe.send({"end": True})


def _send_content(pipe: Pipe, descriptor: int, check: Check) -> None:
    """Send the bytes of a file without its holes, up to the size that it has now."""
    size, position = os.fstat(descriptor).st_size, 0
    while position < size:
        check()
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            start = size
        if start > position:
            position = min(start, size)
            pipe.send({"seek": position})
            continue
        block = os.pread(descriptor, min(MOST_BLOCK, size - position), position)
        if not block:
            return
        pipe.send_block(block)
        position += len(block)


def receive_tree(pipe: Pipe, folder: Path, room: Room) -> None:
    """Write a tree into an empty folder in which only this account can write.

    Raises EOFError, NotReady, and OSError for a disk that is full. What has arrived by then stays.
    """
    with opened_folder(folder) as top:
        message = pipe.receive_object()
        while not message.get("end"):
            message = _receive_entry(pipe, message, top, room) or pipe.receive_object()


def _receive_entry(pipe: Pipe, entry: dict[str, Any], top: int, room: Room) -> Optional[dict[str, Any]]:
    """Make one entry; return the object after the blocks of a file."""
    raise_failure(entry)
    path, mode = _checked_path(entry.get("path")), entry.get("mode")
    if not isinstance(mode, int) or not 0 <= mode <= 0o7777:
        raise Malformed
    room.use(entries=1)
    parent, _, name = path.rpartition(b"/")
    try:
        with _opened(top, parent) as folder:
            if entry.get("folder"):
                os.mkdir(name, 0o700 | mode & 0o755, dir_fd=folder)
            elif "link" in entry:
                os.symlink(_checked_text(entry["link"]), name, dir_fd=folder)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                # No bit of setuid: the file now belongs to another account than the one that set it.
                descriptor = os.open(name, flags, 0o600 | mode & 0o755, dir_fd=folder)
                try:
                    after = receive_content(pipe, descriptor, room)
                    _set_time(descriptor, entry.get("time"))
                finally:
                    os.close(descriptor)
                return after
    except OSError as error:
        if host_faults.of_disk(error):
            raise
        # Twice the same name, below what is no folder, a name that is too long …
        raise Malformed from error
    return None


def receive_content(pipe: Pipe, descriptor: int, room: Room, most: int = MOST_SIZE) -> dict[str, Any]:
    """Write the blocks of a file; return the object after them. Raises NotReady above `most` bytes."""
    position = 0
    while True:
        message = pipe.receive()
        if isinstance(message, bytes):
            room.use(len(message))
            end = position + len(message)
        elif isinstance(message.get("seek"), int) and message["seek"] > position:
            end = message["seek"]
        else:
            os.ftruncate(descriptor, position)
            return message
        if end > most:
            raise NotReady(f"a file of the job is larger than {show_bytes(most)}")
        if isinstance(message, bytes):
            view = memoryview(message)
            while view:
                view = view[os.pwrite(descriptor, view, end - len(view)) :]
        position = end


def raise_failure(message: dict[str, Any]) -> None:
    """Raise Stopped when the other half says that it cannot send the rest."""
    if "failed" in message:
        raise Stopped(str(message["failed"])[:1000])


def skip_rest(pipe: Pipe) -> None:
    """Read the rest of a tree or a file that cannot be written. Raises as `Pipe.receive`."""
    while isinstance(message := pipe.receive(), bytes) or not {"end", "failed"} & set(message):
        pass


def _set_time(descriptor: int, time_ns: Any) -> None:
    if isinstance(time_ns, int) and 0 <= time_ns < 1 << 62:
        os.utime(descriptor, ns=(time_ns, time_ns))


def _checked_path(path: Any) -> bytes:
    name = _checked_text(path)
    parts = name.split(b"/")
    if len(parts) > MOST_DEPTH or any(part in (b"", b".", b"..") for part in parts):
        raise Malformed
    return name


def _checked_text(text: Any) -> bytes:
    try:
        name = os.fsencode(text) if isinstance(text, str) else b""
    except UnicodeEncodeError:
        name = b""
    if not name or len(name) >= MOST_PATH or b"\0" in name:
        raise Malformed
    return name


@contextlib.contextmanager
def _opened(top: int, path: bytes) -> Iterator[int]:
    """Yield a descriptor of a folder below an open one; no part of its path is a link."""
    descriptor = os.dup(top)
    try:
        parts = path.split(b"/") if path else []
        if len(parts) >= MOST_DEPTH:
            raise NotReady(f"the files of the job lie deeper than {MOST_DEPTH} folders")
        for part in parts:
            below = os.open(part, O_FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)
