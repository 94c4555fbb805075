"""Trees of files: a repository's mirror, a job's workspace and checkpoints, and their removal.

All of it runs as the job's account, so that content from a model or a push gets only that account's rights.
"""

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Optional, Union

from train_classifier.core.errors import BadInput, NotReady
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account

#: Flags for a handle: it needs no rights to the file, which can be opened or changed by its name in /proc.
O_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: Seconds that `restore_owner_rights` may look for folders that a model has closed.
RESTORE_S = 20.0
#: Seconds between two checks whether a program must end early.
CHECK_S = 0.1


def parse_list(data: bytes) -> tuple[set[bytes], set[bytes]]:
    """Return the files and the folders (with all parents) of a NUL-separated list; folders end in `/`.

    Raises BadInput for a name that is absolute, climbs (`..`), or has an empty part.
    """
    files: set[bytes] = set()
    folders: set[bytes] = set()
    for name in filter(None, data.split(b"\0")):
        path = name.rstrip(b"/")
        if path in (b".", b""):
            if name.startswith(b"/"):
                raise BadInput(f"file name {os.fsdecode(name)!r} in the list is absolute")
            continue
        if name.startswith(b"/") or any(part in (b"", b".", b"..") for part in path.split(b"/")):
            raise BadInput(f"file name {os.fsdecode(name)!r} in the list is absolute or climbs")
        (folders if name.endswith(b"/") else files).add(path)
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            if path in folders:
                break
            folders.add(path)
    return files, folders


