"""Reads learning curves and usage from tables that a model or the worker wrote: CSV files and JSON lines."""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Callable, NamedTuple, Optional

Point = tuple[float, float]

#: Smallest and largest value that can be drawn: beyond them the steps of an axis are not finite numbers.
MIN_VALUE, MAX_VALUE = 1e-30, 1e30
#: Most rows that are read; a longer file is not a learning curve.
MAX_ROWS = 200_000
#: Most lines of one file, most names among which they are looked for, and the longest name.
MAX_LINES, MAX_NAMES, MAX_NAME = 100, 1000, 60
#: Most fields of a table that is made of JSON lines, and rows after which the time is looked at.
MAX_FIELDS, LOOK_ROWS = 4_000_000, 1024
#: Most bytes kept of a table: its rows are Python objects.
MAX_TABLE = 1 << 20
#: Most rows with the same first field that are kept together: one for each GPU of a host.
MAX_GROUP = 64
#: Columns that count the steps of a training, the finest first.
AXES = ("step", "global_step", "_step", "iteration", "iter", "batch", "epoch")
_PREFIXES = ("val_", "train_", "test_", "valid_", "eval_", "val/", "train/", "test/", "valid/", "eval/")


class Curves(NamedTuple):
    """The lines of one file: points by name, in rising order of `axis`."""

    axis: str
    lines: dict[str, list[Point]]


