"""The result of a run as a few lines of text, or as one JSON object."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from train_classifier.cli.console import Console
from train_classifier.core import text
from train_classifier.core.errors import OUTCOMES, ExitCode, TrainClassifierError
from train_classifier.core.job import in_order

#: Columns of the longest name that the others are lined up with.
LABEL = 20


class Finished(Protocol):
    """The facts for a summary."""

    result: dict[str, Any] | None
    delivered: dict[str, Any] | None
    failure: TrainClassifierError | None

    @property
    def job(self) -> str:
        """The job's id."""

    @property
    def model(self) -> str:
        """The job's model."""

    @property
    def host_name(self) -> str:
        """Where it ran."""


def seconds(result: Mapping[str, Any] | None, console: Console) -> dict[str, float]:
    """Return the seconds of each phase, the controller's own and the worker's, in order."""
    times = {**console.seconds, **((result or {}).get("seconds") or {})}
    return {name: float(value) for name, value in in_order(times).items()}


def as_text(run: Finished, console: Console) -> str:
    """Return the closing summary for people, at most 80 columns where the paths allow it."""
    result = run.result or {}
    outcome = str(result.get("outcome") or "?")
    colour = "green" if run.failure is None else "red"
    rows: list[tuple[str, object]] = [
        ("outcome", console.paint(outcome, colour) if run.failure is None else outcome),
        ("job", f"{run.job} on {run.host_name}"),
    ]
    if run.delivered:
        rows.append(("artefacts", f"{run.delivered['path']} ({text.show_bytes(run.delivered['bytes'])})"))
    times = seconds(run.result, console)
    if times and not console.lists_phases:
        rows.append(("time", text.show_seconds(sum(times.values()))))
    metrics = result.get("metrics")
    if isinstance(metrics, dict):
        for name, value in list(metrics.items())[:12]:
            rows.append((text.short(name, 50), text.number(value)))
    # A long name of one metric must not move all values out of the terminal.
    width = max((len(name) for name, _ in rows if len(name) <= LABEL), default=0)
    lines = [f"{text.clean(name).ljust(width)}  {value}" for name, value in rows]
    if run.delivered:
        # Not aligned with the other values: with its 64 digits the line would be wider than a terminal.
        lines.append(f"sha256  {run.delivered['sha256']}")
    if times and console.lists_phases:
        listed = {name: value for name, value in times.items() if value >= text.SHORTEST_S}
        listed["total"] = sum(times.values())
        phases = [(name, text.show_seconds(value)) for name, value in listed.items()]
        lines += ["", text.table(phases, ("phase", "time"), right=(1,))]
    return "\n" + "\n".join(lines)


def as_json(run: Finished, code: ExitCode, console: Console) -> str:
    """Return the one JSON object of --json."""
    return json.dumps(as_dict(run, code, console))


def as_dict(run: Finished, code: ExitCode, console: Console) -> dict[str, Any]:
    """Return how a job ended as JSON-ready data."""
    result = run.result or {}
    return {
        "id": run.job,
        "model": run.model,
        "host": run.host_name,
        "outcome": "submitted" if code == 0 and run.result is None else OUTCOMES[code],
        "exit_code": int(code),
        "error": run.failure.to_dict() if run.failure else None,
        "artefacts": run.delivered,
        "metrics": result.get("metrics"),
        "seconds": seconds(run.result, console),
        "result": run.result,
    }


def show_ending(run: Finished, code: ExitCode, console: Console) -> None:
    """Show how a run ended: its failure and the closing summary, or the one JSON object."""
    console.finish()
    if console.json_mode:
        console.out(as_json(run, code, console))
    if run.failure:
        console.error(run.failure)
    if run.result is not None and not console.json_mode:
        console.say(as_text(run, console))


def error_json(error: TrainClassifierError) -> str:
    """Return the one JSON object of a command that failed before there was a job."""
    return json.dumps(
        {
            "id": None,
            "outcome": OUTCOMES[error.code],
            "exit_code": int(error.code),
            "error": error.to_dict(),
        }
    )
