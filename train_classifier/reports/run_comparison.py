"""A job beside the earlier runs of its model, as a part of its report's document; and jobs side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train_classifier.core.report.document import (
    MAX_CHART_LINES,
    MAX_CHARTS,
    MAX_FACT,
    SCHEMA,
    part_title,
    without_controls,
)
from train_classifier.core.report.facts import mapping, words
from train_classifier.core.report.metrics import number
from train_classifier.core.text import short

#: Most metrics that are compared, those of the job itself first.
MAX_METRICS = 6
#: Most rows of a comparison of jobs side by side.
MAX_ROWS = 500


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


def side_by_side(
    jobs: Sequence[tuple[str, Mapping[str, Any]]],
    different: Mapping[str, Sequence[str]],
    same: Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the document of a page that compares jobs, given as id and document of the job's own report.

    A curve of the same name is one chart, with a line for each job. `different` has a value for each job.
    """
    charts = list(_common_charts(jobs))
    if len(charts) > MAX_CHARTS:
        notes = [*notes, f"{len(charts) - MAX_CHARTS} more charts are not shown"]
    models = list(dict.fromkeys(str(document.get("model") or "") for _, document in jobs))
    shown: dict[str, Any] = without_controls(
        {
            "schema": SCHEMA,
            "title": short(f"{len(jobs)} jobs of {', '.join(filter(None, models)) or 'no model'}", 300),
            "succeeded": all(document.get("succeeded") is True for _, document in jobs),
            "jobs": [job for job, _ in jobs],
            "different": [
                [short(name, 100), *(short(value, 400) for value in values)]
                for name, values in list(different.items())[:MAX_ROWS]
            ],
            "same": [
                [short(name, 100), short(value, MAX_FACT)] for name, value in list(same.items())[:MAX_ROWS]
            ],
            "curves": charts[:MAX_CHARTS],
            "usage": [],
            "images": [],
            "notes": [short(note, 500) for note in notes[:50]],
        }
    )
    return shown


def _common_charts(jobs: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield a chart for each curve, those of several jobs first."""
    lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    ends: dict[tuple[str, str, str], list[Any]] = {}
    for job, document in jobs:
        charts = document.get("curves")
        for chart in map(mapping, charts if isinstance(charts, list) else ()):
            place = str(chart.get("file") or "")
            if "tfevents" in place:
                # The name of an event file is another one in each job.
                place = place.rpartition("/")[0]
            for line in map(mapping, chart["lines"] if isinstance(chart.get("lines"), list) else ()):
                key = (place, str(line.get("name")), str(chart.get("x")))
                if _is_drawn(line) and all(drawn["name"] != job for drawn in lines.get(key, ())):
                    drawn = {name: line[name] for name in ("x", "y", "values")}
                    lines.setdefault(key, []).append({"name": job, **drawn})
                    ends.setdefault(key, list(chart["ends"]) if _are_numbers(chart.get("ends")) else [])
    for key in sorted(lines, key=lambda key: len(lines[key]) < 2):
        place, name, axis = key
        for begin in range(0, len(lines[key]), MAX_CHART_LINES):
            some = lines[key][begin : begin + MAX_CHART_LINES]
            title = part_title(short(name, 200), begin, len(lines[key]))
            shown = {"title": title, "x": short(axis, 100), "y": short(name, 200), "note": ""}
            yield {**shown, "file": short(place, 200), "ends": ends[key], "lines": some}


def _is_drawn(line: Mapping[str, Any]) -> bool:
    """Tell whether a line of a page has what a chart needs: the page may be anything."""
    x, y, values = line.get("x"), line.get("y"), line.get("values")
    are_numbers = _are_numbers(x) and _are_numbers(y) and _are_numbers(values)
    return are_numbers and isinstance(x, list) and isinstance(y, list) and len(x) == len(y) > 1


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values
    )