def number(text: object) -> Optional[float]:
    """Return a finite number that can be drawn, None for anything else; too small numbers become 0."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    if abs(value) < MIN_VALUE:
        return 0.0
    return value if abs(value) < MAX_VALUE else None


def thinned(table: IO[bytes], is_late: Callable[[], bool] = lambda: False, limit: int = MAX_TABLE) -> bytes:
    """Return a CSV file with its head and every n-th row, so that it is at most `limit` bytes or little more.

    Consecutive rows with the same first field stay together: usage.csv has one for each GPU. First and last
    row stay too. Rows after `is_late` returns True, and after a line longer than the limit, are left out.
    """
    head = table.readline(limit)
    if not head.endswith(b"\n"):
        return b"" if len(head) == limit else head
    groups: list[list[bytes]] = []
    group: list[bytes] = []
    size, step, position = 0, 1, -1
    key: Optional[bytes] = None
    count = 0
    while True:
        line = table.readline(limit)
        count += 1
        if not line or len(line) == limit or (count % 4096 == 0 and is_late()):
            break
        first = line.partition(b",")[0]
        if first != key or len(group) == MAX_GROUP:
            key, group = first, []
            position += 1
            if position % step == 0:
                groups.append(group)
        group.append(line)
        if position % step == 0:
            size += len(line)
            if size > limit and len(groups) > 2:
                groups = groups[::2]
                step *= 2
                size = sum(map(len, (line for rows in groups for line in rows)))
    if groups and groups[-1] is not group:
        groups.append(group)
    return head + b"".join(line for rows in groups for line in rows)


def rows(text: str) -> Iterator[dict[str, str]]:
    """Return the rows of a CSV file as far as it can be read; a NUL or a partial last line is no error."""
    table = _table(text)
    head = next(table, [])
    for row in table:
        yield dict(zip(head, row))


def _table(text: str) -> Iterator[list[str]]:
    text = text.replace("\0", "")
    if text.startswith("\ufeff"):
        text = text[1:]
    head = text[: text.find("\n")] if "\n" in text else text
    separator = next((letter for letter in ",;\t" if letter in head), ",")
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    try:
        # A row of no fields is an empty line.
        yield from filter(None, itertools.islice(reader, MAX_ROWS))
    except csv.Error:
        # A field over 128 KiB: the rows before it are used.
        return


def from_csv(text: str, axes: Sequence[str] = AXES) -> Optional[Curves]:
    """Return the lines of a table that counts epochs or steps; None for any other."""
    table = _table(text)
    return _read_lines([name.strip() for name in next(table, [])], table, axes)


def from_json_lines(text: str, is_late: Callable[[], bool] = lambda: False) -> Optional[Curves]:
    """Return the lines of a file with one JSON object a line, or of transformers' trainer state.

    Rows after `is_late` returns True are left out.
    """
    records = _trainer_state(text) if text.startswith("{\n") else map(_json_object, text.splitlines())
    names: dict[str, None] = {}
    table = []
    for count, record in enumerate(itertools.islice(records, MAX_ROWS)):
        if count % LOOK_ROWS == 0 and is_late():
            break
        # Only what can be a line: a text may have any length.
        numbers = {name: value for name, value in record.items() if type(value) in (int, float)}
        if numbers:
            table.append(numbers)
        if len(names) < MAX_LINES:
            names.update(dict.fromkeys(itertools.islice(numbers, MAX_NAMES)))
    # Each row gets a field for each name.
    shown = table[: MAX_FIELDS // max(len(names), 1)]
    fields = ([record.get(name, "") for name in names] for record in shown)
    return _read_lines(list(names), fields, AXES)


def _json_object(line: str) -> dict[str, Any]:
    try:
        # Integers as floating numbers: Python before 3.11 needs minutes for one of a million digits.
        value = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _trainer_state(text: str) -> Iterable[dict[str, Any]]:
    history = _json_object(text).get("log_history")
    return [record for record in history if isinstance(record, dict)] if isinstance(history, list) else []


def _read_lines(names: list[str], table: Iterable[Sequence[Any]], axes: Sequence[str]) -> Optional[Curves]:
    lowered = [name.lower() for name in names]
    axis = next((name for name in axes if name in lowered), None)
    if axis is None:
        return None
    at = lowered.index(axis)
    columns = [
        (index, name[:MAX_NAME] or "?")
        for index, name in enumerate(names[:MAX_NAMES])
        if index != at and lowered[index] not in axes
    ][:MAX_LINES]
    # A later value for the same x replaces the earlier one, because a resumed training writes an epoch again.
    lines: dict[str, dict[float, float]] = {}
    for row in table:
        x = number(row[at]) if at < len(row) else None
        if x is None:
            continue
        for index, name in columns:
            value = number(row[index]) if index < len(row) and row[index] != "" else None
            if value is not None:
                lines.setdefault(name, {})[x] = value
    return Curves(axis.strip("_"), {name: sorted(points.items()) for name, points in lines.items()})


def unreadable_columns(text: str) -> list[str]:
    """Return the columns of history.csv that are not empty, but hold no number that can be drawn."""
    filled: dict[str, bool] = {}
    for row in rows(text):
        for name, field in row.items():
            if field.strip() and (name in filled or len(filled) < MAX_LINES):
                filled[name] = filled.get(name, False) or number(field) is not None
    return [name[:MAX_NAME] for name, is_readable in filled.items() if not is_readable]


def groups(lines: dict[str, list[Point]]) -> dict[str, list[str]]:
    """Return which lines share a chart: `loss`; `score`, shares from 0 to 1; any other with its val_ twin."""
    kinds: dict[str, list[str]] = {}
    for name, points in lines.items():
        if "loss" in name.lower():
            kind = "loss"
        elif all(0 <= y <= 1 for _, y in points) and max((y for _, y in points), default=0) > 0.05:
            kind = "score"
        else:
            prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
            kind = name[len(prefix) :][:MAX_NAME]
        kinds.setdefault(kind, []).append(name)
    return kinds


def envelope(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most about `most` points: the lowest and the highest of each of equal intervals of x.

    So a spike stays, whatever its length.
    """
    if len(points) <= most:
        return list(points)
    start, count = points[0][0], max(most // 2, 1)
    width = (points[-1][0] - start) / count
    if not width > 0 or not math.isfinite(width):
        return list(points[:most])
    kept: list[Point] = []
    for _, interval in itertools.groupby(points, lambda point: int((point[0] - start) / width)):
        members = list(interval)
        low, high = min(members, key=lambda point: point[1]), max(members, key=lambda point: point[1])
        kept.extend([low] if low == high else sorted((low, high)))
    # The ends of the line are its best known points.
    first, last = [points[0]], [points[-1]]
    return (first if kept[0] != points[0] else []) + kept + (last if kept[-1] != points[-1] else [])


def usage(text: str) -> dict[str, dict[str, list[Point]]]:
    """Return what usage.csv measured: for each kind the lines by name, over the seconds of the training.

    Kinds: `gpu` (percent), `gpu-memory` (MiB), `cpu` (percent), `memory` (MiB), `disk` (MiB a second).
    """
    kinds: dict[str, dict[str, dict[float, float]]] = {}
    names: dict[str, str] = {}
    disk: dict[str, Point] = {}
    for row in rows(text):
        time = number(row.get("time_s"))
        if time is None:
            continue
        uuid = row.get("gpu_uuid", "")
        if uuid and uuid not in names:
            names[uuid] = f"GPU {len(names)}"
        memory = number(row.get("memory_bytes"))
        measured = {
            ("gpu", names.get(uuid, "")): number(row.get("gpu_util_percent")),
            ("gpu-memory", names.get(uuid, "")): number(row.get("gpu_memory_mib")),
            ("cpu", "processor"): number(row.get("cpu_percent")),
            ("memory", "memory"): None if memory is None else memory / (1 << 20),
        }
        for name, column in (("read", "disk_read_bytes"), ("written", "disk_written_bytes")):
            total = number(row.get(column))
            before = disk.get(name)
            if total is not None and (before is None or time > before[0]):
                disk[name] = (time, total)
                if before is not None:
                    rate = max(total - before[1], 0) / (time - before[0]) / (1 << 20)
                    measured[("disk", name)] = number(rate)
        for (kind, name), value in measured.items():
            if value is not None:
                kinds.setdefault(kind, {}).setdefault(name, {})[time] = value
    return {
        kind: {name: sorted(points.items()) for name, points in lines.items()}
        for kind, lines in kinds.items()
    }
