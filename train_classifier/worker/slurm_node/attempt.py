"""Which launch of a job runs it: Slurm may launch one attempt twice.

A controller that is killed within seconds of a start has forgotten it. When it is back it ends what runs on
the node, and launches the job again with the same count of restarts.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core.errors import NotReady
from train_classifier.worker.slurm import allocation, shared_folder
from train_classifier.worker.slurm_node import node_group
from train_classifier.worker.state.files import read_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system import launcher
from train_classifier.worker.system.host import boot_id

#: Seconds without a sign of life after which a launch on another node counts as ended; it gives one every ten
#: seconds from the moment on when its files are there.
SILENCE_S = 120.0
LOOK_S = 1.0


def take(shared: Job, variables: Mapping[str, str], is_asked_to_end: Callable[[], bool]) -> bool:
    """Wait until no other launch of this attempt runs the job; return False when nothing is left to run.

    A file that is made with O_EXCL decides. A requeue by Slurm is another attempt, with another count.
    """
    name = f"attempt-{node_group.attempt_name(variables)}"
    launch = 0
    while True:
        path = shared.dir / (f"{name}.{launch}" if launch else name)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            if not _wait_for_end(shared, path, variables, is_asked_to_end):
                return False
            launch += 1
            continue
        try:
            os.write(descriptor, json.dumps(_own(variables)).encode())
        finally:
            os.close(descriptor)
        return True


def _own(variables: Mapping[str, str]) -> dict[str, Any]:
    pid = os.getpid()
    return {
        "node": allocation.node_name(variables),
        "boot_id": boot_id(),
        "pid": pid,
        "pid_start": launcher.start_time(pid),
    }


def _wait_for_end(
    shared: Job, path: Path, variables: Mapping[str, str], is_asked_to_end: Callable[[], bool]
) -> bool:
    """Wait until the launch that made this file has ended; return False when the job has ended, or shall."""
    own = _own(variables)
    sign, since = _sign_of_life(shared), time.monotonic()
    while not is_asked_to_end():
        # Opening the folder makes a network file system look at it again.
        os.listdir(shared.dir)
        if shared.result() is not None or shared.status()["state"] == "finished":
            return False
        other = _read(path)
        if all(other.get(key) == own[key] for key in ("node", "boot_id")):
            if launcher.start_time(int(other.get("pid") or 0)) != other.get("pid_start"):
                return True
        elif (new := _sign_of_life(shared)) != sign:
            sign, since = new, time.monotonic()
        elif time.monotonic() - since > SILENCE_S:
            return True
        time.sleep(LOOK_S)
    return False


def _sign_of_life(shared: Job) -> Optional[float]:
    return _read(shared.dir / shared_folder.ALIVE_FILE).get("time")


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file that may be incomplete."""
    try:
        content = read_json(path)
    except NotReady:
        return {}
    return content if isinstance(content, dict) else {}
