"""The spare: the workspace of a job that has ended, kept beside its mirror and put right for the next job.

Making thousands of files and deleting them again is what a push would otherwise cost. Whatever is odd about a
spare ends in a full copy; see `stamp` for how it is put right.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from train_classifier.errors import TrainClassifierError
from train_classifier.job import JOB_ID
from train_classifier.worker import locks, program, stamp, tree
from train_classifier.worker.host import Account
from train_classifier.worker.store import Job, Store, make_folder

#: Seconds that a worker, its result written, waits for the end of a push to leave its workspace to the next.
PATIENCE_S = 60.0


class Weeding(threading.Thread):
    """Weeds the spare while rsync is at work, which mostly waits; for the caller's own account."""

    def __init__(self, mirror: Path, job: Job) -> None:
        super().__init__(name="weeding")
        self.arguments = str(mirror / "spare"), str(mirror / "spare.stamp"), str(job.dir / "weeds")
        self.right: Optional[stamp.Entries] = None

    def run(self) -> None:
        # Without a spare there is nothing to do, and of one that is odd `lay_out` will make an end.
        with contextlib.suppress(Exception):
            self.right = stamp.weeded(*self.arguments)


@contextlib.contextmanager
def weeding(account: Account, mirror: Path, job: Job) -> Iterator[Optional[Weeding]]:
    """Weed the spare meanwhile, under the mirror's lock; what is weeded by halves is as good as before."""
    tree.remove(account, job.dir / "weeds")
    if account.options():
        yield None
        return
    thread = Weeding(mirror, job)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def lay_out(account: Account, mirror: Path, job: Job, lock: int, ahead: Optional[Weeding]) -> None:
    """Make the job's workspace from the mirror, whose lock the caller holds. Raises NotReady.

    The lock goes with whoever copies: should we be killed, nobody else begins before they have ended.
    """
    weeds = job.dir / "weeds"
    request = {
        "tree": str(mirror / "tree"), "workspace": str(job.workspace), "old": str(mirror / "spare.stamp"),
        "new": str(job.stamp), "weeds": str(weeds), "lock": lock,
    }  # fmt: skip
    tree.remove(account, job.workspace, job.stamp, weeds)
    if os.path.lexists(mirror / "spare"):
        try:
            # First out of everybody's reach: should we be killed, what is half put right stays with this job.
            os.rename(mirror / "spare", job.workspace)
            if ahead is not None and ahead.right is not None:
                stamp.put_right(request, ahead.right)
            else:
                program.call(account, "put_right", request, [lock])
            tree.remove(account, weeds)
            return
        except Exception:
            # Whatever it was, a full copy does without the spare; a disk that is full says so again.
            tree.remove(account, mirror / "spare", job.workspace, job.stamp, weeds)
    make_folder(job.workspace, 0o755, account)
    try:
        tree.copy(account, mirror / "tree", job.workspace, lock)
        program.call(account, "take_stamp", request, [lock])
    except BaseException:
        # Half a workspace is of no use, and may be what fills the disk.
        tree.remove(account, job.workspace, job.stamp)
        raise


def set_aside(job: Job, mirror: Path, account: Account) -> None:
    """Empty a job's folder of what only a running job needs, at once whatever its size: beside the mirror.

    The job's container is gone by now.
    """
    for path in (job.workspace, job.stamp, job.home, job.run):
        try:
            # Also as root: only the last parts of the paths are the job's user's, and links are not followed.
            os.rename(path, mirror / f"{job.id}.{path.name}")
        except OSError:
            tree.remove(account, path)


def keep(job: Job, mirror: Path, account: Account) -> None:
    """Make what `set_aside` took the mirror's spare, less what the model made; the job's lock is held."""
    mine, its_stamp = mirror / f"{job.id}.workspace", mirror / f"{job.id}.stamp"
    # A mirror that was cleaned meanwhile or is pushed to for long, a folder that cannot be read: then nothing
    # is kept, and nothing of the job depends on it.
    with contextlib.suppress(Exception), locks.hold(mirror / "lock", timeout=PATIENCE_S):
        if not (mine.is_dir() and its_stamp.is_file()):
            return
        request = {"workspace": str(mine), "old": str(its_stamp), "weeds": str(mirror / f"{job.id}.weeds")}
        program.call(account, "weed", request)
        with contextlib.suppress(FileNotFoundError):
            os.rename(mirror / "spare", mirror / f"{job.id}.older")
        # Killed between the two: a stamp that does not belong recognises no file.
        os.rename(mine, mirror / "spare")
        os.rename(its_stamp, mirror / "spare.stamp")


def clear(store: Store, mirror: Path, account: Account) -> None:
    """Remove what jobs that are over left beside the mirror; the next does what could not be done."""
    with contextlib.suppress(FileNotFoundError, TrainClassifierError):
        owners = {name: name.partition(".")[0] for name in os.listdir(mirror)}
        over = [mirror / name for name, job in owners.items() if JOB_ID.match(job) and _is_over(store, job)]
        tree.remove(account, *over)


def _is_over(store: Store, job: str) -> bool:
    folder = store.jobs / job
    if not folder.exists():
        return True
    # With its result written, its worker may still be about to keep its workspace.
    return (folder / "result.json").exists() and not locks.is_held(folder / "lock")


def discard(mirror: Path, account: Account) -> bool:
    """Remove a mirror's spare; False during a push."""
    with locks.hold_now(mirror / "lock") as mine:
        if mine:
            tree.remove(account, mirror / "spare", mirror / "spare.stamp")
        return mine
