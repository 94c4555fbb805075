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
from train_classifier.core.report.facts import mapping
from train_classifier.core.report.metrics import number
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
    inventory_path, host = find_inventory(inventory, host)
    flags = inventories.flags(inventory_path if inventory is not None else None, named_host)
    targets = inventories.hosts(inventory_path, host)
    return [target.connect(own_session=True, flags=flags) for target in targets]


def find_inventory(inventory: str | None, host: str | None) -> tuple[str | None, str | None]:
    """Return the inventory that a command uses, None: this machine, and its host or pattern, None: all."""
    host = host if host is not None else os.environ.get(options.variable("host")) or None
    own_file = own_settings(os.environ)
    own_hosts = settings_file.load_own(own_file).hosts if own_file is not None else ()
    return inventories.resolve(inventory, os.environ, Path.cwd(), host, own_hosts), host


def choose(
    hosts: Sequence[RemoteHost], gpus: int | str, min_vram_mib: int | None
) -> tuple[RemoteHost, str, list[TrainClassifierError]]:
    """Return the host for a job, why it is this one, and the failures of hosts that were passed over.

    The first that has enough free GPUs now, else the one with the fewest jobs that wait, else the first that
    is ready. All are asked at once. Raises a failure with the code of the first host's when none is ready.
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
        reasons = " ".join(failure.reason for failure in failures)
        raise TrainClassifierError(
            f"None of the {len(hosts)} hosts can take the job: {reasons}",
            failures[0].hint,
            code=failures[0].code,
        )
    gpu_count = 1 if gpus == "auto" else int(gpus)
    for host, answer in ready:
        free = _free_gpus(answer, min_vram_mib or 0)
        if gpu_count and free >= gpu_count:
            return host, f"{free} of its GPUs {'is' if free == 1 else 'are'} free", failures
    waiting = [(queued, host) for host, answer in ready if (queued := _queued(answer)) is not None]
    if gpu_count and waiting:
        # The first of those with equally many.
        queued, host = min(waiting, key=lambda pair: pair[0])
        return host, f"no host has enough free GPUs, and the fewest jobs wait there: {queued}", failures
    return ready[0][0], "the first that is ready", failures


def _free_gpus(answer: dict[str, Any], min_vram_mib: int) -> int:
    """Return the GPUs that no job and no process has, once those that wait in the queue got theirs.

    Only those with as much free memory count.
    """
    gpus = answer.get("gpus")
    cards = map(mapping, gpus) if isinstance(gpus, list) else ()
    free = sum(
        not card.get("busy_by") and (number(card.get("memory_free_mib")) or 0) >= min_vram_mib
        for card in cards
    )
    return max(0, free - (_queued(answer) or 0))


def _queued(answer: dict[str, Any]) -> int | None:
    queued = answer.get("queued")
    return queued if isinstance(queued, int) else None


def _not_ready(host: RemoteHost, answer: dict[str, Any]) -> TrainClassifierError:
    checks = answer.get("checks")
    for check in map(mapping, checks if isinstance(checks, list) else ()):
        if check.get("status") == "fail":
            hint = check.get("hint")
            return NotReady(
                f"{host.name}: {text.clean(str(check.get('message')))}", str(hint) if hint else None
            )
    return NotReady(f"{host.name} is not ready.")
