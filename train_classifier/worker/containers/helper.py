"""Helper containers, besides a job's own container: builds and image probes, within limits."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from train_classifier.core.errors import NoEnvironment
from train_classifier.core.options import show_option
from train_classifier.core.text import hide_logins
from train_classifier.worker.containers import inside_answer
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.engine import remove, retry, unseen_path
from train_classifier.worker.system.cgroup import ControlGroup
from train_classifier.worker.system.host import Account, Limits

#: Bytes of a helper's output that are kept, at its end.
OUTPUT_BYTES = 1 << 20
#: What apt-get and dpkg need as root: files of all owners, their own accounts, file capabilities.
ROOT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID", "SYS_CHROOT",
)  # fmt: skip
#: By SIGKILL.
KILLED_STATUS = 137


class LimitReached(NoEnvironment):
    """A build or a check exceeded a limit of the host."""

    def __init__(self, reason: str, setting: str) -> None:
        super().__init__(
            reason, f"raise {setting} in host.json of the host (role variable training_host_{setting})"
        )


def no_gpu_variables(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable that stops the NVIDIA runtime from adding GPUs to a container.

    Where that runtime is the engine's default, an image with NVIDIA_VISIBLE_DEVICES=all (as CUDA images have)
    gets every GPU, requested or not. The variable is not set where GPUs are requested through the runtime
    itself; GPUs that are requested through CDI do not need the runtime.
    """
    requests = options.get("device_requests") or ()
    if any(request.get("Driver") != "cdi" for request in requests):
        return {}
    return {"NVIDIA_VISIBLE_DEVICES": "void"}


@dataclasses.dataclass(frozen=True)
class Helper:
    """A helper container: its program, its user, and its limits."""

    image: str
    #: Replaces the image's entry point.
    program: Sequence[str]
    labels: dict[str, str]
    limits: Limits
    #: None: root, with the capabilities that package managers need; else all capabilities are dropped.
    user: Optional[Account] = None
    #: docker.types.Mount objects.
    mounts: Sequence[Any] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    network: bool = True
    #: Follows the program.
    command: Sequence[str] = ()
    #: Uid 0 also where the image names another user.
    as_root: bool = False
    #: See `no_gpu_variables`.
    hide_gpus: bool = True
    #: More arguments of docker's create.
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run_helper(
    context: Context, helper: Helper, *, timeout: Optional[float] = None, say: bool = False
) -> tuple[int, bytes]:
    """Run a build or a probe in a container and return its exit status and the end of its output.

    With `say` its last line of output is reported every few seconds. The container is always removed: at the
    end, when the job is cancelled, after `timeout` seconds (TimeoutError; None: the timeout of the limits),
    and when a limit is reached (LimitReached).
    """
    container = create_helper(context, helper)
    try:
        return run_created(context, container, helper.limits, timeout=timeout, say=say)
    finally:
        remove(container)


def create_helper(context: Context, helper: Helper) -> Any:
    """Create the container of `run_helper` without starting it; the caller removes it (`remove`).

    Raises UnseenPath.
    """
    import docker.errors
    from docker.types import LogConfig

    # Docker keeps the image's own entry point when it is given an empty list.
    options: dict[str, Any] = {"entrypoint": list(helper.program) or [""], **helper.options}
    if helper.as_root:
        options["user"] = "0"
    elif helper.user is not None:
        options["user"] = f"{helper.user.uid}:{helper.user.gid}"
    if helper.user is None:
        options["cap_add"] = list(ROOT_CAPABILITIES)
    hidden = no_gpu_variables(options) if helper.hide_gpus else {}
    try:
        return retry(
            lambda: context.client.containers.create(
                helper.image,
                list(helper.command),
                mounts=list(helper.mounts),
                environment={**helper.environment, **hidden},
                labels=helper.labels,
                network_mode="bridge" if helper.network else "none",
                security_opt=["no-new-privileges"],
                cap_drop=["ALL"],
                pids_limit=helper.limits.pids,
                # Without the second limit the container could use as much swap in addition.
                mem_limit=helper.limits.memory_bytes,
                memswap_limit=helper.limits.memory_bytes,
                nano_cpus=int(helper.limits.cpus * 1e9),
                init=True,
                log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "2"}),
                **options,
            )
        )
    except docker.errors.APIError as error:
        raise unseen_path(error) or error


