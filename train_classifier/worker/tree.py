"""Trees of files: a repository's mirror, a job's workspace made from it, and their removal.

All of it runs as the job's user: whatever a model or a push left there can do no more than that user.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_classifier.errors import BadInput, NotReady
from train_classifier.worker.host import Account


def parse_list(data: bytes) -> tuple[set[bytes], set[bytes]]:
    """Return the files and the folders (with all parents) of a NUL-separated list; folders end in `/`.

    Raises BadInput for a name that is absolute, climbs, or is empty.
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


def tidy(tree: Path, files: set[bytes], folders: set[bytes]) -> None:
    """Remove from the mirror what is not listed, or is a file where a folder is wanted and the like."""
    root = os.fsencode(tree)
    stack = [b""]
    while stack:
        below = stack.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in list(entries):
                path = below + b"/" + entry.name if below else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if path in folders:
                        stack.append(path)
                    else:
                        shutil.rmtree(entry.path)
                elif path not in files or path in folders:
                    os.unlink(entry.path)


def copy(account: Account, source: Path, target: Path, lock: int = -1) -> None:
    """Copy a tree with everything but sharing no inode, as the account, which holds on to `lock` meanwhile.

    Raises NotReady with cp's words.
    """
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", "--", f"{source}/.", str(target)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=account.environment(),
        pass_fds=[lock] if lock >= 0 else [],
        check=False,
        **account.options(),
    )
    if done.returncode:
        tail = done.stdout.decode("utf-8", "replace").strip()[-2000:]
        raise NotReady(f"{source} cannot be copied", "is the disk of the host full?", tail)


def remove(account: Account, *trees: Path) -> None:
    """Remove trees as the account, whatever their modes and depth. Raises NotReady with rm's words."""
    present = [str(tree) for tree in trees if os.path.lexists(tree)]
    if not present:
        return
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "env": account.environment(),
        "cwd": "/",
        "check": False,
        **account.options(),
    }
    done = subprocess.run(["rm", "-rf", "--", *present], **options)
    if done.returncode and not _gone(present):
        # Folders without write permission, which only their owner can open again; chmod -R follows no links.
        subprocess.run(["chmod", "-R", "u+rwX", "--", *present], **options)
        done = subprocess.run(["rm", "-rf", "--", *present], **options)
    if done.returncode and not _gone(present):
        tail = done.stdout.decode("utf-8", "replace").strip()[-2000:]
        raise NotReady(f"{', '.join(present)} cannot be removed", detail=tail)


def _gone(trees: list[str]) -> bool:
    """Tell whether all are gone; what root keeps for the account in a folder of its own is empty by now."""
    for tree in trees:
        try:
            os.rmdir(tree)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def disk_usage(tree: Path) -> int:
    """Return the bytes that a tree takes on disk, each hard link once; unreadable parts count as nothing."""
    return sum(dict(files(tree)).values())


def files(tree: Path) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield (device, inode) and bytes on disk of everything in a tree, a file as often as it is linked."""
    for folder, folders, names in os.walk(tree, onerror=None):
        for name in [*folders, *names]:
            try:
                found = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            yield (found.st_dev, found.st_ino), found.st_blocks * 512


def tidy_part(request: dict[str, Any]) -> dict[str, Any]:
    """Do `tidy` for a child of this program. The request: `tree`, `names`."""
    tidy(Path(request["tree"]), *parse_list(Path(request["names"]).read_bytes()))
    return {}
