"""The hosts that a command uses, and which of several a job goes to."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_classifier.ansible_bridge import inventory as inventories
from train_classifier.cli.console import Console
from train_classifier.controller import find_jobs
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import options, text
from train_classifier.core.errors import NotReady, TrainClassifierError
from train_classifier.request import precedence, settings_file
from train_classifier.request.flags import own_settings

#: Seconds for the answer of a host when one of several is chosen; a slower one is passed over.
CHOICE_S = 60.0


def hosts(inventory: str | None, host: str | None) -> list[RemoteHost]:
    """Return the hosts of the inventory, or those named; without both the caller's own (`hosts add`).

    Ctrl-C does not reach their connections.

    Warns of variables with our prefix that no command reads.
    """
    for warning in precedence.unread_variables(os.environ):
        Console().event("message", level="warning", text=warning)
    named_host = host
    host = host if host is not None else os.environ.get(options.variable("host")) or None
    own_file = own_settings(os.environ)
    own_hosts = settings_file.load_own(own_file).hosts if own_file is not None else ()
    inventory_path = inventories.resolve(inventory, os.environ, Path.cwd(), host, own_hosts)
    flags = inventories.flags(inventory_path if inventory is not None else None, named_host)
    targets = inventories.hosts(inventory_path, host)
    return [target.connect(own_session=True, flags=flags) for target in targets]


def choose(
    hosts: Sequence[RemoteHost], gpus: int | str, min_vram_mib: int | None
) -> tuple[RemoteHost, str, list[TrainClassifierError]]:
    """Return the host for a job, why it is this one, and the failures of hosts that were passed over.

    The first that has enough free GPUs now, else the one with the fewest jobs that wait, else the first that
    is ready. All are asked at once. Raises the first host's failure when none is ready.
    """
    request = {"verb": "check", "gpus": gpus, "min_vram_mib": min_vram_mib, "image": None, "deep": False}
    answers = find_jobs.ask_hosts(hosts, lambda host: host.call(request, timeout=CHOICE_S))
    ready: list[tuple[RemoteHost, dict[str, Any]]] = []
    failures: list[TrainClassifierError] = []
    for host, answer in answers:
        if isinstance(answer, TrainClassifierError):
            failures.append(answer)
        elif answer.get("ready"):
            ready.append((host, answer))
        else:
            failures.append(_not_ready(host, answer))
    if not ready:
        raise failures[0]
    wanted = 1 if gpus == "auto" else int(gpus)
    for host, answer in ready:
        free = _free_gpus(answer)
        if wanted and free >= wanted:
            return host, f"{free} of its GPUs {'is' if free == 1 else 'are'} free", failures
    waiting = [(host, answer) for host, answer in ready if isinstance(answer.get("queued"), int)]
    if wanted and waiting:
        # The first of those with equally many.
        host, answer = min(waiting, key=lambda pair: pair[1]["queued"])
        reason = f"no host has enough free GPUs, and the fewest jobs wait there: {answer['queued']}"
        return host, reason, failures
    return ready[0][0], "the first that is ready", failures


def _free_gpus(answer: dict[str, Any]) -> int:
    """Return the GPUs that no job and no process has, once those that wait in the queue got theirs."""
    free = sum(not gpu.get("busy_by") for gpu in answer.get("gpus") or ())
    return max(0, free - (answer.get("queued") or 0))


def _not_ready(host: RemoteHost, answer: dict[str, Any]) -> TrainClassifierError:
    for check in answer.get("checks") or ():
        if check.get("status") == "fail":
            return NotReady(f"{host.name}: {text.clean(str(check.get('message')))}", check.get("hint"))
    return NotReady(f"{host.name} is not ready.")
