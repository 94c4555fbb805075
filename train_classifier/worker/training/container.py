"""The training container: its limits, and the files and variables that it gets."""

import os
import shlex
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train_classifier.core.errors import NoEnvironment, NoGpu, NotReady, TrainClassifierError
from train_classifier.core.job import WORKSPACE, JobSpec
from train_classifier.worker.containers import engine, helper
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import NO_SHELL, Image
from train_classifier.worker.environments.stored_environments import Environment
from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account, Host
from train_classifier.worker.training import data_folders

RUN = "/run/train-classifier"
CA = f"{RUN}/ca.crt"
#: Engine options of a job on several nodes: its processes meet under the names and addresses of their nodes.
HOST_NETWORK = {"network_mode": "host", "hostname": None}
#: Messages of engine, NVIDIA runtime and CDI when a GPU cannot be provided; a path may name NVIDIA too.
GPU_REFUSALS = (
    "could not select device driver",
    "nvidia-container-cli",
    "nvidia-container-runtime",
    "unresolvable CDI devices",
    "CDI device injection failed",
    "failed to inject CDI devices",
    "CDI support is not enabled",
    "error gathering device information",
)
#: The model's output goes to a FIFO; secrets are read from another FIFO, so that the engine never gets them;
#: then the model replaces the shell.
WRAPPER = f"""exec >{RUN}/out 2>&1 </dev/null
if [ -p {RUN}/secrets ]; then . {RUN}/secrets; fi
exec "$@"
"""


def name_of(job: Job) -> str:
    """Return the name of a job's container."""
    return f"tc-job-{job.id}"


def environment_of(spec: JobSpec, host: Host, account: Account) -> dict[str, str]:
    """Return the environment of the model: this program's, then the host's, then the request's variables."""
    variables = {
        "HOME": f"/home/{account.name}",
        "USER": account.name,
        "LOGNAME": account.name,
        "MODEL": spec.model,
        "TRAIN_CLASSIFIER_JOB": spec.id,
        "TRAIN_CHECKPOINT_DIR": "/checkpoints",
        "KERAS_HOME": "/cache/keras",
        "HF_HOME": "/cache/huggingface",
        "TORCH_HOME": "/cache/torch",
        "PYTHONUNBUFFERED": "1",
    }
    if host.ca_bundle is not None:
        variables.update({"SSL_CERT_FILE": CA, "REQUESTS_CA_BUNDLE": CA})
    return {**variables, **host.environment, **spec.environment}


def prepare_folders(job: Job, account: Account, host: Host) -> None:
    """Create the files that are mounted into the container besides the workspace. Raises NotReady."""
    write_bytes(
        job.run / "passwd",
        f"root:x:0:0:root:/root:/bin/sh\n{account.name}:x:{account.uid}:{account.gid}::/home/{account.name}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n".encode(),
        0o644,
    )
    write_bytes(
        job.run / "group",
        f"root:x:0:\n{account.name}:x:{account.gid}:\nnogroup:x:65534:\n".encode(),
        0o644,
    )
    if host.ca_bundle is not None:
        try:
            write_bytes(job.run / "ca.crt", host.ca_bundle.read_bytes(), 0o644)
        except OSError as error:
            raise NotReady(f"the CA bundle {host.ca_bundle} of host.json cannot be read: {error}") from error


def create(
    context: Context,
    spec: JobSpec,
    image: Image,
    environment: Environment,
    gpus: Sequence[str],
    engine_options: Mapping[str, Any],
) -> Any:
    """Create the job's container, not started; `gpus` are the UUIDs of its cards.

    `engine_options` are further ones of docker's create: cards, and the network of a job on several nodes.

    Raises BadInput for a data folder that no job may have, NoEnvironment when the engine refuses the image.
    """
    import docker.errors
    from docker.types import LogConfig

    job, account = _job(context), context.host.job_user()
    options: dict[str, Any] = {**_network(spec), **_limits(spec), **engine_options}
    variables = {
        **environment.defaults,
        **environment_of(spec, context.host, account),
        **environment.variables,
        **helper.no_gpu_variables(options),
    }
    mounts = _mounts(context, spec, environment)

    def make() -> Any:
        try:
            return context.client.containers.create(
                image.id,
                ["-c", WRAPPER, "train-classifier", environment.python, "-m", spec.model, *spec.arguments],
                entrypoint=["/bin/sh"],
                name=name_of(job),
                user=f"{account.uid}:{account.gid}",
                working_dir=WORKSPACE,
                environment=variables,
                mounts=mounts,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                pids_limit=spec.pids,
                init=True,
                log_config=LogConfig(type="none"),
                labels=engine.labels("job", job=job.id, uid=account.uid, folder=str(job.dir), gpus=gpus),
                **options,
            )
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise
            # The engine created the container, but became unreachable before it could answer.
            engine.remove(context.client.containers.get(name_of(job)))
            raise ConnectionError(str(error)) from error

    try:
        return engine.retry(make)
    except docker.errors.APIError as error:
        raise explain(error) from error


