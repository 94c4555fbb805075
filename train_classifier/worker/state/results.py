"""The records of a job: the content of result.json and manifest.json."""

import time
from typing import Any, Optional

from train_classifier.core.errors import OUTCOMES, ExitCode, TrainClassifierError
from train_classifier.core.job import SCHEMA, JobSpec
from train_classifier.core.text import short
from train_classifier.worker.state.files import read_json, write_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host_facts import host_facts

#: Most characters of a result's reason and hint, and of its detail, whose end counts.
MOST_CHARACTERS = 10_000
MOST_DETAIL = 1 << 16


def read_facts(job: Job) -> dict[str, Any]:
    """Return the facts that the worker recorded so far: image, environment, gpus, gpu_check, training."""
    facts: dict[str, Any] = read_json(job.dir / "facts.json") or {}
    return facts


def record_facts(job: Job, **facts: Any) -> None:
    """Record facts, so that the job's records are complete even when its worker dies."""
    write_json(job.dir / "facts.json", {**read_facts(job), **facts})


def seconds(times: dict[str, list[Optional[float]]]) -> dict[str, float]:
    """Return how long each phase took; one that has not ended is counted until now."""
    now = time.time()
    return {
        phase: round(max((now if end is None else end) - (start or now), 0.0), 3)
        for phase, (start, end) in times.items()
    }


def ending(error: Optional[TrainClassifierError]) -> dict[str, Any]:
    """Return the fields of result.json for the error that ended a job, or for a success (None)."""
    code = ExitCode.TRAINED if error is None else ExitCode(error.code)
    return {
        "outcome": OUTCOMES[code],
        "exit_code": int(code),
        # They may quote what a build printed.
        "reason": short(error.reason, MOST_CHARACTERS) if error is not None else None,
        "hint": short(error.hint, MOST_CHARACTERS) if error is not None and error.hint else None,
        "detail": error.detail[-MOST_DETAIL:] if error is not None and error.detail else None,
        "link": error.link if error is not None else None,
    }


def result(
    job: Job, spec: Optional[JobSpec], status: dict[str, Any], error: Optional[TrainClassifierError]
) -> dict[str, Any]:
    """Return result.json for a job that ended with `error` (None: a success); unknown facts are null."""
    facts = read_facts(job)
    return {
        "schema": SCHEMA,
        # The folder of a job has another name where the service account runs it for a person.
        "id": spec.id if spec is not None else job.id,
        "model": spec.model if spec is not None else status.get("model"),
        **ending(error),
        "training_exit_status": None,
        "signal": None,
        "out_of_memory": None,
        **facts.get("training", {}),
        "archive": None,
        "metrics": None,
        "seconds": seconds(status.get("times", {})),
        "started": status.get("started"),
        "finished": time.time(),
        "image": facts.get("image"),
        "gpu_check": facts.get("gpu_check"),
        "gpus": facts.get("gpus", []),
    }


def head(job: Job, spec: JobSpec, status: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Return manifest.json without its lists of files; docs/manifest.md describes it."""
    facts = read_facts(job)
    result_keys = (
        "outcome", "exit_code", "reason", "training_exit_status", "signal", "out_of_memory", "metrics",
        "image", "gpu_check", "gpus",
    )  # fmt: skip
    return {
        "schema": SCHEMA,
        "job": spec.id,
        "model": spec.model,
        "arguments": list(spec.arguments),
        "group": spec.group,
        "sweep": spec.sweep,
        # Names only: values may be private.
        "environment_variables": sorted(spec.environment),
        "secrets": sorted(spec.secrets),
        "data": {folder.name: folder.path for folder in spec.data},
        "resumed_from": spec.resume,
        "rerun_of": spec.rerun_of,
        "submitter": spec.submitter,
        "submitted": status.get("submitted"),
        "repository": {
            "name": spec.repository.name,
            "commit": spec.repository.commit,
            "address": spec.repository.address,
            "dirty": spec.repository.dirty,
            "files": spec.source_files,
            "bytes": spec.source_bytes,
        },
        "limits": {
            "timeout_s": spec.timeout_s,
            "memory_bytes": spec.memory_bytes,
            "cpus": spec.cpus,
            "shm_bytes": spec.shm_bytes,
            "pids": spec.pids,
            "artefacts_max_bytes": spec.artefacts_max_bytes,
            "network": spec.network,
        },
        "environment": facts.get("environment"),
        "host": host_facts(),
        "slurm": _slurm(facts.get("slurm")),
        "times": status.get("times", {}),
        **{key: result[key] for key in result_keys},
    }


def _slurm(entry: Optional[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """Return what Slurm said about the job, with what it counts until now: as sacct's Elapsed and CPUTime."""
    if entry is None:
        return None
    started, cpus = entry["started"], entry["tres"].get("cpu")
    elapsed = max(round(time.time() - started, 3), 0.0) if started is not None else None
    cpu_time = round(elapsed * cpus, 3) if elapsed is not None and cpus else None
    return {**entry, "elapsed_s": elapsed, "cpu_time_s": cpu_time}
