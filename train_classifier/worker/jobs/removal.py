"""Removes jobs: those that were never submitted, and the folders of jobs that ended."""

import os
import time
from typing import Any

from train_classifier.core import locks
from train_classifier.worker.jobs.secrets import remove_secrets
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account, boot_id, uptime
from train_classifier.worker.transfer import workspace_copy

#: Seconds after which a job that was never submitted is removed.
ABANDONED_S = 15 * 60.0


def is_abandoned(job: Job, status: dict[str, Any]) -> bool:
    """Tell whether a job was prepared, never submitted, and not touched for a while."""
    if status["state"] not in ("prepared", "pushed"):
        return False
    if "updated_uptime" not in status:
        # The job has no status.json; `clean` calls this with a substitute.
        return time.time() - float(status.get("updated") or 0) > ABANDONED_S
    # After a reboot the controller gets the full time again.
    since = float(status["updated_uptime"]) if status.get("updated_boot") == boot_id() else 0.0
    return uptime() - since > ABANDONED_S


def remove(job: Job, account: Account, unless_submitted: bool = False) -> bool:
    """Remove a job's folder under its lock; False when it is held, or the job was submitted meanwhile."""
    if job.is_foreign:
        # No lock file is created in a folder of another account.
        if locks.is_held(job.lock) or unless_submitted:
            return False
        remove_folder(job, account)
        return True
    with locks.hold_now(job.lock) as is_locked:
        if not is_locked or (unless_submitted and job.status()["state"] not in ("prepared", "pushed")):
            return False
        remove_secrets(job)
        remove_folder(job, account)
        return True


def disk_usage(job: Job, account: Account) -> int:
    """Return the bytes that a job's folder takes on disk."""
    if job.is_foreign:
        return file_trees.disk_usage(account, job.dir)
    leaves = file_trees.disk_usage(account, job.workspace, job.checkpoints, job.home)
    with os.scandir(job.dir) as entries:
        return leaves + sum(
            entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries if entry.is_file()
        )


def remove_folder(job: Job, account: Account) -> None:
    """Remove a job's folder, whichever account owns it; the caller ensures that it is not in use."""
    if job.is_foreign:
        file_trees.remove(account, job.dir)
        return
    workspace_copy.stop(job)
    file_trees.remove(account, job.workspace, job.checkpoints, job.home)
    file_trees.remove(None, job.dir)
