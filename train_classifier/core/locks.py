"""Locks between processes: flock on a file, freed by the kernel when its holder dies."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

#: Seconds between two tries of a wait that can be cancelled.
POLL_S = 0.1
#: A link in place of a lock file is not followed, and opening a FIFO does not block.
O_LOCK = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_lock(path: Path) -> int:
    """Open the lock file, and create it (mode 0600) if needed; the descriptor is closed in children."""
    try:
        return os.open(path, os.O_RDWR | O_LOCK)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | O_LOCK | os.O_CREAT, 0o600)
    if os.fstat(descriptor).st_uid == os.geteuid() or os.geteuid() == 0:
        os.fchmod(descriptor, 0o600)
    return descriptor


def take_lock(descriptor: int, shared: bool = False) -> None:
    """Wait for the lock and take it; a lock that the descriptor holds already changes its kind."""
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Take the lock if it is free; True when taken."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    shared: bool = False,
    check: Optional[Callable[[], None]] = None,
    timeout: Optional[float] = None,
) -> Iterator[int]:
    """Hold the lock on `path`, waiting for it; yields the descriptor.

    `check` is called while waiting and may raise; `timeout` (seconds) raises TimeoutError. A file that was
    removed during the wait is opened again, so that there are never two holders with two files of one name.
    """
    began = time.monotonic()
    while True:
        descriptor = open_lock(path)
        try:
            if check is None and timeout is None:
                take_lock(descriptor, shared)
            else:
                while not try_lock(descriptor, shared):
                    if check is not None:
                        check()
                    if timeout is not None and time.monotonic() - began > timeout:
                        raise TimeoutError(f"{path} is held by another process")
                    time.sleep(POLL_S)
            if is_current(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def hold_now(path: Path) -> Iterator[bool]:
    """Hold the lock if it is free right now; yields whether it is held."""
    descriptor = open_lock(path)
    try:
        yield try_lock(descriptor) and is_current(descriptor, path)
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether a running process holds the lock exclusively; False for a link or a missing file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | O_LOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return False
        raise
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def is_current(descriptor: int, path: Path) -> bool:
    """Return whether `path` still names the lock's open file; otherwise there would be two locks."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
