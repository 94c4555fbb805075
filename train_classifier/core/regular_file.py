"""Reads an untrusted file: only a regular one, only up to a limit, and without blocking."""

import errno
import os
import stat
from typing import Optional, Union

#: Opening follows no link and never blocks.
O_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
Name = Union[str, bytes, "os.PathLike[str]"]


def open_regular(path: Name, folder: Optional[int] = None) -> int:
    """Open a regular file for reading as O_FILE says; `folder` is a descriptor that the path starts from.

    Raises OSError, also when it is not a regular file.
    """
    descriptor = os.open(path, O_FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def start(path: Name, size: int) -> bytes:
    """Return the first bytes of a regular file. Raises OSError as `open_regular` does."""
    with open(open_regular(path), "rb") as file:
        return file.read(size)


def read(path: Name, most_bytes: int, *, pipe: bool = False, within: Optional[str] = None) -> bytes:
    """Return a file's content. A FIFO or a device is not opened: opening alone can have an effect.

    With `pipe` the reading end of a shell's `<(…)` is read as well; with `within`, a real path, the file must
    be in that folder after all links are resolved. Raises OSError when the file cannot be opened, ValueError
    with a phrase when it is elsewhere, is not a regular file, or holds more than `most_bytes`.
    """
    return read_open(open_followed(path, pipe=pipe, within=within), most_bytes, pipe=pipe)


def open_followed(path: Name, *, pipe: bool = False, within: Optional[str] = None) -> int:
    """Open a file for reading, behind links too. Options and exceptions are those of `read`."""
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if within is not None and not _place(handle).startswith(within.rstrip("/") + "/"):
            raise ValueError("leads out of the repository")
        _require_readable(handle, pipe)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(handle)


def read_open(descriptor: int, most_bytes: int, *, pipe: bool = False) -> bytes:
    """Return the content of the file behind a descriptor, which is closed. Raises as `read` does."""
    try:
        _require_readable(descriptor, pipe)
        os.set_blocking(descriptor, True)
        parts, size = [], 0
        while size <= most_bytes and (block := os.read(descriptor, min(1 << 20, most_bytes + 1 - size))):
            parts.append(block)
            size += len(block)
    finally:
        os.close(descriptor)
    if size > most_bytes:
        limit = f"{most_bytes >> 20} MiB" if most_bytes >= 1 << 20 else f"{most_bytes >> 10} KiB"
        raise ValueError(f"is over {limit}")
    return b"".join(parts)


def _require_readable(descriptor: int, pipe: bool) -> None:
    """Raise ValueError unless a descriptor is that of a regular file, or with `pipe` of an unnamed pipe."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not (pipe and stat.S_ISFIFO(mode) and _is_nameless(descriptor)):
        raise ValueError("is a folder" if stat.S_ISDIR(mode) else "is not a regular file")


def _place(descriptor: int) -> str:
    """Return the real path of the file behind a descriptor; for a pipe, `pipe:` and its number."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _is_nameless(descriptor: int) -> bool:
    """Return whether a FIFO is an unnamed pipe, which has a writer; a named one may wait forever for one."""
    return _place(descriptor).startswith("pipe:")