def start_once(container: Any) -> None:
    """Start a created container, unless the engine already started it before an outage hid its answer."""
    container.reload()
    if container.status == "created":
        container.start()


def run_created(
    context: Context,
    container: Any,
    limits: Limits,
    *,
    timeout: Optional[float] = None,
    say: bool = False,
) -> tuple[int, bytes]:
    """Start a created container, wait for its end and return its exit status and the end of its output.

    Raises LimitReached as soon as it was refused a process or memory, TimeoutError.
    """
    began = reported = time.monotonic()
    timeout = limits.timeout_s if timeout is None else timeout
    group: Optional[ControlGroup] = None
    pause = 0.02
    retry(lambda: start_once(container), context.check_cancel)
    while True:
        retry(container.reload, context.check_cancel)
        if container.status in ("exited", "dead"):
            break
        context.check_cancel()
        group = group or _group_of(container, limits)
        _check_limits(group, limits)
        now = time.monotonic()
        if now - began > timeout:
            raise TimeoutError(f"no end after {timeout:.0f} s")
        if say and now - reported > 2:
            reported = now
            last_output = retry(lambda: container.logs(tail=1), context.check_cancel)
            line = line_for_people(last_output)
            if line:
                context.say(line)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    if final_state(container).get("OOMKilled"):
        raise _memory_limit(limits)
    output = retry(lambda: container.logs(tail=20000), context.check_cancel)
    return int(container.attrs["State"]["ExitCode"]), output[-OUTPUT_BYTES:]


def line_for_people(output: bytes) -> str:
    """Return the last line of an output; "" for the answer of one of our own programs."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    line = lines[-1] if lines else ""
    return "" if line.startswith(inside_answer.MARK.decode()) else hide_logins(line)[:200]


def _group_of(container: Any, limits: Limits) -> Optional[ControlGroup]:
    """Return the control group of a container, None where it cannot be seen."""
    process = container.attrs["State"].get("Pid")
    group = ControlGroup(process) if process else None
    # A group with another process limit is not the one that the engine made for the container.
    return group if group is not None and group.process_limit() == limits.pids else None


def _check_limits(group: Optional[ControlGroup], limits: Limits) -> None:
    """Raise LimitReached when the kernel refused a resource: continuing would only waste time."""
    if group is None:
        return
    if group.memory().kills:
        raise _memory_limit(limits)
    if group.refused_processes():
        raise LimitReached(
            f"{limits.purpose} started more than {limits.pids} processes and threads", "build_pids"
        )


def _memory_limit(limits: Limits) -> LimitReached:
    memory = f"{limits.memory_bytes >> 20} MiB of memory"
    error = LimitReached(f"{limits.purpose} needs more than {memory}", "build_memory_bytes")
    if limits.has_memory_of_job:
        error.hint = f"Slurm gave the job no more: {show_option('memory')}"
    return error


def final_state(container: Any, on_outage: Optional[Callable[[], None]] = None) -> dict[str, Any]:
    """Return the state of a container that ended; of a killed one, after up to a second for the reason.

    The engine learns of the kernel's kill and of the exit separately, and the kill may come second.
    """
    state: dict[str, Any] = container.attrs["State"]
    for _ in range(10 if state["ExitCode"] == KILLED_STATUS else 0):
        if state.get("OOMKilled"):
            break
        time.sleep(0.1)
        retry(container.reload, on_outage=on_outage)
        state = container.attrs["State"]
    return state
