"""The tickets of the GPU queue as files: read, written and counted under the queue's lock.

A worker holds a flock on its ticket until it ends, so a dead worker's ticket is detected at once. Tickets are
written in place and never renamed, because a flock belongs to the inode. A file never replaces another
user's.

Every user of Docker can write into the queue's folder, so files are read with limits, and a file that is not
a ticket is ignored; `invalid_files` names it for the host check. The owner of the file owns the ticket.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.job import MODEL
from train_classifier.core.locks import is_current, try_lock
from train_classifier.worker.system.host import account_name, boot_id, uptime

#: Seconds after which a submitted ticket that no worker has claimed is removed. It is skipped much earlier,
#: but a worker that is late on a busy host still has its place.
NEW_S = 600.0
#: Seconds to wait for the queue's lock; normally it is held for milliseconds.
LOCK_S = 120.0
TICKET = re.compile(r"([0-9]{12})-([A-Za-z0-9][A-Za-z0-9_.-]{0,63})\.json\Z")
#: The largest number. Tickets that share it are in the order of their jobs' ids, which begin with the time.
MOST_NUMBER = 999_999_999_999
#: Bytes of a ticket.
MOST_BYTES = 1 << 16
STATES = ("new", "preparing", "waiting", "granted")
#: The UUID of a GPU, as far as it is checked.
GPU = re.compile(r"[!-+.-~][!-+.-~-]{0,127}\Z")


class InvalidFile(Exception):
    """Raised for a file of the queue's folder that is not a ticket; the text is the reason."""


@dataclasses.dataclass
class QueueEntry:
    """The data of a ticket, readable by all users."""

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
    #: The same on the clock that is never adjusted (CLOCK_BOOTTIME), of the boot `boot`.
    since_boot: float
    boot: str

    def age(self) -> float:
        """Return the seconds since this state began; infinite for a ticket of an earlier boot."""
        return uptime() - self.since_boot if self.boot == boot_id() else float("inf")


@contextlib.contextmanager
def locked(folder: Path, check: Optional[Callable[[], None]] = None) -> Iterator[None]:
    """Hold the queue's lock.

    Raises NotReady without the folder, without the right to use it, and when other processes do not release
    the lock.
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
            if is_current(descriptor, path):
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
                return create_file(path)
            return _open(path, os.O_RDWR)
    except FileNotFoundError as error:
        raise NotReady(f"the queue's folder {folder} is missing", hint) from error
    except InvalidFile as error:
        raise NotReady(f"the queue's lock {path} {error}", f"on the host: rm -r {path}") from error
    except OSError as error:
        raise NotReady(f"the queue {folder} cannot be used: {error.strerror}", hint) from error


def create_file(path: Path) -> int:
    """Create a file that every user of the folder's group can change, and open it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
    # Independent of the umask.
    os.fchmod(descriptor, 0o660)
    return descriptor


