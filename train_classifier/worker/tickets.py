"""The tickets of the GPU queue as files: read, written and counted under the queue's lock.

A worker holds a flock on its ticket for life, so a dead worker's ticket is known at once. Tickets are written
in place, never renamed: the flock is the inode's. Files are never made anew over another user's.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

from train_classifier.errors import NotReady
from train_classifier.worker.host import boot_id
from train_classifier.worker.locks import try_lock

#: Seconds after which a submitted ticket whose worker never came is removed. It is passed over much earlier;
#: a worker on a busy host may be late, and then finds its place kept.
NEW_S = 600.0
TICKET = re.compile(r"([0-9]{12})-(.+)\.json\Z")


@dataclasses.dataclass
class Entry:
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
    """Hold the queue's lock. Raises NotReady without the folder, or without the right to use it."""
    path = folder / "lock"
    hint = (
        "run the role training_host on this host: it makes the folder for all users of Docker (group docker)"
    )
    try:
        # Never O_CREAT on a file of another user (fs.protected_regular).
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            descriptor = create(path)
    except FileNotFoundError as error:
        raise NotReady(f"the queue's folder {folder} is missing", hint) from error
    except OSError as error:
        raise NotReady(f"the queue {folder} cannot be used: {error.strerror}", hint) from error
    try:
        while not try_lock(descriptor):
            if check is not None:
                check()
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def create(path: Path) -> int:
    """Make a file that every user of the folder's group can change, and open it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    # Whatever the umask is.
    os.fchmod(descriptor, 0o660)
    return descriptor


def read(path: Path, descriptor: int) -> Optional[Entry]:
    match = TICKET.match(path.name)
    try:
        data = json.loads(os.pread(descriptor, 1 << 16, 0))
        return Entry(path=path, number=int(match[1]) if match else 0, **data)
    except (ValueError, TypeError):
        # Cut short by the death of its writer: nobody holds it, so it is removed.
        return None


def write(descriptor: int, entry: Entry) -> None:
    data = dataclasses.asdict(entry)
    del data["path"], data["number"]
    text = json.dumps(data).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def tickets(
    folder: Path, mine: Optional[Path] = None
) -> tuple[list[Entry], list[tuple[Path, Optional[Entry]]]]:
    """Return the live tickets in order and the dead ones; `mine` is live. The queue's lock is held."""
    live, dead = [], []
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if not TICKET.match(name):
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.EACCES):
                continue
            raise
        try:
            entry = read(path, descriptor)
            held = path == mine or not try_lock(descriptor)
            young = entry is not None and entry.state == "new" and 0 <= entry.age() < NEW_S
            if entry is not None and (held or young):
                live.append(entry)
            elif not held:
                dead.append((path, entry))
        finally:
            os.close(descriptor)
    return live, dead


def next_number(folder: Path) -> int:
    """Count the counter up. One that is lost or torn begins after the last ticket."""
    path = folder / "counter"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        descriptor = create(path)
    try:
        text = os.pread(descriptor, 64, 0).strip()
        last = int(text) if text.isdigit() else 0
        numbers = [int(match[1]) for match in map(TICKET.match, os.listdir(folder)) if match]
        number = max([last, *numbers]) + 1
        data = f"{number}\n".encode()
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
        return number
    finally:
        os.close(descriptor)
