"""list and status: what the jobs of all hosts do, as a table or line by line."""

import collections
import json
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from train_classifier.cli import result_text
from train_classifier.cli.console import Console
from train_classifier.cli.runs import log_progress
from train_classifier.controller import fetch as fetching
from train_classifier.controller import find_jobs
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import text
from train_classifier.core.errors import ExitCode, link_of
from train_classifier.core.job import in_order

#: The head of a column, and its value for a job.
Column = tuple[str, Callable[[dict[str, Any]], object]]
#: The narrowest column that says how far trainings are.
LEAST_PROGRESS = 20


def show_list(hosts: Sequence[RemoteHost], everything: bool, all_users: bool, console: Console) -> ExitCode:
    """Show the jobs of all hosts; hosts that cannot be queried are named on standard error."""
    listed, errors = find_jobs.list_jobs(hosts, everything, all_users)
    if console.json_mode:
        rows = [{**_with_progress(job), "status": job.get("outcome") or job.get("state")} for job in listed]
        console.out(json.dumps(rows))
    elif listed:
        console.out(_table(listed, len(hosts) > 1, console.width))
        groups = collections.Counter(job["group"] for job in listed if job.get("group"))
        for group, count in groups.items():
            console.say(f"group {text.clean(group)}: {count} job{'s' if count != 1 else ''} of this list")
    elif not errors:
        console.say("No jobs." if everything or all_users else "No jobs of yours.")
    for error in errors:
        console.error(error)
    return errors[0].code if errors else ExitCode.TRAINED


def show_status(hosts: Sequence[RemoteHost], job: str, console: Console) -> ExitCode:
    """Show one job's state, its phases and, once finished, its result; of a group, a table of its jobs."""
    located = find_jobs.find(hosts, job, figures=True)
    if located.jobs is not None:
        from train_classifier.cli.runs import group_jobs

        return group_jobs.show_status(located, console)
    status, result = located.answer.get("status") or {}, located.answer.get("result") or {}
    if console.json_mode:
        console.out(json.dumps({**_with_progress(located.answer), "host": located.host.name}))
        return ExitCode.TRAINED
    rows: list[tuple[str, Any]] = [
        ("job", located.id),
        ("model", status.get("model")),
        ("host", located.host.name),
        ("state", result.get("outcome") or _state(status)),
    ]
    if result:
        rows += [("exit code", result.get("exit_code")), ("reason", result.get("reason"))]
        rows.append(("hint", fetching.complete_hint(located.host, located.id, result.get("hint"))))
        rows.append(("more", link_of(result)))
        unpacked = result.get("unpacked") or {}
        if unpacked and unpacked.get("reason") != result.get("reason"):
            hint = fetching.complete_hint(located.host, located.id, unpacked.get("hint"))
            rows += [("not packed", unpacked.get("reason")), ("hint", hint)]
    else:
        message = status.get("message")
        rows.append(("message", message if message != status.get("phase") else None))
        rows.append(("progress", _progress(located.answer) or None))
    rows += [("note", note) for note in status.get("notes") or []]
    rows += _times(status, result)
    archive = result.get("archive")
    if archive:
        rows += [("archive", text.show_bytes(archive["bytes"])), ("sha256", archive["sha256"])]
    for name, value in (result.get("metrics") or {}).items():
        rows.append((text.short(name, 50), text.number(value)))
    rows = [(name, value) for name, value in rows if value is not None]
    width = max(len(name) for name, _ in rows if len(name) <= result_text.LABEL)
    for name, value in rows:
        console.out(text.hanging(f"{text.clean(name).ljust(width)}  ", value, console.width))
    return ExitCode.TRAINED


def _progress(answer: dict[str, Any]) -> str:
    """Return how far the training of a job is, from its entry of `list` or its status."""
    times = (answer.get("status") or {}).get("times") or {}
    return log_progress.of_job(answer.get("figures"), (times.get("training") or [None])[0])


def _with_progress(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an entry or a status for programs: with how far the training is, in place of the log's end."""
    figures = dict(answer.get("figures") or {})
    without = {name: value for name, value in answer.items() if name != "figures"}
    figures.pop("log_end", None)
    return {**without, "figures": {**figures, "progress": _progress(answer)}} if figures else without


def _times(status: dict[str, Any], result: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return how long each phase took, or takes so far, and the whole job."""
    rows: list[tuple[str, str | None]] = []
    for name, (start, end) in in_order({} if result else status.get("times") or {}).items():
        seconds = (end or time.time()) - start
        if seconds >= text.SHORTEST_S:
            rows.append((name, text.show_seconds(seconds) + ("" if end else " so far")))
    for name, seconds in in_order(result.get("seconds") or {}).items():
        if seconds >= text.SHORTEST_S:
            rows.append((name, text.show_seconds(seconds)))
    return [*rows, ("time", _age({**status, **result}) or None)]


def _table(jobs: Sequence[dict[str, Any]], many_hosts: bool, width: int | None) -> str:
    """Return the jobs as a table; arguments, commit and metrics only where the terminal has room for them."""
    columns: list[Column] = [
        ("JOB", lambda job: job["id"]),
        ("MODEL", lambda job: job.get("model")),
        ("STATUS", lambda job: job.get("outcome") or _state(job)),
        ("TIME", _age),
        ("BY", lambda job: job.get("submitter")),
    ]
    if many_hosts:
        columns.append(("HOST", lambda job: job["host"]))
    room = (width or 0) - _width(jobs, columns) - 2
    if room >= LEAST_PROGRESS and any(job.get("figures") for job in jobs):
        columns.append(("PROGRESS", lambda job: text.short(_progress(job), room)))
    for extra in EXTRA_COLUMNS:
        has_any = any(extra[1](job) for job in jobs)
        if has_any and width is not None and _width(jobs, [*columns, extra]) <= width:
            columns.append(extra)
    rows = [[value(job) for _, value in columns] for job in jobs]
    return text.table(rows, [head for head, _ in columns], width=width)


def _width(jobs: Sequence[dict[str, Any]], columns: Sequence[Column]) -> int:
    """Return the width of a table that shows each value as a whole."""
    cells = [[head, *(str(value(job) or "") for job in jobs)] for head, value in columns]
    return text.table_width([max(map(len, column)) for column in cells])


def _metrics(job: dict[str, Any]) -> str:
    return " ".join(
        f"{text.short(name, 20)}={text.number(value)}"
        for name, value in list((job.get("metrics") or {}).items())[:3]
    )


#: Columns of `list` that are shown where there is room, the most useful first.
EXTRA_COLUMNS: tuple[Column, ...] = (
    ("COMMIT", lambda job: str(job.get("commit") or "")[:12]),
    ("METRICS", _metrics),
    ("ARGUMENTS", lambda job: text.short(shlex.join(map(str, job.get("arguments") or ())), 40)),
)


def _state(job: dict[str, Any]) -> str:
    state = str(job.get("state") or "?")
    return f"{state} ({job['phase']})" if state == "running" and job.get("phase") else state


def _age(job: dict[str, Any]) -> str:
    start = job.get("started") or job.get("submitted")
    if not start:
        return ""
    return text.show_seconds(max(0.0, float(job.get("finished") or time.time()) - float(start)))
