"""The preparation of a job: its folder, what it resumes from, and whether the push may begin."""

import os
from typing import Any, Optional

from train_classifier.core import locks, options
from train_classifier.core.errors import BadInput, NotReady, TrainClassifierError
from train_classifier.core.job import SCHEMA, JobSpec
from train_classifier.worker.jobs import removal
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import make_folder, opened_folder, write_bytes, write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account, Host, boot_id
from train_classifier.worker.training import data_folders
from train_classifier.worker.transfer import rsync


def prepare(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Make the folder of a new job, and its mirror; the job is not accepted yet.

    With `check` (a request of that verb) the host is checked first: if a check fails, the checks are the
    answer, and nothing is made. `pushed` in the answer means that the host already has the files that
    `fingerprint` identifies.
    Raises BadInput with every problem of the specification, NotReady when the host has no room.
    """
    try:
        spec = JobSpec.from_dict(request.get("spec"))
    except ValueError as error:
        raise BadInput(*str(error).splitlines()) from error
    _refuse_node(host)
    checked: dict[str, Any] = {}
    if isinstance(request.get("check"), dict):
        from train_classifier.worker.checks import host_check

        check_request = {**request["check"], "state_dir": request.get("state_dir")}
        checked = {"check": host_check.check(host, check_request)}
        if any(check["status"] == "fail" for check in checked["check"]["checks"]):
            return checked
    files = rsync.unpack_list(request.get("files"))
    _, problems = data_folders.examine(spec, host, store.root)
    problems += _slurm_problems(spec, host)
    resumed_job = None
    if spec.resume is not None:
        try:
            resumed_job = _find_resumed_job(store, spec)
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(*problems)
    account = host.job_user()
    _make_store(host, store)
    _require_space(host, store, spec)
    if os.geteuid() == 0:
        program.open_to_all()
    job = Job(store.jobs / spec.id)
    try:
        job.make(account)
    except FileExistsError as error:
        raise BadInput(
            f"job id {spec.id} is in use already", hint="submit again: each submission gets a new id"
        ) from error
    try:
        _fill_folder(job, spec, files, resumed_job, account, store)
        mirror = store.mirror(spec.repository.key)
        with locks.hold(job.lock):
            pushed = rsync.copy_matching_mirror(job, account, mirror, request.get("fingerprint"))
    except BaseException:
        # Remove the partly created job.
        removal.remove_folder(job, account)
        raise
    return {"id": job.id, "job": str(job.dir), "tree": str(mirror / "tree"), "pushed": pushed, **checked}


def _refuse_node(host: Host) -> None:
    if host.slurm_node and not host.is_submit_host:
        raise NotReady(
            "this host is a node of a Slurm cluster, where only Slurm starts jobs",
            "train on the submit host of the cluster: its jobs run here when Slurm chooses this node",
        )


def _slurm_problems(spec: JobSpec, host: Host) -> list[str]:
    """Return a sentence for each option that only Slurm understands, where Slurm does not start the jobs.

    On a submit host for what a job on several nodes, or of a person without Docker rights, may not have.
    """
    if host.is_submit_host:
        from train_classifier.worker.slurm import allocation, people

        problems = people.problems(spec) if people.has_caller(host) else []
        if problems or (spec.nodes or 1) == 1:
            return problems
        problem = allocation.host_network_problem(host, spec.nodes or 1)
        if not problem and spec.network == "none":
            nodes, network = options.show_option("nodes"), options.show_option("network")
            problem = f"{nodes} above 1 needs a network: {network} none cannot be had with it"
        return [problem] if problem else []
    fields = {name: options.BY_NAME[name].spec_field for name in options.SLURM}
    return [
        f"{options.show_option(name)} is an option of Slurm, which starts no jobs on this host"
        for name, field in fields.items()
        if getattr(spec, field) not in (None, False)
    ]


def _make_store(host: Host, store: Store) -> None:
    if host.is_submit_host:
        from train_classifier.worker.slurm import shared_folder

        shared_folder.make(host, store)
    store.make()


def _fill_folder(
    job: Job, spec: JobSpec, files: bytes, resumed_job: Optional[Job], account: Account, store: Store
) -> None:
    """Fill a new job's folder, and make its mirror and cache if they are missing."""
    with locks.hold(job.lock):
        data = spec.to_dict()
        if resumed_job is not None:
            data["resume"] = resumed_job.id
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
        if resumed_job is not None:
            if not resumed_job.is_foreign:
                # Marks the checkpoints as used, so that `clean` does not remove them meanwhile.
                write_bytes(resumed_job.dir / "resumed", b"")
            program.call(
                account, file_trees.restore_owner_rights_part, {"folders": [str(resumed_job.checkpoints)]}
            )
            file_trees.copy(account, resumed_job.checkpoints, job.checkpoints)
        os.utime(cache)


def _find_resumed_job(store: Store, spec: JobSpec) -> Job:
    """Return the job whose checkpoints a new one starts from. Raises BadInput."""
    if spec.resume != "last":
        job = store.job(str(spec.resume))
        if _count_checkpoints(job) is None:
            raise BadInput(f"job {job.id} has no checkpoints any more: train-classifier clean removed them")
        return job
    for job in reversed(store.all_jobs()):
        try:
            earlier_spec = job.spec()
        except TrainClassifierError:
            continue
        is_same_model = (earlier_spec.model, earlier_spec.repository.key) == (spec.model, spec.repository.key)
        is_sibling = spec.group is not None and earlier_spec.group == spec.group
        if is_same_model and not is_sibling and job.id != spec.id and _count_checkpoints(job):
            return job
    raise BadInput(f"there is no earlier job of {spec.model} with checkpoints to resume from")


def _count_checkpoints(job: Job) -> Optional[int]:
    """Return how many checkpoints a job has, None when the folder of checkpoints is missing."""
    try:
        with opened_folder(job.checkpoints) as folder:
            return len(os.listdir(folder))
    except PermissionError:
        # A model may have removed its own access to the folder; the copy restores it.
        return 1
    except OSError:
        return None


def _require_space(host: Host, store: Store, spec: JobSpec) -> None:
    file_system = os.statvfs(store.root)
    free = file_system.f_bavail * file_system.f_frsize
    # The mirror and the private workspace.
    required = host.disk_floor_bytes + 2 * spec.source_bytes
    if free < required:
        gib = 1 << 30
        raise NotReady(
            f"{store.root} has {free / gib:.1f} GiB free, the job needs {required / gib:.1f} GiB",
            "free some space: train-classifier clean removes old jobs and environments",
        )
    if file_system.f_files and not file_system.f_favail:
        raise NotReady(f"the file system of {store.root} has no free inodes", "remove files there")
