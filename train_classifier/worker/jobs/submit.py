"""Submission: from a pushed job to a running worker."""

import time
from typing import Any, Optional

from train_classifier.core import locks
from train_classifier.core.errors import BadInput, Cancelled
from train_classifier.core.job import NAME, JobSpec
from train_classifier.worker.jobs import recover, removal
from train_classifier.worker.jobs.secrets import remove_secrets, store_secrets
from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import launcher
from train_classifier.worker.system.host import Account, Host, boot_id, uptime
from train_classifier.worker.transfer import workspace_copy


def submit(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Start the worker of a pushed job; from then on the job does not depend on the connection.

    Raises BadInput for a job that is not ready to be submitted or for wrong secrets, NotReady, NoGpu.
    """
    job = store.job(str(request.get("id")))
    spec = job.spec()
    secrets = _secrets(request, spec)
    caller = host.caller()
    if job.cancel.exists():
        # The cancel came during the push, and could not remove the job.
        removal.remove(job, host.job_user(), unless_submitted=True)
        raise Cancelled(f"job {job.id} was cancelled before it was submitted")
    with locks.hold(job.lock, timeout=10):
        status = job.status()
        if status["state"] != "pushed":
            is_pushed = status["state"] != "prepared"
            reason = "it was submitted already" if is_pushed else "its sources have not arrived"
            raise BadInput(f"job {job.id} cannot be submitted: {reason}")
        if host.is_submit_host:
            started = _submit_to_slurm(job, spec, caller, secrets)
        else:
            started = _launch(job, spec, host, secrets)
    return {"id": job.id, "state": "submitted", **started}


def _launch(job: Job, spec: JobSpec, host: Host, secrets: dict[str, str]) -> dict[str, Any]:
    caller = host.caller()
    count, message = _gpus(spec, host)
    if count:
        _enqueue(job, spec, host, count)
    try:
        store_secrets(job, caller, secrets)
        write_bytes(job.lease, b"")
        kind = launcher.find_launcher(caller)
        unit = None if kind == "setsid" else f"tc-job-{job.id}.service"
        _set_submitted(job, count, message, kind, unit)
        return launcher.launch(job.dir, spec, caller, kind)
    except BaseException:
        remove_secrets(job)
        recover.remove_ticket(host, job)
        job.write_status(state="pushed", message="")
        raise


def _submit_to_slurm(job: Job, spec: JobSpec, caller: Account, secrets: dict[str, str]) -> dict[str, Any]:
    from train_classifier.worker.slurm import shared_folder, submission

    # What a node takes must be complete, and locks of the shared folder mean nothing to it.
    workspace_copy.wait(job, lambda: None)
    count, message = submission.gpu_count(caller, spec)
    try:
        store_secrets(job, caller, secrets, in_memory=False)
        write_bytes(job.lease, b"")
        write_bytes(job.dir / shared_folder.STOP_FILE, b"")
        _set_submitted(job, count, message, shared_folder.LAUNCHER, None)
        if job.cancel.exists():
            # From here on a cancel reads that Slurm has the job.
            raise Cancelled(f"job {job.id} was cancelled before it was submitted")
        number = submission.hand_over(job, spec, caller, count)
    except BaseException:
        remove_secrets(job)
        job.write_status(state="pushed", message="")
        raise
    return {"launcher": shared_folder.LAUNCHER, "slurm_job": number}


def _set_submitted(job: Job, gpus: int, message: str, kind: str, unit: Optional[str]) -> None:
    job.write_status(
        state="submitted", submitted=time.time(), submitted_uptime=uptime(), boot_id=boot_id(),
        gpus_wanted=gpus, message=message, launcher=kind, unit=unit,
    )  # fmt: skip


def _secrets(request: dict[str, Any], spec: JobSpec) -> dict[str, str]:
    secrets = request.get("secrets") or {}
    problems = []
    if not isinstance(secrets, dict) or not all(isinstance(value, str) for value in secrets.values()):
        raise BadInput("secrets must be an object of names and text values")
    for name, value in secrets.items():
        if not NAME.match(name) or name not in spec.secrets:
            problems.append(f"secret {name!r} is not in the job's specification")
        elif "\0" in value:
            problems.append(f"the value of secret {name} holds a NUL")
    problems += [f"secret {name} is missing" for name in spec.secrets if name not in secrets]
    if problems:
        raise BadInput(*problems)
    return dict(secrets)


def _gpus(spec: JobSpec, host: Host) -> tuple[int, str]:
    """Return how many GPUs the job will have, and a message about that."""
    if spec.gpus == 0:
        return 0, ""
    from train_classifier.worker.checks import gpu_check
    from train_classifier.worker.gpus import devices

    discovery = devices.discover(host, processes=False)
    count, message = devices.gpu_count(spec.gpus, discovery)
    if count and spec.gpus == "auto":
        obstacle = gpu_check.obstacle(host, spec.min_vram_mib, discovery)
        if obstacle:
            return 0, obstacle + devices.ON_CPU
    return count, message or ""


def _enqueue(job: Job, spec: JobSpec, host: Host, count: int) -> None:
    from train_classifier.worker.gpus import gpu_queue

    gpu_queue.enqueue(
        host.queue_dir,
        job=job.id,
        model=spec.model,
        directory=job.dir,
        want=count,
        min_vram_mib=spec.min_vram_mib,
    )
