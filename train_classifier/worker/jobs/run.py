"""The worker: runs one job from `submitted` to `finished`; STEPS lists the steps in order."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Optional

from train_classifier.core import locks
from train_classifier.core.errors import NoEnvironment, TrainClassifierError, TrainingFailed
from train_classifier.core.job import job_of_group, number_in_group
from train_classifier.worker.containers import engine, package_layers, plain_image
from train_classifier.worker.containers.context import Context
from train_classifier.worker.environments import environment
from train_classifier.worker.environments.build_failures import PythonConflict
from train_classifier.worker.environments.stored_environments import ISOLATED, Environment
from train_classifier.worker.gpus import devices
from train_classifier.worker.jobs import conclude, recover
from train_classifier.worker.jobs.secrets import take_secrets
from train_classifier.worker.state import results
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import host_faults, launcher, program
from train_classifier.worker.system.host import Host, boot_id
from train_classifier.worker.training import container
from train_classifier.worker.training.stop_reasons import Watch
from train_classifier.worker.training.training import Training
from train_classifier.worker.transfer import archive, workspace_copy

if TYPE_CHECKING:
    from train_classifier.worker.slurm.allocation import Allocation

#: Seconds that the end of a job waits for an unreachable engine; longer outages were waited for before.
CLOSING_PATIENCE_S = 60.0
#: Seconds between two looks at the other jobs of a group.
GROUP_POLL_S = 0.5


class JobRun:
    """One job while its worker lives."""

    def __init__(self, job: Job, allocation: "Optional[Allocation]" = None) -> None:
        self.job = job
        self.store = Store.of(job.dir)
        #: What Slurm gave the job; None: the job takes its GPUs from the queue of this host.
        self.allocation = allocation
        self.spec = job.spec() if allocation is None else allocation.limit(job.spec())
        self.host = Host.load() if allocation is None else allocation.limit_host(Host.load())
        self.account = self.host.job_user()
        self.watch = Watch(job, self.spec)
        #: The other nodes of a job on several.
        self.node_group = self.watch.node_group = allocation.node_group if allocation is not None else None
        self.secrets: dict[str, str] = {}
        self.engine: Any = None
        self.image: Any = None
        self.environment: Any = None
        self.ticket: Any = None
        self.gpu_count = int(job.status().get("gpus_wanted") or 0)
        self.gpus: tuple[Any, ...] = ()
        self.times: dict[str, list[Optional[float]]] = {}
        self.durations: dict[str, float] = {}
        self.failed_phase: Optional[str] = None
        #: The first error, which ends the job.
        self.error: Optional[TrainClassifierError] = None
        self._message = ""

    @property
    def context(self) -> Context:
        """Return the context of a step; the engine must be connected."""
        return Context(self.engine, self.host, self.store, self.job, self.say, self.watch.check)

    def say(self, text: str) -> None:
        """Show the job's followers what it is doing; a full or broken disk does not stop the job."""
        if text != self._message:
            self._message = text
            with host_faults.ignore_disk_errors():
                self.job.write_status(message=text)

    @contextlib.contextmanager
    def record_error(self) -> Iterator[None]:
        """Record an exception as the error that ended the job, unless there is one already."""
        try:
            yield
        except Exception as error:
            self.error = self.error or as_error(self.job, error)

    @contextlib.contextmanager
    def phase(self, name: str, must_write: bool = True) -> Iterator[None]:
        """Record and time one phase in status.json; unless `must_write`, a disk error is ignored."""
        began = time.monotonic()
        self.times[name] = [time.time(), None]
        self._message = ""
        with contextlib.nullcontext() if must_write else host_faults.ignore_disk_errors():
            self.job.write_status(phase=name, message="", times=self.times, failed_phase=self.failed_phase)
        try:
            yield
        except Exception:
            self.failed_phase = name
            raise
        finally:
            self.durations[name] = round(time.monotonic() - began, 3)
            self.times[name][1] = time.time()


