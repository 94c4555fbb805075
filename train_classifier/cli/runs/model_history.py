"""history and compare: the runs of a model, and jobs side by side."""

import json
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train_classifier.cli.console import Console, encoding_of
from train_classifier.controller import find_jobs
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import text
from train_classifier.core.errors import BadInput, ExitCode, TrainClassifierError
from train_classifier.core.report.facts import mapping, words
from train_classifier.core.report.metrics import number

#: Parts of a metric's name for which less is better.
LESS = ("loss", "error", "mae", "mse", "perplexity", "wer", "cer")
BARS = "▁▂▃▄▅▆▇█"
#: Fewest columns of a value that is folded, and the most lines of it.
LEAST_FOLD, MOST_FOLDS = 12, 8
#: Columns of a terminal from which commits are shown.
COMMIT_WIDTH = 100
#: What differs between any two jobs and says nothing of them.
_OWN = ("id", "group", "schema", "submitter", "source_bytes", "source_files", "repository.key")
#: How a setting is shown whose name ends so.
UNITS = {"_s": text.show_seconds, "_bytes": text.show_bytes}
#: How a repeated job takes what it had.
_PINNED = "pinned_"


def show_history(
    hosts: Sequence[RemoteHost], model: str, metric: str | None, most: int, console: Console
) -> ExitCode:
    """Show the newest runs of a model, oldest first, the best of them marked.

    Raises BadInput without a run, and for a metric that none has.
    """
    request = {"verb": "runs", "model": model, "most": most}
    answers = find_jobs.ask_hosts(hosts, lambda host: host.call(request))
    errors = [answer for _, answer in answers if isinstance(answer, TrainClassifierError)]
    runs = [
        {**run, "host": host.name}
        for host, answer in answers
        if isinstance(answer, dict)
        for run in (answer["runs"] if isinstance(answer.get("runs"), list) else ())
        if isinstance(run, dict)
    ]
    runs = sorted(runs, key=lambda run: str(run.get("id")))[-most:]
    if not runs and not errors:
        raise BadInput(
            f"there is no ended run of {text.quoted(model)} on these hosts",
            hint="Your jobs and their models: train-classifier list --all",
        )
    known_metrics = dict.fromkeys(str(name) for run in runs for name in mapping(run.get("metrics")))
    if metric is not None and runs and metric not in known_metrics:
        names = ", ".join(map(text.quoted, list(known_metrics)[:20]))
        raise BadInput(
            f"none of these runs of {text.quoted(model)} has the metric {text.quoted(metric)}",
            hint=f"They have {names}." if names else "They have no metric: no model left a metrics.json.",
        )
    metric = metric or _usual_metric(runs)
    values = [number(mapping(run.get("metrics")).get(metric or "")) for run in runs]
    known = [value for value in values if value is not None]
    best = (min if _less_is_better(metric) else max)(known) if known else None
    if console.json_mode:
        shown = [
            {**run, "best": value is not None and value == best}
            for run, value in zip(runs, values, strict=True)
        ]
        console.out(json.dumps({"model": model, "metric": metric, "runs": shown}))
    elif runs:
        _show_runs(runs, values, best, metric, console)
    for error in errors:
        console.error(error)
    return errors[0].code if errors else ExitCode.TRAINED


def _show_runs(
    runs: Sequence[Mapping[str, Any]],
    values: Sequence[float | None],
    best: float | None,
    metric: str | None,
    console: Console,
) -> None:
    """Show a line for each run, and the trend of the metric's values."""
    commits = [str(run.get("commit") or "")[:12] for run in runs]
    has_commits = any(commits) and (console.width or COMMIT_WIDTH) >= COMMIT_WIDTH
    head = ["JOB", "ENDED", "OUTCOME", metric or "METRIC", *["COMMIT"] * has_commits, "ARGUMENTS"]
    rows = []
    for run, value, commit in zip(runs, values, commits, strict=True):
        shown = "" if value is None else text.number(value) + (" best" if value == best else "")
        row = [run.get("id"), _when(run), run.get("outcome"), shown, *[commit] * has_commits]
        rows.append([*row, shlex.join(words(run.get("arguments")))])
    console.out(text.table(rows, head, width=console.width, shortened_first=len(head) - 1))
    known = [value for value in values if value is not None]
    if len(known) > 1 and "utf" in encoding_of(sys.stdout).lower():
        console.out(f"\n{text.clean(metric)}  {_trend(known)}")


