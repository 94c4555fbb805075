"""Containers of our own beside a job's: builds and looks into an image, within limits."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.containers.engine import patiently, remove
from train_classifier.worker.system.cgroup import ControlGroup
from train_classifier.worker.system.host import Account, Limits

#: Bytes of a helper's output that are kept, at its end.
OUTPUT_BYTES = 1 << 20


#: What apt-get and dpkg need as root: files of all owners, their own accounts, file capabilities.
ROOT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID", "SYS_CHROOT",
)  # fmt: skip


KILLED_STATUS = 137


class LimitReached(NoEnvironment):
    """A build or a check wanted more than the host lets it have."""

    def __init__(self, reason: str, setting: str) -> None:
        super().__init__(
            reason, f"raise {setting} in host.json of the host (role variable training_host_{setting})"
        )


def no_gpus(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable that keeps the NVIDIA runtime's hands off a container.

    Where that runtime is the engine's default, an image with NVIDIA_VISIBLE_DEVICES=all (those with CUDA are
    such) gets every card, asked for or not. Not set where cards are asked for by the runtime itself; those
    by CDI come without it.
    """
    asked = options.get("device_requests") or ()
    if any(request.get("Driver") != "cdi" for request in asked):
        return {}
    return {"NVIDIA_VISIBLE_DEVICES": "void"}


def run_helper(
    client: Any,
    image: str,
    command: Sequence[str],
    *,
    user: Optional[Account] = None,
    mounts: Sequence[Any] = (),
    environment: Optional[dict[str, str]] = None,
    labels: dict[str, str],
    limits: Limits,
    network: str = "full",
    entrypoint: Optional[Sequence[str]] = None,
    timeout: Optional[float] = None,
    say: Optional[Callable[[str], None]] = None,
    check_cancel: Callable[[], None] = lambda: None,
    **options: Any,
) -> tuple[int, bytes]:
    """Run a build or a probe in a container and return its exit status and the end of its output.

    `user` None: root, with the capabilities that package managers need; else all capabilities are dropped.
    `say` gets its last line now and then. The container is removed whatever happens: at the end, when
    `check_cancel` raises, after `timeout` seconds (TimeoutError), and at a limit (LimitReached). `timeout`
    None is that of the limits. `options` go to docker's create.
    """
    container = create_helper(
        client, image, command, user=user, mounts=mounts, environment=environment, labels=labels,
        limits=limits, network=network, entrypoint=entrypoint, **options,
    )  # fmt: skip
    try:
        return run_created(container, limits, timeout=timeout, say=say, check_cancel=check_cancel)
    finally:
        remove(container)


def create_helper(
    client: Any,
    image: str,
    command: Sequence[str],
    *,
    user: Optional[Account] = None,
    mounts: Sequence[Any] = (),
    environment: Optional[dict[str, str]] = None,
    labels: dict[str, str],
    limits: Limits,
    network: str = "full",
    entrypoint: Optional[Sequence[str]] = None,
    as_root: bool = False,
    hide_gpus: bool = True,
    **options: Any,
) -> Any:
    """Create the container of `run_helper`, not started; whoever calls this removes it (`remove`).

    `as_root`: uid 0 also where the image names another user. `hide_gpus`: see `no_gpus`.
    """
    from docker.types import LogConfig

    if as_root:
        options["user"] = "0"
    elif user is not None:
        options["user"] = f"{user.uid}:{user.gid}"
    if user is None:
        options["cap_add"] = list(ROOT_CAPABILITIES)
    if entrypoint is not None:
        # Docker keeps the image's own entry point when it is given an empty list.
        options.setdefault("entrypoint", list(entrypoint) or [""])
    return patiently(
        lambda: client.containers.create(
            image,
            list(command),
            mounts=list(mounts),
            environment={**(environment or {}), **(no_gpus(options) if hide_gpus else {})},
            labels=labels,
            network_mode="none" if network == "none" else "bridge",
            security_opt=["no-new-privileges"],
            cap_drop=["ALL"],
            pids_limit=limits.pids,
            # Without the second limit the same again could go to swap.
            mem_limit=limits.memory_bytes,
            memswap_limit=limits.memory_bytes,
            nano_cpus=int(limits.cpus * 1e9),
            init=True,
            log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "2"}),
            **options,
        )
    )


def start_once(container: Any) -> None:
    """Start a created container; after an outage the engine may have started it before it could say so."""
    container.reload()
    if container.status == "created":
        container.start()


def run_created(
    container: Any,
    limits: Limits,
    *,
    timeout: Optional[float] = None,
    say: Optional[Callable[[str], None]] = None,
    check_cancel: Callable[[], None] = lambda: None,
) -> tuple[int, bytes]:
    """Start a created container, wait for its end and return its exit status and the end of its output.

    Raises LimitReached as soon as it was refused a process or memory, TimeoutError.
    """
    began = spoken = time.monotonic()
    timeout = limits.timeout_s if timeout is None else timeout
    group: Optional[ControlGroup] = None
    pause = 0.02
    patiently(lambda: start_once(container), check_cancel)
    while True:
        patiently(container.reload, check_cancel)
        if container.status in ("exited", "dead"):
            break
        check_cancel()
        group = group or _group_of(container, limits)
        _check_limits(group, limits)
        now = time.monotonic()
        if now - began > timeout:
            raise TimeoutError(f"no end after {timeout:.0f} s")
        if say is not None and now - spoken > 2:
            spoken = now
            last = patiently(lambda: container.logs(tail=1), check_cancel).decode("utf-8", "replace").strip()
            if last:
                say(last.splitlines()[-1][-200:])
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    if _ran_out_of_memory(container):
        raise _memory_limit(limits)
    output = patiently(lambda: container.logs(tail=20000), check_cancel)
    return int(container.attrs["State"]["ExitCode"]), output[-OUTPUT_BYTES:]


def _group_of(container: Any, limits: Limits) -> Optional[ControlGroup]:
    """Return the control group of a container, None where it cannot be seen."""
    process = container.attrs["State"].get("Pid")
    group = ControlGroup(process) if process else None
    # Where the engine counts processes otherwise than we do, this is another group.
    return group if group is not None and group.process_limit() == limits.pids else None


def _check_limits(group: Optional[ControlGroup], limits: Limits) -> None:
    """Raise LimitReached when the kernel refused something: what goes on from there only wastes time."""
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
    return LimitReached(f"{limits.purpose} needs more than {memory}", "build_memory_bytes")


def _ran_out_of_memory(container: Any) -> bool:
    """Tell whether the kernel killed something in a container that ended; the engine may hear of it late."""
    state = container.attrs["State"]
    for _ in range(10 if state["ExitCode"] == KILLED_STATUS else 0):
        if state.get("OOMKilled"):
            break
        time.sleep(0.1)
        patiently(container.reload)
        state = container.attrs["State"]
    return bool(state.get("OOMKilled"))