def remove_unlisted(tree: Path, files: set[bytes], folders: set[bytes]) -> None:
    """Remove from the mirror what is not listed or has the wrong type (a file instead of a folder, say)."""
    root = os.fsencode(tree)
    stack = [b""]
    while stack:
        folder = stack.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in list(entries):
                path = os.path.join(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if path in folders:
                        stack.append(path)
                    else:
                        shutil.rmtree(entry.path)
                elif path not in files or path in folders:
                    os.unlink(entry.path)


def _run(
    account: Optional[Account],
    *command: str,
    stderr: int = subprocess.STDOUT,
    check: Callable[[], None] = lambda: None,
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program of the host as the account (None: the caller); it ends when `check` raises."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        cwd="/",
        **(account.options() if account is not None else {}),
    )
    with process:
        while True:
            try:
                output, _ = process.communicate(timeout=CHECK_S)
                return subprocess.CompletedProcess(command, process.returncode, output)
            except subprocess.TimeoutExpired:
                try:
                    check()
                except BaseException:
                    process.kill()
                    raise


def copy(
    account: Optional[Account], source: Path, target: Path, check: Callable[[], None] = lambda: None
) -> None:
    """Copy a folder's content with all attributes but without sharing inodes, as the account.

    None: as the caller. `check` is called repeatedly and may raise. Raises NotReady with cp's message.
    """
    process = _run(account, "cp", "-a", "--reflink=auto", "--", f"{source}/.", str(target), check=check)
    if process.returncode:
        tail = process.stdout.decode("utf-8", "replace").strip()[-2000:]
        raise NotReady(f"{source} cannot be copied", "check whether the disk of the host is full", tail)


def remove(account: Optional[Account], *trees: Path) -> None:
    """Remove trees as the account (None: the caller), whatever their modes and depth. Raises NotReady.

    The account empties a tree that it may not remove from the caller's folder; the caller removes that.
    """
    present = [str(tree) for tree in trees if os.path.lexists(tree)]
    # Files and empty folders need no process.
    if _remove_emptied(present):
        return
    process = _run(account, "rm", "-rf", "--", *present)
    if process.returncode and not _remove_emptied(present):
        # Some folders have no write permission, which only the owner can restore; chmod -R follows no links.
        _run(account, "chmod", "-R", "u+rwX", "--", *present)
        process = _run(account, "rm", "-rf", "--", *present)
    if process.returncode and not _remove_emptied(present):
        tail = process.stdout.decode("utf-8", "replace").strip()[-2000:]
        raise NotReady(f"{', '.join(present)} cannot be removed", detail=tail)


def _remove_emptied(trees: list[str]) -> bool:
    """Tell whether all are gone, after removing empty folders and files that the account must not remove."""
    for tree in trees:
        try:
            os.rmdir(tree)
        except NotADirectoryError:
            os.unlink(tree)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def disk_usage(account: Optional[Account], *trees: Path) -> int:
    """Return the bytes in folders, each hard link once, as the account (None: the caller) sees them.

    Unreadable parts count as nothing; du follows no link.
    """
    present = [str(tree) for tree in trees if os.path.lexists(tree)]
    if not present:
        return 0
    command = ("du", "-s", "-c", "--block-size=1", "--", *present)
    process = _run(account, *command, stderr=subprocess.DEVNULL)
    total = process.stdout.rpartition(b"\ttotal")[0].rpartition(b"\n")[2]
    return max(int(total) - sum(map(_own_bytes, present)), 0) if total.isdigit() else 0


def _own_bytes(folder: str) -> int:
    try:
        return os.lstat(folder).st_blocks * 512
    except FileNotFoundError:
        return 0


def open_folder(name: Union[str, bytes], folder: Optional[int] = None) -> int:
    """Open a folder of the caller, following no link; missing rights of the owner are restored.

    Raises OSError when it is not a folder.
    """
    return _open_handle(os.open(name, O_HANDLE | os.O_DIRECTORY, dir_fd=folder))


def give_rights(handle: int, rights: int) -> None:
    """Give the owner rights to the file of an O_HANDLE, even if its name now belongs to another file."""
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if mode & rights != rights:
        os.chmod(f"/proc/self/fd/{handle}", mode | rights)


def give_rights_to_file(name: Union[str, bytes], folder: int, rights: int) -> None:
    """Give the owner rights to a regular file in an open folder, and to nothing else. Raises OSError."""
    handle = os.open(name, O_HANDLE, dir_fd=folder)
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            give_rights(handle, rights)
    finally:
        os.close(handle)


def _open_handle(handle: int) -> int:
    """Open the folder of a handle, which is closed. Raises OSError."""
    try:
        give_rights(handle, 0o700)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _open_below(top: int, path: bytes) -> int:
    """Return a handle of a folder below an open one; no part of the path is a link. Raises OSError."""
    handle = os.dup(top)
    for part in path.split(b"/"):
        try:
            subfolder = os.open(part, O_HANDLE | os.O_DIRECTORY, dir_fd=handle)
        finally:
            os.close(handle)
        handle = subfolder
    return handle


def restore_owner_rights(folder: Path) -> None:
    """Restore the owner's rights in a folder that a model may have closed, and in its content.

    It stops after RESTORE_S seconds in a deep tree; files of another owner stay as they are.
    """
    deadline = time.monotonic() + RESTORE_S
    top = open_folder(str(folder))
    # Paths relative to the top: a descriptor for each level would limit the depth.
    stack = [b"."]
    try:
        while stack and time.monotonic() < deadline:
            name = stack.pop()
            try:
                descriptor = _open_handle(_open_below(top, name))
            except OSError:
                continue
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            stack.append(name + b"/" + os.fsencode(entry.name))
                        elif entry.is_file(follow_symlinks=False):
                            give_rights_to_file(entry.name, descriptor, 0o600)
            except OSError:
                continue
            finally:
                os.close(descriptor)
    finally:
        os.close(top)


@program.part
def restore_owner_rights_part(request: dict[str, Any]) -> dict[str, Any]:
    """Do `restore_owner_rights` for each of `folders`."""
    for folder in request["folders"]:
        restore_owner_rights(Path(folder))
    return {}


@program.part
def remove_unlisted_part(request: dict[str, Any]) -> dict[str, Any]:
    """Do `remove_unlisted`. The request: `tree`, `names` (descriptor of the list)."""
    with open(os.dup(request["names"]), "rb") as names:
        names.seek(0)
        remove_unlisted(Path(request["tree"]), *parse_list(names.read()))
    return {}
