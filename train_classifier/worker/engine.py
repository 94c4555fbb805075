"""The container engine: reaching it, outliving its restarts, and short-lived helper containers."""

import calendar
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, TypeVar

from train_classifier.errors import NoEnvironment, NotReady
from train_classifier.worker.cgroup import ControlGroup
from train_classifier.worker.host import Account, Limits

T = TypeVar("T")

LABEL = "train-classifier"
#: Seconds an engine may be away (a restart, an upgrade) before a job gives it up.
PATIENCE_S = 300.0
#: Seconds after which a container of no job (a doctor's probe) has outlived its maker.
STRAY_S = 7200.0
#: Seconds without an answer after which a call to the engine is given up.
CALL_TIMEOUT_S = 60
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


def connect(timeout: Optional[int] = CALL_TIMEOUT_S) -> Any:
    """Return a docker.DockerClient whose calls wait `timeout` seconds; DOCKER_HOST is respected.

    Raises NotReady with the reason: no SDK, no right to use the engine, engine down.
    """
    try:
        _import_sdk()
        import docker
    except ImportError as error:
        raise NotReady(
            f"the Docker SDK for Python cannot be imported: {error}", "apt-get install python3-docker"
        ) from error
    try:
        # requests takes None for "as long as it takes", though the SDK's types do not say so.
        options: dict[str, Any] = {"version": "auto", "timeout": timeout}
        # Asks for the engine's version, and so whether it answers.
        client = docker.from_env(**options)
    except Exception as error:  # The SDK wraps refusals in whatever its HTTP layers raise.
        raise _unreachable(error) from error
    return client


def _import_sdk() -> None:
    """Import the Docker SDK without setuptools, which would take three times as long as the SDK itself.

    Older SDKs import distutils, and where setuptools is installed its own copy of it comes before Python's,
    with all of setuptools behind it.
    """
    kept = list(sys.meta_path)
    sys.meta_path[:] = [finder for finder in kept if type(finder).__name__ != "DistutilsMetaFinder"]
    try:
        import docker  # noqa: F401
    except ImportError:
        # Python 3.12 has no distutils any more, and Debian packs it apart: then setuptools' is the only one.
        sys.meta_path[:] = kept
        for name in [name for name in sys.modules if name.partition(".")[0] == "distutils"]:
            del sys.modules[name]


def _unreachable(error: BaseException) -> NotReady:
    text = str(error)
    if "Permission denied" in text or "PermissionError" in text:
        return NotReady(
            "this user may not use Docker",
            "add the user to the docker group (usermod -aG docker USER) and log in again; that equals root",
            text,
        )
    return NotReady(
        "the Docker engine does not answer", "is it installed and running? systemctl status docker", text
    )


def is_outage(error: BaseException) -> bool:
    """Tell whether an exception means that the engine went away, not that it refused."""
    import docker.errors
    import requests.exceptions

    if isinstance(error, docker.errors.APIError):
        return error.status_code in (502, 503, 504)
    return isinstance(error, (requests.exceptions.RequestException, ConnectionError, NotReady))


def patiently(
    call: Callable[[], T],
    check: Optional[Callable[[], None]] = None,
    away: Optional[Callable[[], None]] = None,
    patience: float = PATIENCE_S,
) -> T:
    """Return call(), trying again while the engine is away for up to `patience` seconds.

    `check` is called between tries and may raise; `away` once, when the engine was first missed. Anything
    but an outage, and the outage that lasts, is raised as it came.
    """
    began = time.monotonic()
    told = False
    while True:
        try:
            return call()
        except Exception as error:
            if not is_outage(error) or time.monotonic() - began > patience:
                raise
        if away is not None and not told:
            away()
        told = True
        if check is not None:
            check()
        time.sleep(0.2)


def aside(call: Callable[[], T], check: Callable[[], None]) -> T:
    """Return call(), made in a thread of its own since it may take long; `check` meanwhile may raise.

    A call that was left alone ends with this process.
    """
    done = threading.Event()
    found: list[T] = []
    failed: list[BaseException] = []

    def go() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=go, name="engine", daemon=True).start()
    while not done.wait(0.1):
        check()
    if failed:
        raise failed[0]
    return found[0]


def root(client: Any) -> str:
    """Return the folder in which the engine keeps images and containers."""
    return str(patiently(client.info).get("DockerRootDir") or "")


def incarnation() -> Optional[tuple[int, int]]:
    """Return what changes when the engine of this machine restarts; None where it does not show."""
    try:
        found = os.stat("/var/run/docker.pid")
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def labels(
    kind: str, *, job: str = "", uid: int = 0, folder: str = "", gpus: Sequence[str] = ()
) -> dict[str, str]:
    """Return the labels of a container, image or volume of ours; kind is job, build, probe or image."""
    return {
        LABEL: "1",
        f"{LABEL}.kind": kind,
        f"{LABEL}.job": job,
        f"{LABEL}.uid": str(uid),
        f"{LABEL}.gpus": ",".join(gpus),
        f"{LABEL}.dir": folder,
    }


def remove(container: Any, patience: float = PATIENCE_S) -> None:
    """Kill and remove a container; one that is gone already is fine."""
    import docker.errors

    try:
        patiently(lambda: container.remove(force=True, v=True), patience=patience)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        # 409: somebody else is removing it at this moment.
        if error.status_code != 409:
            raise


def remove_all(client: Any, job: str, patience: float = PATIENCE_S) -> list[str]:
    """Remove every container that carries the label of this job; returns their ids."""
    wanted = {"label": f"{LABEL}.job={job}"}
    found = patiently(
        lambda: client.containers.list(all=True, filters=wanted, ignore_removed=True), patience=patience
    )
    for container in found:
        remove(container, patience)
    return [container.id for container in found]


def is_stray(container: Any) -> bool:
    """Tell whether a container of ours belongs to no job and is older than any such lives: its maker died."""
    mine = container.labels
    if LABEL not in mine or mine.get(f"{LABEL}.job") or mine.get(f"{LABEL}.dir"):
        return False
    # 2026-01-31T12:00:00.123456789Z; a container from the summary of a list has seconds since the epoch.
    made = container.attrs.get("Created")
    if isinstance(made, str):
        made = calendar.timegm(time.strptime(made.partition(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S"))
    return time.time() - float(made or 0) > STRAY_S


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
