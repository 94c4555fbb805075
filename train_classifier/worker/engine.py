"""The container engine: reaching it, outliving its restarts, and short-lived helper containers."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional, TypeVar

from train_classifier.errors import NotReady
from train_classifier.worker.host import Account

T = TypeVar("T")

LABEL = "train-classifier"
#: Seconds an engine may be away (a restart, an upgrade) before a job gives it up.
PATIENCE_S = 300.0
#: Seconds without an answer after which a call to the engine is given up.
CALL_TIMEOUT_S = 60
#: Bytes of a helper's output that are kept, at its end.
OUTPUT_BYTES = 1 << 20


def connect() -> Any:
    """Return a docker.DockerClient; DOCKER_HOST is respected.

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
        # Asks for the engine's version, and so whether it answers.
        client = docker.from_env(version="auto", timeout=CALL_TIMEOUT_S)
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


def remove(container: Any) -> None:
    """Kill and remove a container; one that is gone already is fine."""
    import docker.errors

    try:
        patiently(lambda: container.remove(force=True, v=True))
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        # 409: somebody else is removing it at this moment.
        if error.status_code != 409:
            raise


def remove_all(client: Any, job: str) -> list[str]:
    """Remove every container that carries the label of this job; returns their ids."""
    found = patiently(
        lambda: client.containers.list(all=True, filters={"label": f"{LABEL}.job={job}"}, ignore_removed=True)
    )
    for container in found:
        remove(container)
    return [container.id for container in found]


def run_helper(
    client: Any,
    image: str,
    command: Sequence[str],
    *,
    user: Optional[Account] = None,
    mounts: Sequence[Any] = (),
    environment: Optional[dict[str, str]] = None,
    labels: dict[str, str],
    network: str = "full",
    entrypoint: Optional[Sequence[str]] = None,
    timeout: Optional[float] = None,
    say: Optional[Callable[[str], None]] = None,
    check_cancel: Callable[[], None] = lambda: None,
    **options: Any,
) -> tuple[int, bytes]:
    """Run a build or a probe in a container and return its exit status and the end of its output.

    `user` None: root, with the engine's default capabilities, as package managers need; else all capabilities
    are dropped. `say` gets its last line now and then. The container is removed whatever happens: at the end,
    when `check_cancel` raises, and after `timeout` seconds (TimeoutError). `options` go to docker's create.
    """
    container = create_helper(
        client, image, command, user=user, mounts=mounts, environment=environment, labels=labels,
        network=network, entrypoint=entrypoint, **options,
    )  # fmt: skip
    try:
        return run_created(container, timeout=timeout, say=say, check_cancel=check_cancel)
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
    network: str = "full",
    entrypoint: Optional[Sequence[str]] = None,
    as_root: bool = False,
    **options: Any,
) -> Any:
    """Create the container of `run_helper`, not started; whoever calls this removes it (`remove`).

    `as_root`: uid 0 also where the image names another user.
    """
    from docker.types import LogConfig

    if as_root:
        options["user"] = "0"
    elif user is not None:
        options.setdefault("user", f"{user.uid}:{user.gid}")
        options.setdefault("cap_drop", ["ALL"])
    if entrypoint is not None:
        # Docker keeps the image's own entry point when it is given an empty list.
        options.setdefault("entrypoint", list(entrypoint) or [""])
    return patiently(
        lambda: client.containers.create(
            image,
            list(command),
            mounts=list(mounts),
            environment=environment or {},
            labels=labels,
            network_mode="none" if network == "none" else "bridge",
            security_opt=["no-new-privileges"],
            init=True,
            log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "2"}),
            **options,
        )
    )


def run_created(
    container: Any,
    *,
    timeout: Optional[float] = None,
    say: Optional[Callable[[str], None]] = None,
    check_cancel: Callable[[], None] = lambda: None,
) -> tuple[int, bytes]:
    """Start a created container, wait for its end and return its exit status and the end of its output."""
    began = spoken = time.monotonic()
    pause = 0.02
    container.start()
    while True:
        patiently(container.reload, check_cancel)
        if container.status in ("exited", "dead"):
            break
        check_cancel()
        now = time.monotonic()
        if timeout is not None and now - began > timeout:
            raise TimeoutError(f"no end after {timeout:.0f} s")
        if say is not None and now - spoken > 2:
            spoken = now
            last = patiently(lambda: container.logs(tail=1), check_cancel).decode("utf-8", "replace").strip()
            if last:
                say(last.splitlines()[-1][-200:])
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    output = patiently(lambda: container.logs(tail=20000), check_cancel)
    return int(container.attrs["State"]["ExitCode"]), output[-OUTPUT_BYTES:]
