"""top: which job is on which card of which host, and who waits."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from train_classifier.cli.console import Console
from train_classifier.controller import find_jobs
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import text
from train_classifier.core.errors import ExitCode, TrainClassifierError
from train_classifier.core.report.facts import mapping
from train_classifier.core.report.metrics import number

HEAD = ("HOST", "GPU", "USE", "MEMORY", "TEMP", "POWER", "JOB", "MODEL", "USER", "SINCE")
#: Most jobs of one queue that are shown.
MOST_WAITING = 10


def show(hosts: Sequence[RemoteHost], console: Console) -> ExitCode:
    """Show the cards of all hosts, and the queues; hosts that do not answer are named."""
    answers = find_jobs.ask_hosts(hosts, lambda host: host.call({"verb": "cards"}))
    errors = [answer for _, answer in answers if isinstance(answer, TrainClassifierError)]
    answered = [(host.name, answer) for host, answer in answers if isinstance(answer, dict)]
    if console.json_mode:
        console.out(json.dumps([{**answer, "host": name} for name, answer in answered]))
    else:
        rows = [_row(name, card) for name, answer in answered for card in _list(answer.get("cards"))]
        if rows:
            console.out(text.table(rows, HEAD, right=(2, 4), width=console.width))
        for name, answer in answered:
            if answer.get("problem"):
                console.out(text.hanging(f"{name}: ", answer["problem"], console.width))
            _show_queue(name, _list(answer.get("queue")), console)
    for error in errors:
        console.error(error)
    return errors[0].code if errors else ExitCode.TRAINED


def _show_queue(name: str, queue: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not queue:
        return
    console.out(f"\n{name}: {len(queue)} {'waits' if len(queue) == 1 else 'wait'} for a GPU")
    rows = [
        (job.get("id"), job.get("model"), job.get("user"), f"wants {job.get('gpus')}", _since(job))
        for job in queue[:MOST_WAITING]
    ]
    console.out(text.table(rows, width=console.width))
    if len(queue) > MOST_WAITING:
        console.out(f"… and {len(queue) - MOST_WAITING} more")


def _row(host: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    job = mapping(card.get("job"))
    used, total = number(card.get("memory_used_mib")), number(card.get("memory_total_mib"))
    power, limit = number(card.get("power_w")), number(card.get("power_limit_w"))
    use, temperature = number(card.get("use_percent")), number(card.get("temperature_c"))
    memory = "" if used is None or total is None else f"{used / 1024:.1f} of {total / 1024:.0f} GiB"
    watts = "" if power is None else f"{power:.0f}" + ("" if limit is None else f" of {limit:.0f}") + " W"
    name = str(card.get("name") or "").removeprefix("NVIDIA ").removeprefix("GeForce ")
    return (
        host,
        f"{card.get('index')} {text.short(name, 20)}",
        "" if use is None else f"{use:.0f}%",
        memory,
        "" if temperature is None else f"{temperature:.0f} °C",
        watts,
        str(job.get("id") or card.get("others") or "free"),
        str(job.get("model") or ""),
        str(job.get("user") or ""),
        _since(job),
    )


def _since(job: Mapping[str, Any]) -> str:
    since = number(job.get("since"))
    return "" if since is None else text.show_seconds(max(0.0, time.time() - since))


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [mapping(each) for each in value] if isinstance(value, list) else []
