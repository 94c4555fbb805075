"""Read a file that anybody may have put there: a regular file, up to a limit, and without waiting."""

import os
import stat
from typing import Optional


def read(
    path: "os.PathLike[str] | str", most_bytes: int, *, pipe: bool = False, within: Optional[str] = None
) -> bytes:
    """Return a file's content. Opening a FIFO or a device never waits.

    With `pipe` the reading end of a shell's `<(…)` is read as well; with `within`, a real path, the file lies
    in that folder whatever links lead to it. Raises OSError when the file cannot be opened, ValueError with a
    phrase for what is elsewhere, is not a regular file, or holds more than `most_bytes`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if within is not None and not _place(descriptor).startswith(within.rstrip("/") + "/"):
        os.close(descriptor)
        raise ValueError("leads out of the repository")
    return read_open(descriptor, most_bytes, pipe=pipe)


def read_open(descriptor: int, most_bytes: int, *, pipe: bool = False) -> bytes:
    """Return the content of the file behind a descriptor, which is closed. Raises as `read` does."""
    try:
        found = os.fstat(descriptor)
        if pipe and stat.S_ISFIFO(found.st_mode) and _is_nameless(descriptor):
            os.set_blocking(descriptor, True)
        elif not stat.S_ISREG(found.st_mode):
            raise ValueError("is a folder" if stat.S_ISDIR(found.st_mode) else "is not a regular file")
        parts, size = [], 0
        while size <= most_bytes and (block := os.read(descriptor, min(1 << 20, most_bytes + 1 - size))):
            parts.append(block)
            size += len(block)
    finally:
        os.close(descriptor)
    if size > most_bytes:
        raise ValueError(f"is over {most_bytes >> 20} MiB")
    return b"".join(parts)


def _place(descriptor: int) -> str:
    """Return where the file behind a descriptor really lies; of a pipe, `pipe:` and its number."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _is_nameless(descriptor: int) -> bool:
    """Return whether a FIFO is a pipe, which has a writer: one with a name may wait for one for ever."""
    return _place(descriptor).startswith("pipe:")
