"""The end of a job, whoever carries it out, in this order: pack, write the result, say `finished`, clear up.

Each step leaves what the next one needs, so whoever finds a job half ended goes on from there.
"""

import os
from pathlib import Path
from typing import Any, Optional

from train_classifier.errors import ExitCode, NothingDelivered, TrainClassifierError
from train_classifier.job import JobSpec
from train_classifier.worker import manifest, program, spare, tree
from train_classifier.worker.host import Account
from train_classifier.worker.store import Job, Store, read_json

#: What a job ended with: the packer's answer, and the error unless it ended well.
Ended = tuple[dict[str, Any], Optional[TrainClassifierError]]


def pack(job: Job, spec: JobSpec, account: Account, cause: Optional[TrainClassifierError]) -> Ended:
    """Pack the job's artefacts and papers; return the packer's answer and what ended the job.

    A job that never came to training has nothing to pack. `failed` in the answer: nothing could be packed.
    """
    if not job.stock.exists():
        return {}, cause
    status = job.status()
    result = manifest.result(job, spec, status, cause)
    try:
        answer = program.call(
            account,
            "pack",
            {
                "job": str(job.dir),
                "manifest": manifest.head(job, spec, status, result),
                "need_new": cause is None and not spec.allow_empty,
                "ending": _told(cause),
            },
        )
    except (TrainClassifierError, OSError) as error:
        detail = error.detail if isinstance(error, TrainClassifierError) else None
        failed = NothingDelivered(
            "the artefacts could not be packed",
            "is the disk of the host full? What the model wrote is kept: free some space there, then "
            f"train-classifier fetch {job.id}",
            f"{error}\n{detail or ''}".strip(),
        )
        return {"failed": True}, cause or failed
    return answer, _judged(answer, spec, cause)


def packed_before(job: Job, spec: JobSpec) -> Optional[Ended]:
    """Return what `pack` returned to a process that then died, None when there is nothing of the kind."""
    answer: Optional[dict[str, Any]] = read_json(job.packed)
    if not answer or not job.archive.exists():
        return None
    told = answer.get("ending")
    cause = None
    if told:
        cause = TrainClassifierError(told["reason"], told["hint"], told["detail"], ExitCode(told["code"]))
    return answer, _judged(answer, spec, cause)


def _told(cause: Optional[TrainClassifierError]) -> Optional[dict[str, Any]]:
    if cause is None:
        return None
    return {"code": int(cause.code), "reason": cause.reason, "hint": cause.hint, "detail": cause.detail}


def _judged(
    answer: dict[str, Any], spec: JobSpec, cause: Optional[TrainClassifierError]
) -> Optional[TrainClassifierError]:
    if cause is None and not answer["new"] and not spec.allow_empty:
        return NothingDelivered(
            "the model ended well, but wrote nothing new into artefacts/",
            "write results into artefacts/ below the working directory, or say --allow-empty",
        )
    return cause


def clear_up(job: Job, account: Account) -> None:
    """Leave in a job's folder what tells of it; its workspace becomes the repository's spare. The last step.

    What the model wrote and nobody could pack stays too, until it is packed. The caller holds the job's lock.
    """
    if (job.result() or {}).get("unpacked"):
        tree.remove(account, job.home, job.run)
        return
    tree.remove(account, job.packed)
    mirror = mirror_of(job)
    if mirror is None:
        # run/ goes last: while it is there, somebody still has to clear up.
        tree.remove(account, job.workspace, job.stamp, job.home, job.run)
        return
    spare.set_aside(job, mirror, account)
    spare.keep(job, mirror, account)


def mirror_of(job: Job) -> Optional[Path]:
    """Return the folder of the mirror that a job was pushed to, None when its specification is unreadable."""
    try:
        return Store.of(job.dir).mirror(job.spec().repository.key)
    except TrainClassifierError:
        return None


def conclude(
    job: Job,
    spec: Optional[JobSpec],
    cause: Optional[TrainClassifierError],
    answer: dict[str, Any],
    durations: dict[str, float],
) -> None:
    """Write result.json, then the state `finished`. The caller holds the job's lock.

    A result that is there already stands: its writer died before it could say `finished`.
    """
    job.drop_reserve()
    result = job.result()
    if result is None:
        result = _result(job, spec, cause, answer, durations)
        job.write_result(result)
    say_finished(job, result)


def say_finished(job: Job, result: dict[str, Any]) -> None:
    """Set the state `finished`, with what followers are told."""
    message = result["reason"] or "; ".join(result.get("remarks", ()))
    job.write_status(state="finished", phase=None, message=message, gpus=[])


def _result(
    job: Job,
    spec: Optional[JobSpec],
    cause: Optional[TrainClassifierError],
    answer: dict[str, Any],
    durations: dict[str, float],
) -> dict[str, Any]:
    result = manifest.result(job, spec, job.status(), cause)
    result["seconds"].update(durations)
    result.update(delivered(answer))
    if answer.get("failed"):
        result["unpacked"] = {"free_bytes": free_bytes(job.dir)}
    return result


def delivered(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the part of result.json that the packer's answer makes up."""
    remarks = []
    if answer.get("metrics_problem"):
        remarks.append(f"metrics left out: {answer['metrics_problem']}")
    if answer.get("left_out"):
        remarks.append(f"{answer['left_out']} entries of artefacts/ left out, see manifest.json")
    return {"archive": answer.get("archive"), "metrics": answer.get("metrics"), "remarks": remarks}


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder lies."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
