"""Slurm's words for states and reasons, as sentences for people, and what they mean for a job of ours."""

import re
import time
from typing import Optional

from train_classifier.core.errors import Cancelled, Lost, TimedOut, TrainClassifierError
from train_classifier.core.options import show_option

#: States in which Slurm will run the job, or runs it, or its processes are ending.
ALIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
    "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "RESV_DEL_HOLD", "SPECIAL_EXIT", "EXPEDITING",
}  # fmt: skip
REASONS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "other jobs come first",
    "Resources": "what it asks for is in use",
    "Dependency": "a job that it depends on has not ended",
    "DependencyNeverSatisfied": "a job that it depends on ended otherwise than it asks for: it never starts",
    "BeginTime": "its earliest start has not come",
    "JobHeldUser": "its user holds it (scontrol release)",
    "JobHeldAdmin": "the administrator holds it",
    "Licenses": "a licence that it asks for is in use",
    "Reservation": "its reservation has not begun",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionNodeLimit": "it asks for more nodes than its partition allows",
    "PartitionTimeLimit": "it asks for more time than its partition allows: it never starts",
    "BadConstraints": "no node has what it asks for",
    "InvalidAccount": "its account does not exist (any more)",
    "InvalidQOS": "its QOS does not exist (any more)",
    "Cleaning": "its last run on a node is being cleaned up",
    "Prolog": "the prolog runs on its node",
    "NodeDown": "a node that it needs is down",
}


def explain_reason(reason: str) -> str:
    """Return why a job waits, in words; Slurm's own word stays with it, since documentation knows that."""
    word = re.split(r"[ ,(]", reason, maxsplit=1)[0]
    sentence = REASONS.get(word)
    if sentence is None and word.startswith("QOS"):
        sentence = "a limit of its QOS is reached"
    if sentence is None and word.startswith("Assoc"):
        sentence = "a limit of its account is reached"
    if sentence is None and word.startswith("MaxGRES"):
        sentence = "a limit of GPUs is reached"
    if sentence is None and reason.startswith("Nodes required for job are DOWN"):
        sentence = "the nodes that it needs are down, drained or reserved"
        word = "ReqNodeNotAvail"
    if sentence is None:
        return f"Slurm says {reason}"
    return sentence if word == "None" else f"{sentence} ({word})"


def waiting_message(reason: str, position: Optional[int], start: Optional[float]) -> str:
    """Return the message of a job that waits in Slurm's queue."""
    place = f", place {position}" if position else ""
    expected = ""
    if start is not None and start > time.time():
        day = "" if start - time.time() < 12 * 3600 else "%Y-%m-%d "
        expected = f"; expected start: {time.strftime(day + '%H:%M', time.localtime(start))}"
    return f"waiting in Slurm's queue{place}: {explain_reason(reason)}{expected}"


def ending(state: Optional[str], reason: str, nodes: str) -> TrainClassifierError:
    """Return the error for a job that Slurm ended, and whose worker left no result.

    A `state` of None: Slurm does not know the job any more.
    """
    if state is None:
        return Lost("Slurm does not know the job any more, and its worker left no result", _again())
    place = f" ({nodes})" if nodes else ""
    again = _again()
    # %r of an ended job is often None or the reason for which it waited.
    why = f": {reason}" if reason not in ("", "None", "NonZeroExitCode") and reason not in REASONS else ""
    if state == "CANCELLED":
        return Cancelled(f"the job was cancelled in Slurm (scancel, its administrator, or Slurm itself){why}")
    if state in ("TIMEOUT", "DEADLINE"):
        return TimedOut(f"Slurm ended the job at its time limit{place}", again)
    sentences = {
        "NODE_FAIL": f"the node of the job failed{place}",
        "BOOT_FAIL": f"the node of the job did not boot{place}",
        "OUT_OF_MEMORY": f"Slurm killed the job's worker for lack of memory{place}",
        "PREEMPTED": f"Slurm ended the job for one of a higher priority{place}",
        "REVOKED": "Slurm gave the job to another cluster",
        "COMPLETED": f"the job's worker ended without a result{place}",
        "FAILED": f"the job's worker was killed or could not start on its node{place}",
    }
    return Lost(sentences.get(state, f"Slurm ended the job: {state}{place}") + why, again)


def _again() -> str:
    return f"submit it again; {show_option('resume')} continues from its checkpoints"
