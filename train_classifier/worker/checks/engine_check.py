"""Checks the container engine for jobs, over its socket, because importing the SDK takes long."""

import importlib.util
import json
import os
import re
import socket
from typing import Any, Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.options import show_option
from train_classifier.worker.checks.finding import Finding, fail, ok, warn
from train_classifier.worker.containers import engine

SOCKET = "/var/run/docker.sock"
TIMEOUT_S = 20.0
#: The oldest tested version, that of Debian 12.
LEAST = (20, 10)


def _get(address: str, path: str) -> dict[str, Any]:
    """Return the engine's answer. HTTP/1.0 without http.client, which would import mail and TLS modules."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(address)
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.[01] 200\b", head):
        message = (head.partition(b"\r\n")[0] + b": " + body)[:200].decode("utf-8", "replace")
        raise ValueError(f"{path} answered {message}")
    data: dict[str, Any] = json.loads(body)
    return data


def ask() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the engine's /info and /version. Raises OSError, ValueError, or NotReady through the SDK."""
    address = os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}"
    if not address.startswith("unix://"):
        client = engine.connect()
        return client.info(), client.version()
    path = address[len("unix://") :]
    return _get(path, "/info"), _get(path, "/version")


def sdk() -> Finding:
    """Check that the Docker SDK for Python is installed, without importing it, which takes long."""
    if importlib.util.find_spec("docker") is None:
        return fail(
            "docker-sdk",
            "this host's Python lacks the Docker SDK",
            "on the host: apt-get install python3-docker",
        )
    return ok("docker-sdk", "the Docker SDK for Python is installed")


def check() -> tuple[Optional[dict[str, Any]], list[Finding]]:
    """Return the engine's /info, None when it does not answer, and the findings about it."""
    name = "engine"
    address = os.environ.get("DOCKER_HOST") or SOCKET
    try:
        info, version = ask()
    except PermissionError:
        return None, [
            fail(
                name,
                f"this user may not use Docker ({address})",
                "add the user to training_host_users and run site.yml, then log in again; that equals root",
            )
        ]
    except FileNotFoundError:
        return None, [
            fail(
                name,
                f"there is no container engine: {address} is missing",
                "run the role docker_engine on this host",
            )
        ]
    except (OSError, ValueError, NotReady) as error:
        reason = getattr(error, "reason", None) or error
        return None, [
            fail(name, f"the Docker engine does not answer: {reason}", "on the host: systemctl status docker")
        ]
    return info, list(_findings(info, version))


def _findings(info: dict[str, Any], version: dict[str, Any]) -> list[Finding]:
    name, role = "engine", "install Docker from packages with the role docker_engine"
    components = " ".join(str(part.get("Name", "")) for part in version.get("Components") or ())
    options = " ".join(info.get("SecurityOptions") or ())
    root = str(info.get("DockerRootDir") or "")
    text = str(info.get("ServerVersion") or version.get("Version") or "")
    numbers = re.match(r"(\d+)\.(\d+)", text)
    if "podman" in components.lower():
        return [fail(name, "this is podman's emulation of Docker, which cannot run jobs", role)]
    if "/snap/" in root:
        return [fail(name, "this is Docker from a snap, which sees neither state folders nor GPUs", role)]
    if "name=userns" in options:
        hint = "remove userns-remap from /etc/docker/daemon.json and restart the engine"
        return [
            fail(name, "the engine maps users (userns-remap): a job's files would belong to nobody", hint)
        ]
    if "name=rootless" in options:
        return [fail(name, "this is rootless Docker: a job's files would belong to other uids", role)]
    if numbers and (int(numbers[1]), int(numbers[2])) < LEAST:
        return [fail(name, f"Docker {text} is too old, wanted {LEAST[0]}.{LEAST[1]} or newer", role)]
    findings = [ok(name, f"Docker {text}")]
    if info.get("OSType") not in (None, "linux"):
        findings = [fail(name, f"the engine runs {info.get('OSType')} containers", role)]
    if info.get("MemoryLimit") is False:
        findings.append(
            warn(
                "engine-limits",
                f"the kernel cannot limit the memory of containers: {show_option('memory')} has no effect",
            )
        )
    return findings


def summary(info: Optional[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """Return the part of the answer of `check` about the engine."""
    if info is None:
        return None
    return {
        "version": info.get("ServerVersion"),
        "cdi": bool(info.get("CDISpecDirs")),
        "runtime": "nvidia" in (info.get("Runtimes") or {}),
        "root": info.get("DockerRootDir"),
    }
