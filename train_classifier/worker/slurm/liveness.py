"""Whether a job of Slurm still runs or will run: Slurm says so, never a lock in the shared folder."""

import dataclasses
import os
import time
from typing import Any, Optional

from train_classifier.core import locks
from train_classifier.core.errors import BadInput, NotReady, TrainClassifierError
from train_classifier.worker.slurm import commands, shared_folder, slurm_words
from train_classifier.worker.slurm.commands import QueueLine, QueueLook, SlurmSilent
from train_classifier.worker.state.files import read_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Host

#: Seconds that a command waits for Slurm's answer where nobody follows a log.
PATIENCE_S = 15.0
#: Seconds after its last sign of life for which a worker counts as alive although Slurm's job is gone: a
#: result may not be visible here yet.
SIGN_OF_LIFE_S = 40.0

_looks: dict[int, QueueLook] = {}


@dataclasses.dataclass(frozen=True)
class Liveness:
    """What Slurm says about a job that has no result."""

    #: The error that ended the job; None: it runs, waits, or nothing is known.
    error: Optional[TrainClassifierError] = None
    #: The job as squeue lists it.
    line: Optional[QueueLine] = None
    #: Slurm does not answer.
    silence: Optional[SlurmSilent] = None


def look(job: Job, host: Host, status: dict[str, Any], wait_s: float = PATIENCE_S) -> Liveness:
    """Ask Slurm about a job in state `submitted` or `running`, and wait up to `wait_s` for the answer."""
    queue = _looks.setdefault(os.geteuid(), QueueLook(host.caller()))
    try:
        queue.refresh(wait_s)
    except NotReady as problem:
        return Liveness(silence=SlurmSilent(str(problem)))
    if queue.silence is not None:
        return Liveness(silence=queue.silence)
    submitted = float(status.get("submitted") or 0)
    if queue.asked_at is None or queue.asked_at <= submitted or locks.is_held(job.lock):
        # No answer yet, or one from before the submission, or the submission is going on.
        return Liveness()
    line = queue.jobs.get(job.id)
    if line is not None and line.state in slurm_words.ALIVE:
        return Liveness(line=line)
    try:
        state = line.state if line else _state_elsewhere(job, host)
    except SlurmSilent as silence:
        return Liveness(silence=silence)
    if state in slurm_words.ALIVE:
        return Liveness()
    if state in (None, "COMPLETED") and has_sign_of_life(job):
        return Liveness(line=line)
    reason, nodes = (line.reason, line.nodes) if line else ("", "")
    return Liveness(error=slurm_words.ending(state, reason, nodes), line=line)


def _state_elsewhere(job: Job, host: Host) -> Optional[str]:
    """Return the state of a job that is not in the queue, None when Slurm does not know the job."""
    number = shared_folder.number(job)
    return commands.recorded_state(host.caller(), number, job.id) if number else None


def has_sign_of_life(job: Job) -> bool:
    """Tell whether the worker on the node wrote something lately; munge needs clocks that agree."""
    # Opening the folder makes a network file system look at it again.
    os.listdir(job.dir)
    written = (read_json(job.dir / shared_folder.ALIVE_FILE) or {}).get("time")
    return isinstance(written, (int, float)) and abs(time.time() - written) < SIGN_OF_LIFE_S


def with_message(job: Job, host: Host, status: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """Return the status with what Slurm says about a job that waits; the file is not changed.

    The version gets a fraction, so that followers notice another message.
    """
    number = shared_folder.number(job) or status.get("slurm_job")
    status = {**status, "slurm_job": number}
    if status["state"] not in ("submitted", "running"):
        return status
    answer = look(job, host, status, wait_s)
    message = None
    if answer.silence is not None:
        message = answer.silence.reason
        if status["state"] == "running" and status.get("message"):
            message = f"{status['message']} ({message})"
    elif answer.line is not None and answer.line.state == "PENDING":
        place = _looks[os.geteuid()].places.get(answer.line.number)
        message = slurm_words.waiting_message(answer.line.reason, place, answer.line.start)
    elif answer.line is not None and status["state"] == "submitted":
        message = f"starting on {answer.line.nodes}" if answer.line.nodes else "starting"
    if message is None:
        return status
    fraction = (sum(message.encode()) % 997 + 1) / 1000
    return {**status, "message": message, "version": int(status["version"]) + fraction}


def cancel_waiting(job: Job, host: Host, status: dict[str, Any]) -> bool:
    """Take a job that no node has begun out of Slurm's queue; True when it was waiting there."""
    answer = look(job, host, status)
    if answer.line is None or answer.line.state != "PENDING":
        return False
    account = host.caller()
    command = ["scancel", "--state=PENDING", answer.line.number]
    try:
        commands.run(account, command)
        after = commands.parse_queue(commands.run(account, commands.queue_command(account))).get(job.id)
    except (BadInput, NotReady):
        return False
    # It may have started at this moment: then the stop file ends it.
    return after is None or after.state == "CANCELLED"


def signal_worker(job: Job, host: Host) -> None:
    """Have Slurm end a running job in order. Raises NotReady, BadInput."""
    number = shared_folder.number(job) or str(job.status().get("slurm_job"))
    commands.run(host.caller(), ["scancel", "--signal=TERM", "--batch", number])
