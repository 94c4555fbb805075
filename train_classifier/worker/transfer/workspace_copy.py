"""Copies a repository's mirror into a job's workspace, in parallel with the first steps of the job.

`start` returns at once: the copy runs in its own process, as the job's account, and holds the mirror's lock
until it has ended. A step that needs the workspace waits for the copy first.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Optional

from train_classifier.core import locks
from train_classifier.core.errors import NotReady
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import make_folder, read_bytes
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account

#: The standard output of this script is the file `job.copy`, which is locked with flock while it runs. A
#: failed copy is removed before cp's message is written: the disk may be too full for the message.
SCRIPT = """if words=$(cp -a --reflink=auto -- "$1/." "$2" 2>&1); then echo copied
else find "$2" -mindepth 1 -delete; printf %s "$words"; fi"""
COPIED = b"copied\n"
POLL_S = 0.01
OUTPUT_BYTES = 1 << 20
#: Seconds that a killed copy may take to be gone.
STOP_S = 30.0


def start(job: Job, account: Account, tree: Path, lock: Optional[int]) -> None:
    """Start to copy the mirror's tree, whose lock the caller holds; `lock` becomes shared, for other copies.

    The caller holds the job's lock. The workspace of an earlier push of the job is removed first.
    """
    if os.path.lexists(job.copy):
        stop(job)
        file_trees.remove(None, job.copy)
        file_trees.remove(account, job.workspace)
        make_folder(job.workspace, 0o755, account)
    output = os.open(job.copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | locks.O_LOCK, 0o600)
    try:
        locks.take_lock(output)
        if lock is not None:
            locks.take_lock(lock, shared=True)
        process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "copy", str(tree), str(job.workspace)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            cwd="/",
            pass_fds=[] if lock is None else [lock],
            # The copy outlives a broken connection; `stop` kills its process group.
            start_new_session=True,
            **account.options(),
        )
    finally:
        os.close(output)
    job.write_status(copier=process.pid)
    # Marked as ended, so that Popen does not warn about a child that still runs.
    process.returncode = 0


def wait(job: Job, check: Callable[[], None]) -> None:
    """Wait until the workspace is complete; `check` is called meanwhile and may raise.

    Raises NotReady with cp's message when the copy failed.
    """
    while locks.is_held(job.copy):
        check()
        time.sleep(POLL_S)
    try:
        output = read_bytes(job.copy, OUTPUT_BYTES)
    except FileNotFoundError:
        output = b""
    if output != COPIED:
        tail = output.decode("utf-8", "replace").strip()[-2000:]
        raise NotReady(
            "the repository cannot be copied into the job's workspace",
            "check whether the disk of the host is full",
            tail or "the copy was killed",
        )


def stop(job: Job) -> None:
    """End a copy that is still going on. Raises NotReady when it does not end."""
    deadline = time.monotonic() + STOP_S
    while locks.is_held(job.copy):
        pid = job.status().get("copier")
        if isinstance(pid, int) and pid > 1:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise NotReady(f"the copy of the repository for job {job.id} cannot be stopped")
        time.sleep(POLL_S)
