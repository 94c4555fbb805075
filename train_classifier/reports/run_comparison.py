"""A job beside the earlier runs of its model, as a part of its report's document."""

from collections.abc import Mapping, Sequence
from typing import Any

from train_classifier.core.report.document import without_controls
from train_classifier.core.report.facts import mapping, words
from train_classifier.core.report.metrics import number
from train_classifier.core.text import short

#: Most metrics that are compared, those of the job itself first.
MAX_METRICS = 6


def comparison(job: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return columns and rows for entries of the verb `runs`, oldest first; None without an earlier run."""
    runs = sorted(runs, key=lambda run: str(run.get("id")))
    if len(runs) < 2:
        return None
    own = next((run for run in runs if run.get("id") == job), runs[-1])
    named = {**mapping(own.get("metrics"))}
    for run in runs:
        named.update({name: None for name in mapping(run.get("metrics")) if name not in named})
    metrics = [name for name in named if isinstance(name, str)][:MAX_METRICS]
    has_arguments = len({tuple(words(run.get("arguments"))) for run in runs}) > 1
    rows = []
    for run in runs:
        started, finished = number(run.get("started")), number(run.get("finished"))
        seconds = round(finished - started, 1) if started is not None and finished is not None else None
        values: list[Any] = [number(mapping(run.get("metrics")).get(name)) for name in metrics]
        values += [seconds, str(run.get("commit") or "")[:12]]
        if has_arguments:
            values.append(short(" ".join(words(run.get("arguments"))), 80))
        rows.append({"job": str(run.get("id")), "outcome": str(run.get("outcome") or ""), "values": values})
    columns = [*(short(name, 40) for name in metrics), "seconds", "commit"]
    if has_arguments:
        columns.append("arguments")
    shown: dict[str, Any] = without_controls({"columns": columns, "runs": rows})
    return shown
