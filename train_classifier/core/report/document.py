"""The data of a report's page: one document of texts, numbers and points, within limits."""

import base64
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from train_classifier.core.errors import ExitCode, link_of
from train_classifier.core.job import PHASES, WEB_ADDRESS
from train_classifier.core.report import curves, facts, log_end
from train_classifier.core.report.curves import Curves, Point
from train_classifier.core.report.images import ImageSize
from train_classifier.core.report.metrics import number
from train_classifier.core.text import clean, short, show_bytes, without_escapes

SCHEMA = 1
#: Most points of one line and of a whole page, and the fewest that are left of a line among many.
MAX_LINE_POINTS, MAX_POINTS, MIN_LINE_POINTS = 600, 40_000, 60
#: Lines that one chart can hold without its colours being repeated.
MAX_CHART_LINES = 8
MAX_CHARTS = 40
#: Most characters of one fact, of the log's end and of one text about a failure.
MAX_FACT, MAX_LOG, MAX_TEXT = 2000, 64 << 10, 10_000
#: Most lines of the log's end.
MAX_LOG_LINES = 400
USAGE = (
    ("gpu", "GPU use", "percent", 100.0),
    ("gpu-memory", "GPU memory", "MiB", None),
    ("cpu", "Processor use", "percent of one core", None),
    ("memory", "Memory", "MiB", None),
    ("disk", "Disk", "MiB a second", None),
)


@dataclasses.dataclass(frozen=True)
class JobRecords:
    """What a report is made of. All but the result may be missing."""

    #: result.json and manifest.json.
    result: Mapping[str, Any]
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: usage.csv, and the end of log.txt.
    usage: str = ""
    log: str = ""
    log_is_cut: bool = False
    #: Learning curves by the name of their file, and images by theirs.
    tables: Sequence[tuple[str, Curves]] = ()
    images: Sequence[tuple[str, ImageSize, bytes]] = ()
    #: What is not shown.
    notes: Sequence[str] = ()