def _job(context: Context) -> Job:
    assert context.job is not None, "only a job trains"
    return context.job


def _network(spec: JobSpec) -> dict[str, Any]:
    """Return the network of a job as arguments of docker's create."""
    return {"network_mode": "none" if spec.network == "none" else "bridge", "hostname": spec.id}


def _limits(spec: JobSpec) -> dict[str, Any]:
    """Return the limits of a job as arguments of docker's create."""
    limits: dict[str, Any] = {}
    if spec.memory_bytes is not None:
        # Without the second limit, the job could use the same amount of swap.
        limits.update(mem_limit=spec.memory_bytes, memswap_limit=spec.memory_bytes)
    if spec.cpus is not None:
        limits["nano_cpus"] = int(spec.cpus * 1e9)
    if spec.shm_bytes:
        limits["shm_size"] = spec.shm_bytes
    return limits


def _mounts(context: Context, spec: JobSpec, environment: Environment) -> list[Any]:
    """Return the mounts of a job. Raises BadInput for a data folder that no job may have."""
    from docker.types import Mount

    job, account = _job(context), context.host.job_user()
    # Check again: since the submission a folder may have been replaced by a link to another.
    engine_folders = engine.folders(engine.retry(context.client.info)) if spec.data else ()
    folders = data_folders.resolve(spec, context.host, context.store.root, engine_folders)
    mounts = [
        Mount(WORKSPACE, str(job.workspace), "bind"),
        _checkpoints(job),
        Mount("/cache", str(context.store.cache / spec.repository.key), "bind"),
        Mount(f"/home/{account.name}", str(job.home), "bind"),
        Mount(RUN, str(job.run), "bind", read_only=True),
        Mount("/etc/passwd", str(job.run / "passwd"), "bind", read_only=True),
        Mount("/etc/group", str(job.run / "group"), "bind", read_only=True),
        *(Mount(f"/data/{name}", path, "bind", read_only=True) for name, path in folders.items()),
        *environment.mounts,
    ]
    for mount in mounts:
        if mount["Type"] == "bind":
            # Otherwise file systems mounted below are included, writable. The SDK has no argument for it.
            mount["BindOptions"] = {**(mount.get("BindOptions") or {}), "NonRecursive": True}
    return mounts


def _checkpoints(job: Job) -> Any:
    from docker.types import DriverConfig, Mount

    if job.checkpoints_handle is None:
        return Mount("/checkpoints", str(job.checkpoints), "bind")
    # A handle can be mounted only in the mount namespace of its process: the engine does that for a volume,
    # which is removed with its container.
    options = {"type": "none", "o": "bind", "device": str(job.checkpoints_handle)}
    driver = DriverConfig("local", options)
    labels = {engine.LABEL: "1", f"{engine.LABEL}.job": job.id}
    return Mount("/checkpoints", None, "volume", no_copy=True, labels=labels, driver_config=driver)


def explain(error: Any) -> TrainClassifierError:
    """Return the failure for the engine's refusal to create or start a container."""
    text = str(error.explanation or error)
    if "/bin/sh" in text and ("no such file" in text or "not found" in text):
        return NoEnvironment("the image has no /bin/sh", NO_SHELL, text)
    if any(words in text for words in GPU_REFUSALS):
        return NoGpu("the engine cannot give the container a GPU", "run: train-classifier doctor", text)
    unseen = engine.unseen_path(error)
    return unseen or NotReady("the engine refused the job's container", "run: train-classifier doctor", text)


def write_secrets(fifo: Path, secrets: Mapping[str, str], ended: threading.Event) -> None:
    """Write the secrets when the wrapper opens the FIFO; return if the container ended before that."""
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in secrets.items())
    descriptor = -1
    while descriptor < 0:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            # ENXIO: the wrapper has not opened the FIFO yet.
            if ended.wait(0.01):
                return
    os.set_blocking(descriptor, True)
    try:
        with open(descriptor, "wb") as pipe:
            pipe.write(text.encode("utf-8", "surrogateescape"))
    except BrokenPipeError:
        return
