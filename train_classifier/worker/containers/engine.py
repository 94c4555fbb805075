"""The container engine: connecting to it, retrying during its restarts, and removing its leftovers."""

import calendar
import importlib
import importlib.util
import os
import re
import socket
import sys
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from train_classifier.core.errors import NotReady

T = TypeVar("T")

LABEL = "train-classifier"
#: Label of a build's container: the folder of the build. Only one runs there, so leftovers can be identified.
BUILD_FOLDER = f"{LABEL}.place"
#: Seconds that an engine may be unreachable (a restart, an upgrade) before a job fails.
RETRY_S = 300.0
#: Age in seconds after which a container without a job (a probe of `doctor`) is a leftover.
LEFTOVER_S = 7200.0
#: Seconds without an answer after which a call to the engine is given up.
CALL_TIMEOUT_S = 60
SOCKET = "/var/run/docker.sock"
#: What the SDK and its HTTP library import, but use only for text without encoding, names of hosts that are
#: not ASCII, and attaching by websocket. Each version is one that all versions of that library accept.
RARELY_USED = {"chardet": "4.0.0", "charset_normalizer": "2.0.0", "idna": "2.10", "websocket": "1.0"}


class UnseenPath(NotReady):
    """The engine cannot mount a path of this process, for which its files are those of another machine."""

    def __init__(self, subject: str, more_hint: str = "") -> None:
        hint = (
            "where this program runs in a container with the socket of its host, "
            "mount it from the host at the same path"
        )
        super().__init__(f"the Docker engine does not see {subject}", hint + more_hint)


def unseen_path(error: Any) -> Optional[UnseenPath]:
    """Return the failure for the engine's refusal to mount a path, None for another refusal."""
    match = re.search(r"bind source path does not exist: (/.*)", str(error.explanation or error))
    return UnseenPath(match[1].strip()) if match else None


def socket_path() -> Optional[str]:
    """Return the path of the engine's socket; None where the engine is reached in another way."""
    address = os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}"
    return address[len("unix://") :] if address.startswith("unix://") else None


def ask(path: str, question: str, timeout: Optional[float]) -> tuple[dict[str, str], bytes]:
    """Return the engine's answer at a socket as headers, with lower-case names, and text. Needs no SDK.

    HTTP/1.0 without http.client, which would import mail and TLS modules. Raises OSError, ValueError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.sendall(f"GET {question} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not re.match(r"HTTP/1\.[01] 200\b", first):
        raise ValueError(f"{question} answered {first}: {body.decode('utf-8', 'replace')}"[:200])
    fields = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in fields}, body


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
        # "auto" asks for the versions of all parts of the engine; some engines start programs to answer that.
        path = socket_path()
        version = ask(path, "/_ping", timeout)[0].get("api-version", "auto") if path else "auto"
        # In requests, None means no time limit, although the SDK's types do not include it.
        options: dict[str, Any] = {"version": version, "timeout": timeout}
        client = docker.from_env(**options)
    except Exception as error:  # The SDK's HTTP layers raise many types for a refusal.
        raise _unreachable(error) from error
    return client


class _LateModule(types.ModuleType):
    """A module that is imported when something of it is used."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name)
        self.__version__ = version

    def __getattr__(self, name: str) -> Any:
        """Return a name of the module itself."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def _import_sdk() -> None:
    """Import the Docker SDK in half the time: without what it imports and seldom or never uses.

    Older SDKs import distutils, and where setuptools is installed its own copy of it comes before Python's,
    with all of setuptools behind it.
    """
    if "docker" in sys.modules:
        return
    finders = list(sys.meta_path)
    sys.meta_path[:] = [finder for finder in finders if type(finder).__name__ != "DistutilsMetaFinder"]
    late = [
        _LateModule(name, version)
        for name, version in RARELY_USED.items()
        if name not in sys.modules and importlib.util.find_spec(name) is not None
    ]
    sys.modules.update({module.__name__: module for module in late})
    try:
        import docker  # noqa: F401
    except ImportError:
        # Python 3.12 has no distutils, and Debian packages it separately: only setuptools' copy is left then.
        sys.meta_path[:] = finders
        for name in [name for name in sys.modules if name.partition(".")[0] == "distutils"]:
            del sys.modules[name]
    finally:
        for module in late:
            sys.modules.pop(module.__name__, None)


def _unreachable(error: BaseException) -> NotReady:
    text = str(error)
    if "Permission denied" in text or "PermissionError" in text:
        return NotReady(
            "this user may not use Docker",
            "add the user to training_host_users and run site.yml, then log in again; that equals root",
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


def retry(
    call: Callable[[], T],
    check_cancel: Optional[Callable[[], None]] = None,
    on_outage: Optional[Callable[[], None]] = None,
    limit_s: float = RETRY_S,
) -> T:
    """Return call(), trying again while the engine is unreachable for up to `limit_s` seconds.

    `check_cancel` is called between tries and may raise; `on_outage` is called once, after the first failed
    try. Errors that are not an outage, and an outage that lasts longer, are raised unchanged.
    """
    began = time.monotonic()
    reported = False
    while True:
        try:
            return call()
        except Exception as error:
            if not is_outage(error) or time.monotonic() - began > limit_s:
                raise
        if on_outage is not None and not reported:
            on_outage()
        reported = True
        if check_cancel is not None:
            check_cancel()
        time.sleep(0.2)


def run_in_thread(call: Callable[[], T], check_cancel: Callable[[], None]) -> T:
    """Return call(), run in its own thread because it may take long; `check_cancel` may raise meanwhile.

    If `check_cancel` raises, the call continues in its thread, at most until this process ends.
    """
    ended = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="engine", daemon=True).start()
    while not ended.wait(0.1):
        check_cancel()
    if errors:
        raise errors[0]
    return results[0]


def folders(info: dict[str, Any], root: Path = Path("/")) -> list[str]:
    """Return the folders of the engine: its own, and containerd's where that keeps the images (Docker 29).

    `info` is the engine's answer, which does not name containerd's folder; `root` is the host's.
    """
    own = str(info.get("DockerRootDir") or "")
    kinds = [str(row[-1]) for row in info.get("DriverStatus") or () if row]
    if not own or not any(kind.startswith("io.containerd.snapshotter") for kind in kinds):
        return [own] if own else []
    if str((info.get("Containerd") or {}).get("Address")).endswith("/docker/containerd/containerd.sock"):
        # The engine started this containerd itself.
        return [own, f"{own}/containerd/daemon"]
    try:
        with open(root / "etc/containerd/config.toml", encoding="utf-8", errors="replace") as file:
            settings = file.read(100_000)
    except OSError:
        settings = ""
    # The keys before the first table are containerd's own.
    general = re.split(r"^\s*\[", settings, maxsplit=1, flags=re.MULTILINE)[0]
    folder = re.search(r"""^\s*root\s*=\s*["'](/[^"'\n]*)["']""", general, re.MULTILINE)
    return [own, folder[1] if folder else "/var/lib/containerd"]


def process_identity() -> Optional[tuple[int, int]]:
    """Return a value that changes when this machine's engine restarts; None where none is visible."""
    try:
        status = os.stat("/var/run/docker.pid")
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def remove_build_containers(client: Any, folder: str) -> None:
    """Remove the containers that a killed worker's build left; the caller holds the lock of the folder."""
    label = f"{BUILD_FOLDER}={folder}"
    for container in retry(lambda: client.containers.list(all=True, filters={"label": label})):
        remove(container)


