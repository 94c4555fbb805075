"""The tickets of the GPU queue as files: read, written and counted under the queue's lock.

A worker holds a flock on its ticket for life, so a dead worker's ticket is known at once. Tickets are written
in place, never renamed: the flock is the inode's. Files are never made anew over another user's.

Every user of Docker can write into the queue's folder. What is there is read with limits, and a file that is
no ticket is ignored: `strange` names it for the check of the host. Whose a ticket is says the file's owner.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pwd
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.job import MODEL
from train_classifier.core.locks import try_lock
from train_classifier.worker.system.host import boot_id

#: Seconds after which a submitted ticket whose worker never came is removed. It is passed over much earlier;
#: a worker on a busy host may be late, and then finds its place kept.
NEW_S = 600.0
#: Seconds for which the queue's lock may be held by others; it is held for milliseconds.
LOCK_S = 120.0
TICKET = re.compile(r"([0-9]{12})-([A-Za-z0-9][A-Za-z0-9_.-]{0,63})\.json\Z")
#: The last number. Tickets that share it are in the order of their jobs' ids, which begin with the time.
MOST_NUMBER = 999_999_999_999
#: Bytes of a ticket.
MOST_BYTES = 1 << 16
STATES = ("new", "preparing", "waiting", "granted")
_GPU = re.compile(r"[!-+.-~][!-+.-~-]{0,127}\Z")


class Strange(Exception):
    """A file of the queue's folder that is no ticket; the text says why."""


@dataclasses.dataclass
class QueueEntry:
    """A ticket as everybody sees it."""

    path: Path
    number: int
    job: str
    model: str
    user: str
    uid: int
    dir: str
    want: int
    min_vram_mib: Optional[int]
    #: new, preparing, waiting or granted.
    state: str
    gpus: list[str]
    #: When this state began: seconds since the epoch, for people.
    since: float
    #: The same on the clock that never jumps (CLOCK_BOOTTIME), of the boot `boot`.
    since_boot: float
    boot: str

    def age(self) -> float:
        """Return the seconds since this state began; infinite for a ticket of an earlier boot."""
        return clock() - self.since_boot if self.boot == boot_id() else float("inf")


def clock() -> float:
    """Return seconds on a clock that all processes share and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def locked(folder: Path, check: Optional[Callable[[], None]] = None) -> Iterator[None]:
    """Hold the queue's lock.

    Raises NotReady without the folder, without the right to use it, and when others do not give it back.
    """
    path = folder / "lock"
    began = time.monotonic()
    while True:
        descriptor = _open_lock(folder, path)
        try:
            while not try_lock(descriptor):
                if check is not None:
                    check()
                if time.monotonic() - began > LOCK_S:
                    raise NotReady(
                        f"another process has held the queue's lock {path} for {LOCK_S:.0f} s",
                        f"on the host, find it and stop it: fuser -v {path}",
                    )
                time.sleep(0.02)
            if _is_current(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def _open_lock(folder: Path, path: Path) -> int:
    hint = (
        "run the role training_host on this host: it makes the folder for all users of Docker (group docker)"
    )
    try:
        # Never O_CREAT on a file of another user (fs.protected_regular).
        try:
            return _open(path, os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                return create(path)
            return _open(path, os.O_RDWR)
    except FileNotFoundError as error:
        raise NotReady(f"the queue's folder {folder} is missing", hint) from error
    except Strange as error:
        raise NotReady(f"the queue's lock {path} {error}", f"on the host: rm -r {path}") from error
    except OSError as error:
        raise NotReady(f"the queue {folder} cannot be used: {error.strerror}", hint) from error


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether the lock's file is still the one of that name: else there would be two locks."""
    held = os.fstat(descriptor)
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)