def _open(path: Path, mode: int) -> int:
    """Open a regular file of the queue without blocking. Raises InvalidFile for anything else."""
    try:
        descriptor = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise InvalidFile("is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidFile("is not a regular file")
    return descriptor


def open_ticket(path: Path, mode: int = os.O_RDONLY) -> int:
    """Open a ticket. Raises InvalidFile when it cannot be a ticket, FileNotFoundError when it is gone."""
    try:
        return _open(path, mode)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InvalidFile(f"cannot be opened: {error.strerror}") from error


def read_ticket(path: Path, descriptor: int) -> QueueEntry:
    """Return the data of a ticket. Raises InvalidFile for content that no worker writes."""
    match = TICKET.match(path.name)
    status = os.fstat(descriptor)
    if match is None:
        raise InvalidFile("has no name of a ticket")
    if status.st_size > MOST_BYTES:
        raise InvalidFile(f"has {status.st_size} bytes")
    try:
        data = json.loads(os.pread(descriptor, MOST_BYTES, 0))
    except (ValueError, RecursionError):
        raise InvalidFile("cannot be read: it is cut short or no JSON") from None
    if not isinstance(data, dict):
        raise InvalidFile("is not a JSON object")
    for name, valid in _FIELDS.items():
        if not valid(data.get(name)):
            raise InvalidFile(f"has no valid {name}")
    if data["job"] != match[2]:
        raise InvalidFile("names another job than its name")
    fields = {name: data[name] for name in _FIELDS}
    return QueueEntry(
        path=path, number=int(match[1]), uid=status.st_uid, user=account_name(status.st_uid), **fields
    )


def _is_number(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e11


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 64 and value.isprintable()


#: The keys of a ticket. Number and user come from the file's name and owner; other keys are ignored.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "job": _is_text,
    "model": lambda value: isinstance(value, str) and MODEL.match(value) is not None,
    "dir": lambda value: isinstance(value, str),
    "want": lambda value: _is_number(value, 1024),
    "min_vram_mib": lambda value: value is None or _is_number(value, 1 << 40),
    "state": lambda value: value in STATES,
    "gpus": lambda value: (
        isinstance(value, list)
        and len(value) <= 1024
        and all(isinstance(uuid, str) and GPU.match(uuid) for uuid in value)
    ),
    "since": _is_time,
    "since_boot": _is_time,
    "boot": _is_text,
}


def write_ticket(descriptor: int, entry: QueueEntry) -> None:
    """Replace the content of a ticket's open file."""
    data = dataclasses.asdict(entry)
    del data["path"], data["number"]
    text = json.dumps(data).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _ticket_paths(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if TICKET.match(name)]


def live_and_dead(folder: Path, own: Optional[Path] = None) -> tuple[list[QueueEntry], list[QueueEntry]]:
    """Return the live tickets in order and the dead ones; `own` is live. The queue's lock is held.

    An incomplete ticket of this user, whose writer died, is removed.
    """
    live, dead = [], []
    for path in _ticket_paths(folder):
        try:
            descriptor = open_ticket(path)
        except (FileNotFoundError, InvalidFile):
            continue
        try:
            is_held = path == own or not try_lock(descriptor)
            try:
                entry = read_ticket(path, descriptor)
            except InvalidFile:
                if not is_held and os.fstat(descriptor).st_uid == os.geteuid():
                    path.unlink(missing_ok=True)
                continue
            is_young = entry.state == "new" and 0 <= entry.age() < NEW_S
            if is_held or is_young:
                live.append(entry)
            else:
                dead.append(entry)
        finally:
            os.close(descriptor)
    return live, dead


def invalid_files(folder: Path) -> list[tuple[Path, str]]:
    """Return the invalid files with the name of a ticket or of the counter, each with its problem."""
    problems = []
    for path in _ticket_paths(folder):
        with contextlib.suppress(FileNotFoundError):
            try:
                descriptor = open_ticket(path)
                try:
                    read_ticket(path, descriptor)
                finally:
                    os.close(descriptor)
            except InvalidFile as error:
                problems.append((path, str(error)))
    try:
        os.close(_open(folder / "counter", os.O_RDWR))
    except FileNotFoundError:
        pass
    except (OSError, InvalidFile) as error:
        problems.append((folder / "counter", getattr(error, "strerror", None) or str(error)))
    return problems


def next_number(folder: Path) -> int:
    """Increment the counter and return it. A lost or damaged counter starts after the last ticket."""
    path = folder / "counter"
    descriptor = -1
    # If the counter cannot be used, a number may be used again after its job is gone.
    with contextlib.suppress(OSError, InvalidFile):
        try:
            descriptor = _open(path, os.O_RDWR)
        except FileNotFoundError:
            descriptor = create_file(path)
    try:
        text = os.pread(descriptor, 64, 0).strip() if descriptor >= 0 else b""
        last = int(text) if text.isdigit() else 0
        numbers = [int(path.name[:12]) for path in _ticket_paths(folder)]
        number = min(max([last, *numbers]) + 1, MOST_NUMBER)
        if descriptor >= 0:
            data = f"{number}\n".encode()
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        return number
    finally:
        if descriptor >= 0:
            os.close(descriptor)
