"""Checks the container engine for jobs, over its socket, because importing the SDK takes long."""

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.options import show_option
from train_classifier.worker.checks.finding import Finding, fail, ok, warn
from train_classifier.worker.containers import engine

TIMEOUT_S = 20.0
#: The oldest tested version, that of Debian 12.
LEAST = (20, 10)
#: Y where the kernel has AppArmor; Docker uses it only where its parser is installed.
APPARMOR = Path("/sys/module/apparmor/parameters/enabled")


def ask() -> tuple[dict[str, Any], str]:
    """Return the engine's /info, and the name of its server. Raises OSError, ValueError, NotReady."""
    path = engine.socket_path()
    if path is None:
        client = engine.connect()
        return client.info(), str(client.version().get("Components"))
    headers, answer = engine.ask(path, "/info", TIMEOUT_S)
    return json.loads(answer), headers.get("server", "")


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
    address = os.environ.get("DOCKER_HOST") or engine.SOCKET
    try:
        info, server = ask()
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
    return info, list(_findings(info, server))


def _findings(info: dict[str, Any], server: str) -> list[Finding]:
    name, role = "engine", "install Docker from packages with the role docker_engine"
    options = " ".join(info.get("SecurityOptions") or ())
    root = str(info.get("DockerRootDir") or "")
    text = str(info.get("ServerVersion") or "")
    numbers = re.match(r"(\d+)\.(\d+)", text)
    if re.search("podman|libpod", server, re.IGNORECASE):
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
    if "name=apparmor" not in options and _kernel_has_apparmor():
        findings.append(
            warn(
                "engine-apparmor",
                "this kernel has AppArmor, but the engine does not confine containers by it",
                "on the host: apt-get install apparmor, then restart the engine while no job runs",
            )
        )
    return findings


def _kernel_has_apparmor() -> bool:
    try:
        return APPARMOR.read_text().strip() == "Y"
    except OSError:
        return False


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
