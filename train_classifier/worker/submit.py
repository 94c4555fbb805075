"""From a specification to a running worker: `prepare` and `submit`."""

import os
import time
from typing import Any, Optional

from train_classifier.errors import BadInput, Cancelled, NotReady, TrainClassifierError
from train_classifier.job import NAME, SCHEMA, JobSpec
from train_classifier.worker import data_folders, finish, launch, locks, program, receive, tree
from train_classifier.worker.host import Account, Host, boot_id, uptime
from train_classifier.worker.store import O_FOLDER, Job, Store, make_folder, write_bytes, write_json


def prepare(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Make the folder of a new job, and its mirror; nothing is promised yet.

    With `check` (what the verb of that name is asked) the host is checked first: a failed check is an
    answer, and nothing is made. `pushed` in the answer: the host has what `fingerprint` stands for already.
    Raises BadInput with every problem of the specification, NotReady when the host has no room.
    """
    try:
        spec = JobSpec.from_dict(request.get("spec"))
    except ValueError as error:
        raise BadInput(*str(error).splitlines()) from error
    checked: dict[str, Any] = {}
    if isinstance(request.get("check"), dict):
        from train_classifier.worker import check

        checked = {"check": check.check(host, {**request["check"], "state_dir": request.get("state_dir")})}
        if any(each["status"] == "fail" for each in checked["check"]["checks"]):
            return checked
    files = receive.unpack_list(request.get("files"))
    _, problems = data_folders.examine(spec, host, store.root)
    resumed = None
    if spec.resume is not None:
        try:
            resumed = _resumed(store, spec)
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(*problems)
    account = host.job_user()
    store.make(account)
    _require_space(host, store, spec)
    if os.geteuid() == 0:
        program.open_to_all()
    job = Job(store.jobs / spec.id)
    try:
        job.make(account)
    except FileExistsError as error:
        raise BadInput(
            f"job id {spec.id} is in use already", hint="submit again: ids are made new"
        ) from error
    try:
        _furnish(job, spec, files, resumed, account, store)
        mirror = store.mirror(spec.repository.key)
        with locks.hold(job.lock):
            pushed = receive.adopt(job, account, mirror, request.get("fingerprint"))
    except BaseException:
        # Remove the partly created job.
        finish.remove_folder(job, account)
        raise
    return {"id": job.id, "job": str(job.dir), "tree": str(mirror / "tree"), "pushed": pushed, **checked}


def _furnish(
    job: Job, spec: JobSpec, files: bytes, resumed: Optional[Job], account: Account, store: Store
) -> None:
    """Fill a new job's folder, and make sure of its mirror and cache."""
    with locks.hold(job.lock):
        data = spec.to_dict()
        if resumed is not None:
            data["resume"] = resumed.id
        write_json(job.dir / "spec.json", data)
        write_bytes(job.dir / "files", files)
        store.make_mirror(spec.repository.key, account)
        cache = make_folder(store.cache / spec.repository.key, 0o700, account)
        job.write_status(
            schema=SCHEMA, id=job.id, model=spec.model, submitter=spec.submitter, state="prepared",
            phase=None, message="", boot_id=boot_id(), pid=None, pid_start=None, worker=str(program.PROGRAM),
            launcher=None, unit=None, container=None, gpus=[], times={}, submitted=None, started=None,
            finished=None,
        )  # fmt: skip
        if resumed is not None:
            if not resumed.is_foreign:
                # Nobody cleans them meanwhile.
                write_bytes(resumed.dir / "resumed", b"")
            program.call(account, "mend", {"folders": [str(resumed.checkpoints)]})
            tree.copy(account, resumed.checkpoints, job.checkpoints)
        os.utime(cache)


def _resumed(store: Store, spec: JobSpec) -> Job:
    """Return the job whose checkpoints a new one starts from. Raises BadInput."""
    if spec.resume != "last":
        found = store.job(str(spec.resume))
        if _checkpoints(found) is None:
            raise BadInput(f"job {found.id} has no checkpoints any more: it was cleaned")
        return found
    for job in reversed(store.all_jobs()):
        try:
            other = job.spec()
        except TrainClassifierError:
            continue
        alike = (other.model, other.repository.key) == (spec.model, spec.repository.key)
        if alike and job.id != spec.id and _checkpoints(job):
            return job
    raise BadInput(f"there is no earlier job of {spec.model} with checkpoints to resume from")


def _checkpoints(job: Job) -> Optional[int]:
    """Return how many checkpoints a job has, None when its folder of them is gone."""
    try:
        folder = os.open(job.checkpoints, O_FOLDER)
    except OSError as error:
        # A model may have closed it to itself; the copy opens it again.
        return 1 if isinstance(error, PermissionError) else None
    try:
        return len(os.listdir(folder))
    finally:
        os.close(folder)


def _require_space(host: Host, store: Store, spec: JobSpec) -> None:
    found = os.statvfs(store.root)
    free = found.f_bavail * found.f_frsize
    # The mirror and the private workspace.
    wanted = host.disk_floor_bytes + 2 * spec.source_bytes
    if free < wanted:
        gib = 1 << 30
        raise NotReady(
            f"{store.root} has {free / gib:.1f} GiB free, the job wants {wanted / gib:.1f} GiB",
            "free some space: train-classifier clean removes old jobs and environments",
        )
    if found.f_files and not found.f_favail:
        raise NotReady(f"the file system of {store.root} is out of inodes", "remove files there")


def submit(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Start the worker of a pushed job: from here the job is safe.

    Raises BadInput for a job that is not ready to be submitted or for wrong secrets, NotReady, NoGpu.
    """
    job = store.job(str(request.get("id")))
    spec = job.spec()
    secrets = _secrets(request, spec)
    caller = host.caller()
    if job.cancel.exists():
        # Its cancel came while it was pushed, and could not remove it.
        finish.remove(job, host.job_user(), unless_submitted=True)
        raise Cancelled(f"job {job.id} was cancelled before it was submitted")
    with locks.hold(job.lock, timeout=10):
        status = job.status()
        if status["state"] != "pushed":
            said = (
                "its sources have not arrived"
                if status["state"] == "prepared"
                else "it was submitted already"
            )
            raise BadInput(f"job {job.id} cannot be submitted: {said}")
        count, message = _gpus(spec, host)
        if count:
            _enqueue(job, spec, host, count)
        try:
            launch.put_secrets(job, caller, secrets)
            write_bytes(job.lease, b"")
            kind = launch.launcher(caller)
            job.write_status(
                state="submitted", submitted=time.time(), submitted_uptime=uptime(), boot_id=boot_id(),
                gpus_wanted=count, message=message, launcher=kind,
                unit=None if kind == "setsid" else f"tc-job-{job.id}.service",
            )  # fmt: skip
            started = launch.launch(job, spec, caller)
        except BaseException:
            launch.drop_secrets(job)
            finish.remove_ticket(host, job)
            job.write_status(state="pushed", message="")
            raise
    return {"id": job.id, "state": "submitted", **started}


def _secrets(request: dict[str, Any], spec: JobSpec) -> dict[str, str]:
    given = request.get("secrets") or {}
    problems = []
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise BadInput("secrets must be names and text")
    for name, value in given.items():
        if not NAME.match(name) or name not in spec.secrets:
            problems.append(f"secret {name!r} is not one that the job asks for")
        elif "\0" in value:
            problems.append(f"the value of secret {name} holds a NUL")
    problems += [f"secret {name} is missing" for name in spec.secrets if name not in given]
    if problems:
        raise BadInput(*problems)
    return dict(given)


def _gpus(spec: JobSpec, host: Host) -> tuple[int, str]:
    """Return how many GPUs the job will have, and what is to be said about that."""
    if spec.gpus == 0:
        return 0, ""
    from train_classifier.worker import gpu, gpucheck

    discovery = gpu.discover(host, processes=False)
    count, message = gpu.wanted(spec.gpus, discovery)
    if count and spec.gpus == "auto":
        obstacle = gpucheck.obstacle(host, spec.min_vram_mib, discovery)
        if obstacle:
            return 0, obstacle + gpu.ON_CPU
    return count, message or ""


def _enqueue(job: Job, spec: JobSpec, host: Host, count: int) -> None:
    from train_classifier.worker import queue

    queue.enqueue(
        host.queue_dir,
        job=job.id,
        model=spec.model,
        directory=job.dir,
        want=count,
        min_vram_mib=spec.min_vram_mib,
    )