def find_image(run: JobRun) -> None:
    """Find or pull the image: the host's GPU image where a GPU is used, a plain one for another Python."""
    run.image = plain_image.resolve(run.context, run.spec, run.gpu_count > 0)


def add_packages(run: JobRun) -> None:
    """Add the Debian packages of apt-pkgs.txt to the image."""
    # The first step that reads the repository.
    workspace_copy.wait(run.job, run.watch.check)
    try:
        run.image = package_layers.layer(run.context, run.image, run.job.workspace, run.spec.model)
    except NoEnvironment as error:
        take_usual_image(run, error)
        return
    results.record_facts(
        run.job,
        image={
            "reference": run.image.reference,
            "digest": run.image.digest,
            "id": run.image.id,
            "base": run.image.base,
        },
    )


def take_usual_image(run: JobRun, error: TrainClassifierError) -> None:
    """Take the image as if the repository asked for no Python, after an error with a plain image.

    Such a repository may well train there, as long as nobody set `python`. Otherwise the error is raised.
    """
    if not run.image.plain or run.spec.python:
        raise error
    run.spec = dataclasses.replace(run.spec, required_pythons=())
    run.context.note(f"{error}: the usual image is taken")
    find_image(run)
    add_packages(run)


def take_fitting_python(run: JobRun, error: PythonConflict) -> None:
    """Take a plain image of the Python that the requirements need, where nobody chose an image or a Python.

    Otherwise, or where there is no such image, the error is raised.
    """
    spec = run.spec
    if spec.python or spec.image or spec.environment_kind != environment.AUTO:
        raise error
    # Of what the requirements can have, what the repository says that it runs with.
    allowed = spec.required_pythons or error.pythons
    pythons = tuple(version for version in error.pythons if version in allowed)
    if not pythons:
        raise error
    run.context.note(f"{error.reason} (to skip this search: {error.choice})")
    run.spec = dataclasses.replace(spec, required_pythons=pythons)
    find_image(run)
    if not run.image.plain:
        choice = plain_image.how_to_name(plain_image.nearest_python(pythons, run.image))
        raise PythonConflict(error.reason, choice, error.other, error.detail, error.pythons)
    add_packages(run)


def build_environment(run: JobRun) -> None:
    """Find or build the environment of requirements.txt, and say what it replaces in the image."""

    def prepare() -> Environment:
        kind = ISOLATED if run.image.plain else run.spec.environment_kind
        request = environment.EnvironmentRequest(
            run.spec.model,
            run.spec.repository.key,
            kind,
            run.gpu_count > 0,
            run.spec.environment,
            run.spec.pinned_environment,
        )
        return environment.prepare(run.context, run.image, run.job.workspace, request)

    try:
        run.environment = prepare()
    except NoEnvironment as error:
        if isinstance(error, PythonConflict) and not run.image.plain:
            take_fitting_python(run, error)
        else:
            take_usual_image(run, error)
        run.environment = prepare()
    description = environment.description(run.environment, run.image)
    if run.environment.files:
        run.context.note(f"environment of {description}")
    else:
        # The phase of this message has the word already.
        run.say(description)
    if run.gpu_count == 0:
        advice = environment.unused_cuda(run.environment, run.image, run.spec.model)
        if advice and not devices.discover(run.host, processes=False).gpus:
            run.context.note(advice)
    results.record_facts(
        run.job,
        environment={
            "hash": run.environment.hash,
            "kind": run.environment.kind,
            "reason": run.environment.reason,
            "files": list(run.environment.files),
            "python": run.image.python_version,
            "packages": list(run.environment.packages),
            "repositories": list(run.environment.repositories),
            "built_without_isolation": list(run.environment.unisolated),
        },
    )