def _usual_metric(runs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the metric of the newest run that has some; one of a validation or test first."""
    for run in reversed(runs):
        names = [str(name) for name in mapping(run.get("metrics"))]
        if names:
            return next((name for name in names if name.startswith(("val", "test"))), names[0])
    return None


def _less_is_better(metric: str | None) -> bool:
    return any(part in (metric or "").lower() for part in LESS)


def _when(run: Mapping[str, Any]) -> str:
    finished = number(run.get("finished"))
    if finished is None or not 0 <= finished < 1 << 40:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(finished))


def _trend(values: Sequence[float]) -> str:
    """Return the values as bars, the oldest first."""
    # Of the largest: the difference of two large numbers may be beyond all numbers.
    largest = max(map(abs, values)) or 1.0
    parts = [value / largest for value in values]
    low, high = min(parts), max(parts)
    step = (high - low) / (len(BARS) - 1)
    return "".join(BARS[round((part - low) / step) if step else 0] for part in parts)


def show_comparison(
    hosts: Sequence[RemoteHost],
    names: Sequence[str],
    everything: bool,
    console: Console,
    html: str | None = None,
) -> ExitCode:
    """Show what differs between jobs, one column each, or write it as a page. Raises BadInput below two."""
    if len(set(names)) < 2:
        raise BadInput("two jobs are needed", hint="train-classifier compare JOB JOB")
    located = list({job.id: job for job in (find_jobs.find_job(hosts, name) for name in names)}.values())
    if len(located) < 2:
        raise BadInput(
            f"these are names of one job, {located[0].id}", hint="train-classifier compare JOB JOB"
        )
    facts = [_facts(job.answer, job.host.name) for job in located]
    keys = dict.fromkeys(key for each in facts for key in each)
    different = {
        key: [each.get(key) for each in facts]
        for key in keys
        if any(each.get(key) != facts[0].get(key) for each in facts)
    }
    same = {key: facts[0].get(key) for key in keys if key not in different}
    rows = dict(_row(key, values) for key, values in different.items())
    same_rows = dict(_row(key, [value]) for key, value in same.items() if value not in (None, "", [], {}))
    if html is not None:
        _write_page(Path(html), located, rows, {key: value for key, (value,) in same_rows.items()}, console)
    if console.json_mode:
        jobs = [job.id for job in located]
        console.out(json.dumps({"jobs": jobs, "different": different, "same": same}))
    if console.json_mode or html is not None:
        return ExitCode.TRAINED
    table = [["", *(job.id for job in located)]]
    table += [[key, *values] for key, values in rows.items()]
    if console.width is not None:
        room = console.width - max(map(len, rows), default=0)
        table = [line for row in table for line in _folded(row, room // len(located) - 2)]
    console.out(text.table(table, width=console.width))
    if everything:
        console.out("\nThe same in all:")
        for key, (value,) in same_rows.items():
            console.out(text.hanging(f"{text.clean(key):<24}", value, console.width))
    else:
        console.say(f"{len(same)} more are the same; --all shows them.")
    return ExitCode.TRAINED


def _folded(row: Sequence[str], width: int) -> list[list[str]]:
    """Return a row as several whose values have at most `width` columns: they may differ at their end."""
    parts = [
        textwrap.wrap(text.clean(value), max(width, LEAST_FOLD))[:MOST_FOLDS] or [""] for value in row[1:]
    ]
    return [
        [row[0] if number == 0 else "", *(lines[number] if number < len(lines) else "" for lines in parts)]
        for number in range(max(map(len, parts)))
    ]


def _write_page(
    path: Path,
    located: Sequence[find_jobs.LocatedJob],
    different: Mapping[str, Sequence[str]],
    same: Mapping[str, str],
    console: Console,
) -> None:
    """Write the comparison as one HTML page, with the curves of the jobs in common charts."""
    from train_classifier.cli.runs import job_report
    from train_classifier.core.report import page
    from train_classifier.reports import run_comparison

    documents = []
    notes = []
    for job in located:
        shown = job_report.document_of(job)
        documents.append((job.id, shown or {}))
        if shown is None:
            notes.append(f"job {job.id} is not finished: its curves are missing")
    job_report.write(path, page.render(run_comparison.side_by_side(documents, different, same, notes)))
    console.say(f"The comparison is {path}")


def _row(key: str, values: Sequence[Any]) -> tuple[str, list[str]]:
    """Return the label and the values of a row: times and sizes as people read them."""
    for ending, show in UNITS.items():
        known = [value for value in values if value is not None]
        is_setting = key.endswith(ending) and not key.startswith("metric ")
        if is_setting and known and all(number(value) is not None for value in known):
            return key.removesuffix(ending), ["—" if value is None else show(value) for value in values]
    return key, [*map(_shown, values)]


def _shown(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, list):
        return (
            shlex.join(map(str, value)) if all(isinstance(one, str) for one in value) else json.dumps(value)
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text.number(value) if isinstance(value, float) else str(value)


def _facts(answer: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return what is known of a job, flat: outcome, metrics, times, code, settings, image, cards."""
    spec, result = mapping(answer.get("spec")), mapping(answer.get("result"))
    facts: dict[str, Any] = {"outcome": result.get("outcome") or mapping(answer.get("status")).get("state")}
    for name, value in mapping(result.get("metrics")).items():
        facts[f"metric {name}"] = value
    facts["host"] = host
    seconds = number(mapping(result.get("seconds")).get("training"))
    facts["training_s"] = seconds
    _flatten(facts, "", spec)
    image = mapping(result.get("image"))
    facts["image used"] = image.get("digest") or image.get("id") or image.get("reference")
    cards = result.get("gpus")
    facts["cards"] = [str(mapping(gpu).get("name")) for gpu in cards] if isinstance(cards, list) else []
    return {key: value for key, value in facts.items() if key not in _OWN and not key.startswith(_PINNED)}


def _flatten(facts: dict[str, Any], prefix: str, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if isinstance(value, dict):
            _flatten(facts, f"{prefix}{key}.", value)
        else:
            facts[prefix + str(key)] = value