def labels(
    kind: str, *, job: str = "", uid: int = 0, folder: str = "", gpus: Sequence[str] = ()
) -> dict[str, str]:
    """Return the labels of a container, image or volume; kind is job, build, probe or image.

    Where Slurm started this process there is its number of the job: the node's epilog removes what has it.
    """
    number = os.environ.get("SLURM_JOB_ID", "")
    # Containers inherit the labels of their image, which outlives the job.
    from_slurm = {f"{LABEL}.slurm": number} if number and kind != "image" else {}
    return {
        **from_slurm,
        LABEL: "1",
        f"{LABEL}.kind": kind,
        f"{LABEL}.job": job,
        f"{LABEL}.uid": str(uid),
        f"{LABEL}.gpus": ",".join(gpus),
        f"{LABEL}.dir": folder,
    }


def remove(container: Any, limit_s: float = RETRY_S) -> None:
    """Kill and remove a container; one that is gone already is fine."""
    import docker.errors

    try:
        retry(lambda: container.remove(force=True, v=True), limit_s=limit_s)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        # 409: another process is removing it at this moment.
        if error.status_code != 409:
            raise


def remove_all(client: Any, job: str, limit_s: float = RETRY_S) -> list[str]:
    """Remove every container that carries the label of this job; returns their ids."""
    filters = {"label": f"{LABEL}.job={job}"}
    containers = retry(
        lambda: client.containers.list(all=True, filters=filters, ignore_removed=True), limit_s=limit_s
    )
    for container in containers:
        remove(container, limit_s)
    return [container.id for container in containers]


def is_leftover(container: Any) -> bool:
    """Tell whether a container of this program has no job and is too old to be in use: its creator died."""
    values = container.labels
    if LABEL not in values or values.get(f"{LABEL}.job") or values.get(f"{LABEL}.dir"):
        return False
    # 2026-01-31T12:00:00.123456789Z; a container from the summary of a list has seconds since the epoch.
    created = container.attrs.get("Created")
    if isinstance(created, str):
        created = calendar.timegm(time.strptime(created.partition(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S"))
    return time.time() - float(created or 0) > LEFTOVER_S
