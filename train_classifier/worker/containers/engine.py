"""The container engine: connecting to it, retrying during its restarts, and removing its leftovers."""

import calendar
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional, TypeVar

from train_classifier.core.errors import NotReady

T = TypeVar("T")

LABEL = "train-classifier"
#: Seconds that an engine may be unreachable (a restart, an upgrade) before a job fails.
PATIENCE_S = 300.0
#: Age in seconds after which a container without a job (a probe of `doctor`) is a leftover.
STRAY_S = 7200.0
#: Seconds without an answer after which a call to the engine is given up.
CALL_TIMEOUT_S = 60


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
        # In requests, None means no time limit, although the SDK's types do not include it.
        options: dict[str, Any] = {"version": "auto", "timeout": timeout}
        # Asks for the engine's version, and so whether it answers.
        client = docker.from_env(**options)
    except Exception as error:  # The SDK's HTTP layers raise many types for a refusal.
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
        # Python 3.12 has no distutils, and Debian packages it separately: only setuptools' copy is left then.
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
    """Tell whether an exception means that the engine is unreachable, not that it refused the call."""
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

    `check` is called between tries and may raise; `away` is called once, after the first failed try. Errors
    that are not an outage, and an outage that lasts longer, are raised unchanged.
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
    """Return call(), run in its own thread because it may take long; `check` may raise meanwhile.

    If `check` raises, the call continues in its thread, at most until this process ends.
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
    """Return a value that changes when this machine's engine restarts; None where none is visible."""
    try:
        found = os.stat("/var/run/docker.pid")
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def labels(
    kind: str, *, job: str = "", uid: int = 0, folder: str = "", gpus: Sequence[str] = ()
) -> dict[str, str]:
    """Return the labels of a container, image or volume; kind is job, build, probe or image."""
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
        # 409: another process is removing it at this moment.
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
    """Tell whether a container of this program has no job and is too old to be in use: its creator died."""
    mine = container.labels
    if LABEL not in mine or mine.get(f"{LABEL}.job") or mine.get(f"{LABEL}.dir"):
        return False
    # 2026-01-31T12:00:00.123456789Z; a container from the summary of a list has seconds since the epoch.
    made = container.attrs.get("Created")
    if isinstance(made, str):
        made = calendar.timegm(time.strptime(made.partition(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S"))
    return time.time() - float(made or 0) > STRAY_S
