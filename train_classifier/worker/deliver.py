"""The end of a job, whoever carries it out: pack, write the result."""

from typing import Any, Optional

from train_classifier.errors import NothingDelivered, TrainClassifierError
from train_classifier.job import JobSpec
from train_classifier.worker import manifest, program
from train_classifier.worker.host import Account
from train_classifier.worker.store import Job


def pack(
    job: Job, spec: JobSpec, account: Account, cause: Optional[TrainClassifierError]
) -> tuple[dict[str, Any], Optional[TrainClassifierError]]:
    """Pack the job's artefacts and papers; return the packer's answer and what ended the job.

    A job that never came to training has nothing to pack.
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
            },
        )
    except TrainClassifierError as error:
        failed = NothingDelivered(
            "the artefacts could not be packed",
            "is the disk of the host full? what the model wrote is kept: train-classifier clean removes it",
            f"{error.reason}\n{error.detail or ''}".strip(),
        )
        return {"failed": True}, cause or failed
    if cause is None and not answer["new"] and not spec.allow_empty:
        cause = NothingDelivered(
            "the model ended well, but wrote nothing new into artefacts/",
            "write results into artefacts/ below the working directory, or say --allow-empty",
        )
    return answer, cause


def conclude(
    job: Job,
    spec: Optional[JobSpec],
    cause: Optional[TrainClassifierError],
    answer: dict[str, Any],
    durations: dict[str, float],
) -> None:
    """Write result.json, then the state `finished`. The caller holds the job's lock."""
    status = job.status()
    result = manifest.result(job, spec, status, cause)
    result["seconds"].update(durations)
    result["archive"] = answer.get("archive")
    result["metrics"] = answer.get("metrics")
    remarks = []
    if answer.get("metrics_problem"):
        remarks.append(f"metrics left out: {answer['metrics_problem']}")
    if answer.get("left_out"):
        remarks.append(f"{answer['left_out']} entries of artefacts/ left out, see manifest.json")
    result["remarks"] = remarks
    job.write_result(result)
    message = result["reason"] or "; ".join(remarks)
    job.write_status(state="finished", phase=None, message=message, gpus=[])
