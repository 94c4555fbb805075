"""Files and folders of the state: written whole or not at all, read within limits."""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.regular_file import open_regular
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account

#: Flags for opening a folder where an account with fewer rights may have written.
O_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Largest size of a JSON file that is read.
JSON_BYTES = 64 << 20


def write_bytes(path: Path, data: bytes, mode: int = 0o600, sync: bool = True) -> None:
    """Write a file as `new_file` does."""
    with new_file(path, mode, sync) as descriptor:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def new_file(path: Path, mode: int = 0o600, sync: bool = True) -> Iterator[int]:
    """Yield a descriptor of a new file that replaces `path` when the block ends without an exception.

    So the file is written completely or not at all. Without `sync` a power failure may lose it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            yield descriptor
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def change_mark(path: Path) -> Optional[tuple[int, int]]:
    """Return what another content of a file changes; None while it is missing."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextlib.contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Yield a descriptor of a folder; raises OSError for a link."""
    descriptor = os.open(path, O_FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@program.part
def write_part(request: dict[str, Any]) -> dict[str, Any]:
    """Do `write_bytes` for a child of this program. The request: `path`, `text`."""
    write_bytes(Path(request["path"]), request["text"].encode("utf-8", "replace"))
    return {}


def write_json(path: Path, data: Any) -> None:
    """Write JSON as `write_bytes` does."""
    write_bytes(path, json.dumps(data, indent=1, sort_keys=True).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Return the JSON of a file, None when it is missing. Raises NotReady when it is not JSON."""
    try:
        return json.loads(read_bytes(path, JSON_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise NotReady(f"{path} is damaged: {error}") from error
    except OSError as error:
        # ELOOP: a link; ENXIO: a socket.
        if error.errno in (errno.EINVAL, errno.ELOOP, errno.ENXIO):
            raise NotReady(f"{path} is damaged: not a regular file") from error
        raise


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file. Raises NotReady when it has more than `max_bytes`, OSError."""
    with open(open_regular(path), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise NotReady(f"{path} is larger than {max_bytes} bytes")
    return data


def make_folder(path: Path, mode: int, owner: Optional[Account] = None) -> Path:
    """Make a folder (not its parents) of this mode, owned by `owner` if root calls; an existing one stays.

    The parent is a folder that only the caller can write, so that the path means the same at every step.
    """
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return path
    os.chmod(path, mode)
    if owner is not None and os.geteuid() == 0:
        os.chown(path, owner.uid, owner.gid)
    return path


def make_leaf(path: Path, account: Account) -> Path:
    """Make a folder for `account` in a folder of the submitter; restore the access to an existing one."""
    make_folder(path, 0o700)
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)
    # A program that wrote into it may have removed the access.
    os.chmod(path, 0o700)
    return path


def make_passage(path: Path, account: Account) -> Path:
    """Make a folder of the caller through which only the account can pass, to reach its own folders.

    An existing one stays.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        open_passage(path, account)
    return path


def open_passage(path: Path, account: Account) -> None:
    """Let the account pass through a new folder of the caller's."""
    if account.uid != os.geteuid():
        os.chown(path, -1, account.gid)
        os.chmod(path, 0o710)