def wait_for_gpus(run: JobRun) -> None:
    """Wait for jobs of the same group, then in the host's queue until the job has its GPUs."""
    if run.allocation is None and run.spec.group is not None:
        wait_for_group(run)
    if run.gpu_count == 0:
        return
    if run.allocation is not None:
        run.gpus = run.allocation.gpus
    else:
        run.gpus = run.ticket.wait(run.engine, run.host, run.spec.wait_s, run.say, run.watch.check)
    run.job.write_status(gpus=[gpu.uuid for gpu in run.gpus])
    results.record_facts(run.job, gpus=[gpu.to_dict() for gpu in run.gpus])


def wait_for_group(run: JobRun) -> None:
    """Wait until fewer earlier jobs of the group are at work than may run at the same time.

    The host's queue has no limit for jobs without a GPU: of these one runs at a time, unless the caller
    allows more. In Slurm the group's jobs depend on each other instead.
    """
    most = run.spec.max_parallel or (None if run.gpu_count else 1)
    if most is None:
        return
    earlier = [
        Job(run.store.jobs / job_of_group(str(run.spec.group), number))
        for number in range(1, number_in_group(run.job.id))
    ]
    while True:
        run.watch.check()
        at_work: list[Job] = []
        # Those that have ended are not looked at again, and no more than needed of the others.
        while earlier and len(at_work) < most:
            job = earlier.pop(0)
            if is_at_work(job, run.host, without_gpu=run.spec.max_parallel is None):
                at_work.append(job)
        earlier = at_work + earlier
        if len(at_work) < most:
            return
        names = f"job {at_work[0].id}" if most == 1 else f"{most} jobs"
        run.say(f"waiting for {names} of its group")
        time.sleep(GROUP_POLL_S)


def is_at_work(job: Job, host: Host, without_gpu: bool) -> bool:
    """Return whether a job was submitted and has not ended; a job whose worker is dead is finished here.

    With `without_gpu` one that has a GPU does not count.
    """
    with contextlib.suppress(TrainClassifierError, OSError):
        recover.finish_if_dead(job, host)
    try:
        status = job.status()
    except (TrainClassifierError, OSError):
        return False
    return status["state"] in ("submitted", "running") and not (without_gpu and status.get("gpus_wanted"))


def check_gpus(run: JobRun) -> None:
    """Prove that the framework in the container sees the GPUs."""
    if not run.gpus:
        results.record_facts(
            run.job, gpu_check={"mode": "off", "proven": False, "detail": "the job has no GPU"}
        )
        return
    from train_classifier.worker.gpus import visibility

    mode = run.spec.gpu_check or run.host.gpu_check or "framework"
    proof = visibility.prove(run.context, run.image, run.environment, run.gpus, mode)
    results.record_facts(run.job, gpu_check=proof)


def train(run: JobRun) -> None:
    """Run the model."""
    from train_classifier.worker.gpus import devices

    container.prepare_folders(run.job, run.account, run.host)
    cache = run.store.cache / run.spec.repository.key
    closed = [cache, run.job.checkpoints]
    conclude.record_initial_artefacts(run.job, run.spec, run.account, closed, run.watch.check)
    uuids = [gpu.uuid for gpu in run.gpus]
    options = devices.device_options(run.engine, run.gpus) if run.gpus else {}
    if run.node_group is not None:
        options = {**options, **container.HOST_NETWORK}
        run.node_group.wait_ready(run.say, run.watch.check)
    model_container = container.create(run.context, run.spec, run.image, run.environment, uuids, options)
    note = run.context.note
    training = Training(run.job, run.spec, run.account, run.watch, run.say, note, archive.load)
    try:
        run.job.write_status(container=model_container.id, message="training")
        training.run(model_container, run.secrets, uuids, run.host.nvidia_smi)
    except TrainingFailed as error:
        # Its table of causes takes time to import, which a job that ends well need not wait for.
        from train_classifier.worker.jobs import failed_training

        packages = run.environment.packages
        cards = (lambda: devices.describe_use(run.host, uuids)) if uuids else None
        failed_training.add_cause(error, run.job, training.facts, packages, cards)
        raise
    finally:
        # `end_job` removes the container in every case. How the model ended must be recorded here.
        run.job.release_reserve()
        with host_faults.ignore_disk_errors():
            results.record_facts(run.job, training=training.facts)


