"""The stamp of a workspace, by which its files are recognised after a model has had it; see `spare`.

It is written when the workspace is made, out of the container's reach, and holds of each file the inode, the
ctime and the size here and in the mirror. No user can set a ctime: a file that was written, chmodded, linked
or replaced, in either place, shows another one. So a stamp never says too much, at worst nothing. All of this
runs as the job's user.
"""

import json
import os
import stat
import subprocess
from typing import Any, Callable, Optional

from train_classifier.errors import NotReady
from train_classifier.worker.host import boot_id

#: By path: inode, ctime (ns) and size of the workspace's file, then those of the mirror's. None: a folder.
Entries = dict[str, Optional[list[int]]]


def take_stamp(request: dict[str, Any]) -> dict[str, Any]:
    """Write the stamp of a workspace that was just copied. The request: `tree`, `workspace`, `new`."""
    entries: Entries = {}
    for name in os.listdir(request["tree"]):
        _record(request["tree"], request["workspace"], name, entries)
    _write(request["new"], entries)
    return {}


def weed(request: dict[str, Any]) -> dict[str, Any]:
    """Move out of a workspace what is not as its stamp says. The request: `workspace`, `old`, `weeds`."""
    weeded(request["workspace"], request["old"], request["weeds"])
    return {}


def weeded(workspace: str, stamp: str, weeds: str) -> Entries:
    """Do `weed`, and return what the stamp says of all that is left."""
    return _weed(workspace, _read(stamp), _Weeds(weeds))


def put_right(request: dict[str, Any], right: Optional[Entries] = None) -> dict[str, Any]:
    """Make a used workspace equal to the mirror's tree, and write its new stamp.

    The request: `tree`, `workspace`, `old` and `new` (its stamps), `weeds`, `lock`; `right` is what `weeded`
    returned of it, if that was done. Raises whatever goes wrong: the workspace is of no use then.
    """
    source, workspace, weeds = request["tree"], request["workspace"], _Weeds(request["weeds"])
    if right is None:
        right = _weed(workspace, _read(request["old"]), weeds)
    if _attributes(workspace) != _attributes(source):
        raise NotReady("the workspace has other attributes than the mirror")
    entries: Entries = {}
    wrong: list[str] = []
    stack, folders = [""], [""]
    while stack:
        below = stack.pop()
        with os.scandir(os.path.join(source, below)) as found:
            for entry in found:
                path = below + entry.name
                here = os.path.join(workspace, path)
                known = path in right
                mine = right.pop(path, None)
                if entry.is_dir(follow_symlinks=False):
                    if known and mine is None and _attributes(here) == _attributes(entry.path):
                        entries[path] = None
                        folders.append(path)
                        stack.append(path + "/")
                        continue
                elif mine is not None and _is(entry.stat(follow_symlinks=False), *mine[3:]):
                    entries[path] = mine
                    continue
                if known:
                    weeds.take(here)
                wrong.append(path)
    # What is left over the repository has no more; some of it went with its folder.
    for path in right:
        if os.path.lexists(os.path.join(workspace, path)):
            weeds.take(os.path.join(workspace, path))
    if wrong:
        _copy(source, workspace, wrong, request["lock"])
        for path in wrong:
            _record(source, workspace, path, entries)
    for path in folders:
        wanted, have = os.lstat(os.path.join(source, path)), os.lstat(os.path.join(workspace, path))
        if wanted.st_mode != have.st_mode:
            os.chmod(os.path.join(workspace, path), stat.S_IMODE(wanted.st_mode))
        if wanted.st_mtime_ns != have.st_mtime_ns:
            os.utime(os.path.join(workspace, path), ns=(wanted.st_atime_ns, wanted.st_mtime_ns))
    if wrong or right:
        _write(request["new"], entries)
    else:
        os.rename(request["old"], request["new"])
    return {}


PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "put_right": put_right,
    "take_stamp": take_stamp,
    "weed": weed,
}


class _Weeds:
    """Where what does not belong into a workspace is moved, whatever its size; others remove it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.count = 0

    def take(self, path: str) -> None:
        if not self.count:
            os.mkdir(self.folder, 0o700)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            # A folder that may not be written cannot be moved.
            os.chmod(path, 0o700)
        os.rename(path, f"{self.folder}/{self.count}")
        self.count += 1


def _weed(workspace: str, recorded: Entries, weeds: _Weeds) -> Entries:
    """Move out everything that is not as recorded; return the records of what is left."""
    right: Entries = {}
    stack = [""]
    while stack:
        below = stack.pop()
        folder = os.path.join(workspace, below)
        mode = os.lstat(folder).st_mode
        if mode & 0o700 != 0o700:
            os.chmod(folder, stat.S_IMODE(mode) | 0o700)
        wrong = []
        with os.scandir(folder) as found:
            for entry in found:
                path = below + entry.name
                mine = recorded.get(path, [])
                if mine is None and entry.is_dir(follow_symlinks=False):
                    right[path] = None
                    stack.append(path + "/")
                elif mine and _is_untouched(entry.stat(follow_symlinks=False), mine):
                    right[path] = mine
                else:
                    wrong.append(entry.path)
        for each in wrong:
            weeds.take(each)
    return right


def _is_untouched(found: os.stat_result, mine: list[int]) -> bool:
    # Some file systems count ctime in whole seconds: within one, a change would not show.
    return found.st_nlink == 1 and found.st_ctime_ns % 10**9 != 0 and _is(found, *mine[:3])


def _is(found: os.stat_result, inode: int, ctime: int, size: int) -> bool:
    return found.st_ino == inode and found.st_ctime_ns == ctime and found.st_size == size


def _identity(found: os.stat_result) -> list[int]:
    return [found.st_ino, found.st_ctime_ns, found.st_size]


def _attributes(folder: str) -> dict[str, bytes]:
    """Return a folder's extended attributes; access lists among them pass on to what is made in it."""
    try:
        names = os.listxattr(folder, follow_symlinks=False)
        return {name: os.getxattr(folder, name, follow_symlinks=False) for name in names}
    except OSError:
        return {}


def _record(source: str, workspace: str, path: str, entries: Entries) -> None:
    """Record a path and all below it, which were just copied."""
    stack = [path]
    while stack:
        path = stack.pop()
        theirs = os.lstat(os.path.join(source, path))
        if stat.S_ISDIR(theirs.st_mode):
            entries[path] = None
            stack += [f"{path}/{name}" for name in os.listdir(os.path.join(source, path))]
        else:
            entries[path] = [*_identity(os.lstat(os.path.join(workspace, path))), *_identity(theirs)]


def _copy(source: str, workspace: str, paths: list[str], lock: int) -> None:
    done = subprocess.run(
        ["xargs", "-0", "cp", "-a", "--reflink=auto", "--parents", "-t", workspace, "--"],
        input=b"".join(os.fsencode(path) + b"\0" for path in paths),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=source,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        pass_fds=[lock],
        check=False,
    )
    if done.returncode:
        raise NotReady("what has changed cannot be copied")


def _read(path: str) -> Entries:
    """Return the entries of a stamp. Raises ValueError for one that is torn, or of another boot.

    A machine that goes down may leave files whose content was never written out, whatever their ctime.
    """
    with open(path, "rb") as file:
        data = json.load(file)
    if data["boot"] != boot_id():
        raise ValueError(f"{path} is from before a reboot")
    entries: Entries = data["entries"]
    return entries


def _write(path: str, entries: Entries) -> None:
    with open(path, "w", encoding="ascii") as file:
        # Not json.dump, which is three times as slow.
        file.write(json.dumps({"boot": boot_id(), "entries": entries}, separators=(",", ":")))