def create(path: Path) -> int:
    """Make a file that every user of the folder's group can change, and open it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
    # Whatever the umask is.
    os.fchmod(descriptor, 0o660)
    return descriptor


def _open(path: Path, mode: int) -> int:
    """Open a regular file of the queue without waiting for anybody. Raises Strange for anything else."""
    try:
        descriptor = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise Strange("is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Strange("is not a regular file")
    return descriptor


def open_ticket(path: Path, mode: int = os.O_RDONLY) -> int:
    """Open a ticket. Raises Strange for what cannot be one, FileNotFoundError when it is gone."""
    try:
        return _open(path, mode)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Strange(f"cannot be opened: {error.strerror}") from error


def read(path: Path, descriptor: int) -> QueueEntry:
    """Return what a ticket says. Raises Strange for what no worker of ours wrote."""
    match = TICKET.match(path.name)
    status = os.fstat(descriptor)
    if match is None:
        raise Strange("has no name of a ticket")
    if status.st_size > MOST_BYTES:
        raise Strange(f"has {status.st_size} bytes")
    try:
        data = json.loads(os.pread(descriptor, MOST_BYTES, 0))
    except (ValueError, RecursionError):
        raise Strange("cannot be read: it is cut short or no JSON") from None
    if not isinstance(data, dict):
        raise Strange("is not a JSON object")
    for name, valid in _FIELDS.items():
        if not valid(data.get(name)):
            raise Strange(f"has no valid {name}")
    if data["job"] != match[2]:
        raise Strange("names another job than its name")
    fields = {name: data[name] for name in _FIELDS}
    return QueueEntry(
        path=path, number=int(match[1]), uid=status.st_uid, user=user_name(status.st_uid), **fields
    )


def user_name(uid: int) -> str:
    """Return the login name of a user, the number where the host knows no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _whole(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e11


def _text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isprintable()


#: What a ticket must say. Its number is its name's and its user the file's owner; other keys are ignored.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "job": lambda value: _text(value, 64),
    "model": lambda value: isinstance(value, str) and MODEL.match(value) is not None,
    "dir": lambda value: isinstance(value, str),
    "want": lambda value: _whole(value, 1024),
    "min_vram_mib": lambda value: value is None or _whole(value, 1 << 40),
    "state": lambda value: value in STATES,
    "gpus": lambda value: (
        isinstance(value, list)
        and len(value) <= 1024
        and all(isinstance(uuid, str) and _GPU.match(uuid) for uuid in value)
    ),
    "since": _seconds,
    "since_boot": _seconds,
    "boot": lambda value: _text(value, 64),
}


def write(descriptor: int, entry: QueueEntry) -> None:
    """Write a ticket over what its open file held."""
    data = dataclasses.asdict(entry)
    del data["path"], data["number"]
    text = json.dumps(data).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _names(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if TICKET.match(name)]


def tickets(folder: Path, mine: Optional[Path] = None) -> tuple[list[QueueEntry], list[QueueEntry]]:
    """Return the live tickets in order and the dead ones; `mine` is live. The queue's lock is held.

    A ticket of this user that was cut short by the death of its writer is removed.
    """
    live, dead = [], []
    for path in _names(folder):
        try:
            descriptor = open_ticket(path)
        except (FileNotFoundError, Strange):
            continue
        try:
            held = path == mine or not try_lock(descriptor)
            try:
                entry = read(path, descriptor)
            except Strange:
                if not held and os.fstat(descriptor).st_uid == os.geteuid():
                    path.unlink(missing_ok=True)
                continue
            young = entry.state == "new" and 0 <= entry.age() < NEW_S
            if held or young:
                live.append(entry)
            else:
                dead.append(entry)
        finally:
            os.close(descriptor)
    return live, dead


def strange(folder: Path) -> list[tuple[Path, str]]:
    """Return the files that look like tickets or the counter and are none, with what is wrong with them."""
    found = []
    for path in _names(folder):
        with contextlib.suppress(FileNotFoundError):
            try:
                descriptor = open_ticket(path)
                try:
                    read(path, descriptor)
                finally:
                    os.close(descriptor)
            except Strange as error:
                found.append((path, str(error)))
    try:
        os.close(_open(folder / "counter", os.O_RDWR))
    except FileNotFoundError:
        pass
    except (OSError, Strange) as error:
        found.append((folder / "counter", getattr(error, "strerror", None) or str(error)))
    return found


def next_number(folder: Path) -> int:
    """Count the counter up. One that is lost or torn begins after the last ticket."""
    path = folder / "counter"
    descriptor = -1
    # Without a counter a number may come again, once its job is gone.
    with contextlib.suppress(OSError, Strange):
        try:
            descriptor = _open(path, os.O_RDWR)
        except FileNotFoundError:
            descriptor = create(path)
    try:
        text = os.pread(descriptor, 64, 0).strip() if descriptor >= 0 else b""
        last = int(text) if text.isdigit() else 0
        numbers = [int(path.name[:12]) for path in _names(folder)]
        number = min(max([last, *numbers]) + 1, MOST_NUMBER)
        if descriptor >= 0:
            data = f"{number}\n".encode()
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        return number
    finally:
        if descriptor >= 0:
            os.close(descriptor)