STEPS = (
    ("image", find_image),
    ("packages", add_packages),
    ("environment", build_environment),
    ("queue", wait_for_gpus),
    ("gpu-check", check_gpus),
    ("training", train),
)


def run_job(job: Job, allocation: "Optional[Allocation]" = None) -> None:
    """Run a submitted job to its end; return when result.json is written."""
    with locks.hold(job.lock, timeout=60):
        if job.status()["state"] != "submitted":
            return
        try:
            run = JobRun(job, allocation)
            run.watch.catch_signals()
            run.secrets = take_secrets(job)
            job.make_reserve()
            job.write_status(
                state="running",
                started=time.time(),
                boot_id=boot_id(),
                pid=os.getpid(),
                pid_start=launcher.start_time(os.getpid()),
                worker=str(program.PROGRAM),
                message="",
            )
        except Exception as error:
            end_unstarted_job(job, as_error(job, error))
            return
        run_steps(run)
        end_job(run)
    recover.finish_dead_jobs(run.store, run.host)


def end_unstarted_job(job: Job, cause: TrainClassifierError) -> None:
    """End a job that could not start, and remove everything of it except its records."""
    conclude.conclude(job, recover.try_spec(job), cause, {}, {})
    host = Host.load()
    recover.remove_ticket(host, job)
    conclude.remove_leftovers(job, host.job_user())


def run_steps(run: JobRun) -> None:
    """Run the steps until one fails."""
    with run.record_error():
        if run.gpu_count and run.allocation is None:
            from train_classifier.worker.gpus import gpu_queue

            run.ticket = gpu_queue.Ticket.claim(run.host.queue_dir, run.job.id)
        run.engine = engine.connect()
        for name, step in STEPS:
            with run.phase(name):
                run.watch.check()
                step(run)


def end_job(run: JobRun) -> None:
    """Release the job's resources, pack its artefacts, write the result, then remove leftover files.

    The GPUs are released first, because other jobs wait for them. A step that fails does not prevent the next
    ones, and the first error counts. A cancel, a signal or an expired lease during the packing stops it, and
    the results stay on the host.
    """
    run.job.release_reserve()
    containers_removed = False
    answer: dict[str, Any] = {}
    with run.phase("artefacts", must_write=False):
        with run.record_error():
            if run.engine is not None:
                engine.remove_all(run.engine, run.job.id, limit_s=CLOSING_PATIENCE_S)
            containers_removed = True
        with run.record_error():
            if run.ticket is not None:
                run.ticket.release()
        if run.node_group is not None:
            with run.record_error():
                run.say("waiting for the other nodes to end")
                run.error = run.node_group.end(run.error, run.watch.check)
            run.watch.node_group = None
        with run.record_error():
            run.watch.reset()
            answer, run.error = conclude.pack(run.job, run.spec, run.account, run.error, run.watch.check)
    conclude.conclude(run.job, run.spec, run.error, answer, run.durations)
    if containers_removed:
        # Otherwise a container may remain: the next process that looks at the job removes it, then the files.
        conclude.remove_leftovers(run.job, run.account)


def as_error(job: Job, error: Exception) -> TrainClassifierError:
    """Return a TrainClassifierError as it is, NotReady for a fault of the host, or the report of a bug.

    A bug's traceback goes into crash.txt.
    """
    if isinstance(error, TrainClassifierError):
        return error
    fault = host_faults.of_host(error)
    if fault is not None:
        return fault
    import traceback

    # A full disk may refuse the traceback too.
    with contextlib.suppress(OSError), open(job.crash, "a", encoding="utf-8") as file:
        traceback.print_exception(type(error), error, error.__traceback__, file=file)
    return TrainClassifierError(
        f"a bug in the worker: {type(error).__name__}: {error}",
        f"report it with {job.crash} of the host",
    )