def build(records: JobRecords) -> dict[str, Any]:
    """Return the document of a job's report."""
    result, manifest = records.result, records.manifest
    usage = curves.usage(records.usage)
    count = sum(len(table.lines) for _, table in records.tables) + sum(map(len, usage.values()))
    most = max(MIN_LINE_POINTS, min(MAX_LINE_POINTS, MAX_POINTS // max(count, 1)))
    charts = [chart for name, table in records.tables for chart in _curve_charts(name, table, most)]
    notes = [*records.notes, *facts.remarks(result)]
    if len(charts) > MAX_CHARTS:
        notes.append(f"{len(charts) - MAX_CHARTS} more charts are not shown")
    phases, start = _phases(manifest)
    shown = {
        "schema": SCHEMA,
        "title": short(facts.headline(result), 300),
        "succeeded": facts.exit_code(result) is ExitCode.TRAINED,
        "failure": [
            *(short(part, MAX_TEXT) for part in facts.failure_texts(result)),
            *filter(None, (link_of(result),)),
        ],
        "job": _text(result.get("id")),
        "model": _text(result.get("model")),
        "started": start,
        "phases": phases,
        "metrics": [list(row) for row in facts.metrics(result)],
        "curves": charts[:MAX_CHARTS],
        "usage": _usage_charts(usage, most),
        "images": [
            {
                "name": short(name, 200),
                "kind": image.kind,
                "width": image.width,
                "height": image.height,
                "data": base64.b64encode(data).decode("ascii"),
            }
            for name, image, data in records.images
        ],
        "facts": _facts(result, manifest),
        "log": _log(records.log, records.log_is_cut),
        "notes": [short(note, 500) for note in notes[:50]],
        "comparison": None,
    }
    cleaned: dict[str, Any] = without_controls(shown)
    return cleaned


def without_controls(value: Any) -> Any:
    """Return data whose texts have no control characters, those that turn the direction of text included."""
    if isinstance(value, str):
        return clean(without_escapes(value))
    if isinstance(value, dict):
        return {key: without_controls(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        # Of numbers there may be many.
        return [each if isinstance(each, (int, float)) else without_controls(each) for each in value]
    return value


def _text(value: Any) -> str:
    return short(value, MAX_FACT) if value is not None else ""


def _curve_charts(name: str, table: Curves, most: int) -> list[dict[str, Any]]:
    lines = {title: points for title, points in table.lines.items() if len(points) > 1}
    titles = {"loss": "Loss", "score": "Metrics"}
    charts = []
    for kind, names in curves.groups(lines).items():
        ends = (0.0, 1.0) if kind == "score" else (None, None)
        for begin in range(0, len(names), MAX_CHART_LINES):
            part = [(title, lines[title]) for title in names[begin : begin + MAX_CHART_LINES]]
            shown = part_title(titles.get(kind, kind), begin, len(names))
            charts.append(_chart(shown, (table.axis, kind), part, ends, most))
            charts[-1]["file"] = short(name, 200)
    return charts


def _usage_charts(usage: Mapping[str, Mapping[str, list[Point]]], most: int) -> list[dict[str, Any]]:
    charts = []
    for kind, title, unit, ceiling in USAGE:
        lines = [(name, points) for name, points in usage.get(kind, {}).items() if len(points) > 1]
        if kind == "disk" and not any(y for _, points in lines for _, y in points):
            # Most short jobs: all that they read was in memory.
            continue
        count = min(len(lines), 64)
        for begin in range(0, count, MAX_CHART_LINES):
            part = lines[begin : begin + MAX_CHART_LINES]
            shown = part_title(title, begin, count)
            charts.append(_chart(shown, ("seconds", unit), part, (0.0, ceiling), most))
    return charts


def part_title(title: str, begin: int, count: int) -> str:
    """Return the title of the chart that has the lines from `begin` on, of so many in several charts."""
    charts = -(-count // MAX_CHART_LINES)
    return f"{title} ({begin // MAX_CHART_LINES + 1} of {charts})" if charts > 1 else title


def _chart(
    title: str,
    axes: tuple[str, str],
    lines: Iterable[tuple[str, list[Point]]],
    ends: tuple[Optional[float], Optional[float]],
    most: int,
) -> dict[str, Any]:
    shown, total = [], 0
    for name, points in lines:
        total = max(total, len(points))
        thin = curves.envelope(points, most)
        last = points[-1]
        low, high = (choose(points, key=lambda point: point[1]) for choose in (min, max))
        shown.append(
            {
                "name": name,
                "x": [_rounded(x, 10) for x, _ in thin],
                "y": [_rounded(y) for _, y in thin],
                "values": [_rounded(value, 8) for value in (points[0][1], *low[::-1], *high[::-1], last[1])],
            }
        )
    note = ""
    if total > most:
        intervals = most // 2
        note = f"{total:,} points: of each of {intervals} intervals the lowest and the highest"
    return {"title": title, "x": axes[0], "y": axes[1], "ends": list(ends), "lines": shown, "note": note}


def _rounded(value: float, digits: int = 6) -> float:
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _phases(manifest: Mapping[str, Any]) -> tuple[list[list[Any]], Optional[float]]:
    """Return the phases as name, start and end in seconds from the training's start, and the job's start."""
    times = facts.mapping(manifest.get("times"))
    spans = []
    for name in PHASES:
        span = times.get(name)
        start, end = map(number, span) if isinstance(span, (list, tuple)) and len(span) == 2 else (None, None)
        if start is not None:
            spans.append((name, start, start if end is None else max(end, start)))
    if not spans:
        return [], None
    zero = next((start for name, start, _ in spans if name == "training"), spans[0][1])
    phases = [[name, _rounded(start - zero, 9), _rounded(end - zero, 9)] for name, start, end in spans]
    return phases, spans[0][1]


def _facts(result: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of facts; a value is text, or `time`, `words` (arguments) or `link`."""
    archive = facts.mapping(result.get("archive"))
    artefacts = show_bytes(archive["bytes"]) if facts.is_number(archive.get("bytes")) else ""
    run = [
        ("Model", _text(result.get("model"))),
        (
            "Arguments",
            {"words": _arguments(facts.words(manifest.get("arguments")))},
        ),
        ("Submitted by", _text(manifest.get("submitter"))),
        ("Submitted", {"time": number(manifest.get("submitted"))}),
        ("Duration", facts.durations(result)),
        ("Exit", facts.ending(result)),
        ("Resumed from", _text(manifest.get("resumed_from"))),
        ("Repeats", _text(manifest.get("rerun_of"))),
        ("Artefacts", artefacts),
        ("Job", _text(result.get("id"))),
    ]
    origin = facts.mapping(manifest.get("repository"))
    code = [
        ("Repository", _text(origin.get("name"))),
        ("Commit", _commit(origin)),
        ("Data", ", ".join(f"{name}: {path}" for name, path in facts.mapping(manifest.get("data")).items())),
        ("Variables", ", ".join(facts.words(manifest.get("environment_variables")))),
        ("Secrets", ", ".join(facts.words(manifest.get("secrets")))),
    ]
    where = [
        ("Host", _text(facts.mapping(manifest.get("host")).get("name"))),
        ("GPU", facts.gpus(result)),
        *facts.environment({"image": result.get("image"), "gpus": result.get("gpus"), **manifest}),
    ]
    groups = (("Run", run), ("Code and data", code), ("Where it ran", where))
    return [{"title": title, "rows": _filled(rows)} for title, rows in groups if _filled(rows)]


def _arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments of at most twice the characters of another fact; what is left out is an ellipsis."""
    shown: list[str] = []
    space = 2 * MAX_FACT
    for argument in arguments:
        space -= min(len(argument), 1000) + 1
        if space < 0:
            return [*shown, "…"]
        shown.append(short(argument, 1000))
    return shown


def _filled(rows: Iterable[tuple[str, Any]]) -> list[list[Any]]:
    filled = []
    for label, value in rows:
        known = next(iter(value.values())) if isinstance(value, dict) else value
        if known or known == 0:
            filled.append([label, short(value, MAX_FACT) if isinstance(value, str) else value])
    return filled


def _commit(origin: Mapping[str, Any]) -> Any:
    commit, address = str(origin.get("commit") or ""), origin.get("address")
    if not commit:
        return ""
    text = short(commit + (" with changes" if origin.get("dirty") else ""), 200)
    place = WEB_ADDRESS.match(address) if isinstance(address, str) else None
    if not place or not re.match(r"[0-9a-f]{7,64}\Z", commit):
        return text
    # GitHub, Gitea and Forgejo, and most others, use the first form.
    host = place["host"]
    part = "-/commit" if "gitlab" in host else "commits" if "bitbucket" in host else "commit"
    return {"link": f"{address}/{part}/{commit}", "text": text}


def _log(log: str, is_cut: bool) -> dict[str, Any]:
    """Return the end of the log, and which of its lines are the last traceback."""
    lines = log_end.clean_lines(log)
    kept: list[str] = []
    space = MAX_LOG
    for line in reversed(lines[-MAX_LOG_LINES:]):
        space -= len(line.encode("utf-8", "replace")) + 1
        if space < 0:
            break
        kept.append(line)
    kept.reverse()
    return {
        "lines": kept,
        "traceback": log_end.traceback(kept),
        "earlier": -1 if is_cut else len(lines) - len(kept),
    }
