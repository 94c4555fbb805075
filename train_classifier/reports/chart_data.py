"""Reads history.csv and usage.csv into charts: named series of points, thinned for the drawing."""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Iterable

#: Limits of a chart and a report, as a model may write thousands of columns and millions of rows.
MAX_SERIES, MAX_CHARTS, MAX_POINTS = 6, 8, 60
#: Smallest and largest value that can be drawn: beyond them the steps of an axis are not finite numbers.
MIN_VALUE, MAX_VALUE = 1e-30, 1e30
#: Most rows that are read; a longer file is not a learning curve.
MAX_ROWS = 200_000
MAX_NAME = 60

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a chart: at least two points, x rising."""

    name: str
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines that share their axes."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    #: Ends of the y axis if they are fixed, as 0 to 100 %.
    floor: float | None = None
    ceiling: float | None = None

    def range(self) -> tuple[float, float]:
        """Return the ends of the y axis; they differ."""
        values = [y for series in self.series for _, y in series.points]
        low = min(values) if self.floor is None else min(self.floor, *values)
        high = max(values) if self.ceiling is None else max(self.ceiling, *values)
        if high - low < 1e-9 * max(1.0, abs(high)):
            pad = max(abs(high) / 10, 1e-6)
            return low - pad, high + pad
        return low, high

    def domain(self) -> tuple[float, float]:
        """Return the ends of the x axis; they differ."""
        ends = [x for series in self.series for x in (series.points[0][0], series.points[-1][0])]
        return min(ends), max(ends)


def number(text: object) -> float | None:
    """Return a finite number that can be drawn, None for anything else; too small numbers become 0."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    if abs(value) < MIN_VALUE:
        return 0.0
    return value if abs(value) < MAX_VALUE else None


def rows(text: str) -> Iterable[dict[str, str]]:
    """Return the rows of a CSV file as far as it can be read; a NUL or a partial last line is no error."""
    reader = csv.DictReader(io.StringIO(text.replace("\0", "").removeprefix("\ufeff")), skipinitialspace=True)
    try:
        for row in itertools.islice(reader, MAX_ROWS):
            yield {
                key: value for key, value in row.items() if isinstance(key, str) and isinstance(value, str)
            }
    except csv.Error:
        # A field over 128 KiB: the rows before it are used.
        return


def series(name: str, points: Iterable[Point]) -> Series | None:
    """Return a series with points at even distances, at most MAX_POINTS; None for fewer than two different x.

    Each point is the mean of the values around it, so that a short spike remains visible; where there are
    none, it is on the line between its neighbours. A later value for the same x replaces the earlier one,
    because a resumed training writes an epoch again.
    """
    last = dict(points)
    xs = sorted(last)
    if len(xs) < 2:
        return None
    count = min(len(xs), MAX_POINTS)
    step = (xs[-1] - xs[0]) / (count - 1)
    if not step > 0 or not math.isfinite(step):
        return None
    binned: list[list[float]] = [[] for _ in range(count)]
    for x in xs:
        binned[round((x - xs[0]) / step)].append(last[x])
    means = [(index, sum(values) / len(values)) for index, values in enumerate(binned) if values]
    drawn: list[Point] = []
    for (start, before), (end, after) in itertools.pairwise(means):
        for index in range(start, end):
            drawn.append((xs[0] + index * step, before + (after - before) * (index - start) / (end - start)))
    drawn.append((xs[-1], means[-1][1]))
    # Use the exact end of the data: the sum of the steps is not exact.
    return Series(name[:MAX_NAME] or "?", tuple(drawn))


def unreadable_columns(text: str) -> list[str]:
    """Return the columns of history.csv that are not empty, but hold no number that can be drawn."""
    filled: dict[str, bool] = {}
    for row in rows(text):
        for name, field in row.items():
            if field.strip() and (name in filled or len(filled) < 100):
                filled[name] = filled.get(name, False) or number(field) is not None
    return [name[:MAX_NAME] for name, is_readable in filled.items() if not is_readable]


def history(text: str) -> list[Chart]:
    """Return the learning curves: losses together, shares (0 to 1) together, others with their val_ twin."""
    points: dict[str, list[Point]] = {}
    for row in rows(text):
        epoch = number(row.get("epoch"))
        if epoch is None:
            continue
        for name, field in row.items():
            value = number(field)
            if name != "epoch" and value is not None and (name in points or len(points) < 100):
                points.setdefault(name, []).append((epoch, value))
    groups: dict[str, list[Series]] = {}
    for name, column in points.items():
        line = series(name, column)
        if line is None:
            continue
        if "loss" in name.lower():
            kind = "loss"
        elif all(0 <= y <= 1 for _, y in column) and max(y for _, y in column) > 0.05:
            kind = "score"
        else:
            kind = name.removeprefix("val_")[:MAX_NAME]
        groups.setdefault(kind, []).append(line)
    charts = []
    for kind, lines in groups.items():
        for begin in range(0, len(lines), MAX_SERIES):
            part = tuple(lines[begin : begin + MAX_SERIES])
            title = "Loss" if kind == "loss" else "Metrics" if kind == "score" else kind
            is_positive = all(y >= 0 for line in part for _, y in line.points)
            ends = (0.0 if is_positive else None, 1.0 if kind == "score" else None)
            charts.append(Chart(title, "epoch", kind, part, *ends))
    return charts[:MAX_CHARTS]


def usage(text: str) -> list[Chart]:
    """Return the job's usage: time and memory of each GPU; processor and memory when there is no GPU."""
    columns: dict[str, dict[str, list[Point]]] = {}
    names: dict[str, str] = {}
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
        for (kind, name), value in measured.items():
            if value is not None:
                columns.setdefault(kind, {}).setdefault(name, []).append((time / 60, value))
    kinds = [
        ("gpu", "GPU use", "percent", 100.0),
        ("gpu-memory", "GPU memory", "MiB", None),
        ("cpu", "Processor use", "percent of one core", None),
        ("memory", "Memory", "MiB", None),
    ]
    charts = []
    for kind, title, unit, ceiling in kinds:
        all_series = [series(name, points) for name, points in columns.get(kind, {}).items()]
        lines = tuple(line for line in all_series if line is not None)[:MAX_SERIES]
        if lines:
            charts.append(Chart(title, "minutes", unit, lines, 0.0, ceiling))
    return charts
