"""Sends what TensorBoard shows of a job: its event files, while a model writes them as afterwards.

The model owns the workspace and may change it at any time: it is walked as the job's account, through
descriptors, no link is followed, and nothing in it is changed.
"""

import functools
import os
import stat
import time
from collections.abc import Iterator
from typing import IO, Any, Callable, Optional

from train_classifier.core.regular_file import open_regular
from train_classifier.worker.state.store import Job
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account
from train_classifier.worker.transfer import elsewhere
from train_classifier.worker.transfer.archive_files import Lines, damage_named, members, send_content

#: What the name of an event file has.
EVENTS = b"tfevents"
#: Bounds of a walk through a workspace.
MOST_ENTRIES, MOST_SECONDS, MOST_DEPTH = 200_000, 10.0, 40
#: Most files, which TensorBoard would hardly show.
MOST_FILES = 2000
O_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def send(job: Job, account: Account, known: dict[str, int], most: int) -> dict[str, Any]:
    """Print what is new of a job's event files, as `archive_files.send` does; return `files` and `left_out`.

    `known` has the bytes of each that the caller has: only what comes after is sent, with its `offset`. Files
    are sent up to `most` bytes together; the number of the others is `left_out`.
    """
    try:
        is_archive, source = False, os.open(job.workspace, O_FOLDER)
    except OSError:
        try:
            is_archive, source = True, open_regular(job.archive)
        except OSError:
            return {"files": 0, "left_out": 0}
    if os.geteuid() == 0:
        # The version that prepared the job may have been another one.
        program.open_to_all()
    # The part's own standard output is its answer.
    output = os.dup(1)
    request = {"source": source, "is_archive": is_archive, "output": output, "known": known, "most": most}
    try:
        return program.call(account, send_part, request, [source, output])
    finally:
        os.close(output)
        os.close(source)


@program.part
def send_part(request: dict[str, Any]) -> dict[str, Any]:
    """Write what is new of the event files to the descriptor `output`."""
    with open(os.dup(request["output"]), "wb") as output, damage_named():
        lines = Lines(output)
        answer = {"files": 0, "left_out": 0}
        left = request["most"]
        files = _in_archive if request["is_archive"] else _in_workspace
        for path, size, opened in files(request["source"], lines):
            offset = request["known"].get(path, 0)
            # A file that became shorter is another one.
            offset = offset if isinstance(offset, int) and 0 <= offset <= size else 0
            if size > left or answer["files"] >= MOST_FILES:
                answer["left_out"] += 1
                continue
            left -= size
            answer["files"] += 1
            if offset == size and path in request["known"]:
                continue
            file = opened()
            if file is None:
                continue
            with file:
                lines.write({"file": path, "offset": offset, "bytes": size - offset})
                _skip(file, offset)
                send_content(file, size - offset, lines)
    return answer


def _skip(file: IO[bytes], count: int) -> None:
    while count and (data := file.read(min(count, 1 << 18))):
        count -= len(data)


#: Path, size, and how the file is opened.
_Found = tuple[str, int, Callable[[], Optional[IO[bytes]]]]


def _in_archive(archive: int, lines: Lines) -> Iterator[_Found]:
    with open(os.dup(archive), "rb") as file:
        for tar, member in members(file, lines):
            name = os.fsencode(member.name)
            if member.isreg() and EVENTS in name.rpartition(b"/")[2]:
                # By the same name as while the job ran.
                path = name[len(elsewhere.FOLDER) :] if name.startswith(elsewhere.FOLDER) else name
                yield os.fsdecode(path), member.size, functools.partial(tar.extractfile, member)


def _in_workspace(workspace: int, lines: Lines) -> Iterator[_Found]:
    deadline = time.monotonic() + MOST_SECONDS
    entries = 0
    pending = [b""]
    while pending:
        path = pending.pop()
        try:
            folder = _open_below(workspace, path)
        except OSError:
            continue
        try:
            with os.scandir(folder) as scan:
                for entry in scan:
                    entries += 1
                    if entries > MOST_ENTRIES or time.monotonic() > deadline:
                        return
                    lines.tick()
                    name = os.fsencode(entry.name)
                    below = path + name
                    if entry.is_dir(follow_symlinks=False):
                        if name not in elsewhere.NO_RESULTS and below.count(b"/") < MOST_DEPTH:
                            pending.append(below + b"/")
                    elif EVENTS in name:
                        yield from _file_in(folder, name, below)
        except OSError:
            continue
        finally:
            os.close(folder)


def _file_in(folder: int, name: bytes, path: bytes) -> Iterator[_Found]:
    try:
        status = os.lstat(name, dir_fd=folder)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        return

    def opened() -> Optional[IO[bytes]]:
        try:
            return open(open_regular(name, folder), "rb")
        except OSError:
            return None

    yield os.fsdecode(path), status.st_size, opened


def _open_below(workspace: int, path: bytes) -> int:
    """Open a folder of the workspace, each part of the path without following a link."""
    folder = os.dup(workspace)
    for part in filter(None, path.split(b"/")):
        try:
            below = os.open(part, O_FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder
