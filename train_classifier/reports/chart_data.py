"""Reads history.csv and usage.csv into charts: named series of points, thinned for the drawing."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

from train_classifier.core.report import curves
from train_classifier.core.report.curves import MAX_NAME, Point
from train_classifier.core.report.document import USAGE

#: Limits of a chart and a report, as a model may write thousands of columns and millions of rows.
MAX_SERIES, MAX_CHARTS, MAX_POINTS = 6, 8, 60


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


def history(text: str) -> list[Chart]:
    """Return the learning curves: losses together, shares (0 to 1) together, others with their val_ twin."""
    table = curves.from_csv(text)
    if table is None:
        return []
    drawn = {name: series(name, points) for name, points in table.lines.items()}
    charts = []
    for kind, names in curves.groups(table.lines).items():
        lines = [line for name in names if (line := drawn[name]) is not None]
        for begin in range(0, len(lines), MAX_SERIES):
            part = tuple(lines[begin : begin + MAX_SERIES])
            title = "Loss" if kind == "loss" else "Metrics" if kind == "score" else kind
            is_positive = all(y >= 0 for line in part for _, y in line.points)
            ends = (0.0 if is_positive else None, 1.0 if kind == "score" else None)
            charts.append(Chart(title, table.axis, kind, part, *ends))
    return charts[:MAX_CHARTS]


def usage(text: str) -> list[Chart]:
    """Return the job's usage: time and memory of each GPU; processor, memory and disk."""
    measured = curves.usage(text)
    charts = []
    for kind, title, unit, ceiling in USAGE:
        all_series = [
            series(name, [(time / 60, value) for time, value in points])
            for name, points in measured.get(kind, {}).items()
        ]
        lines = tuple(line for line in all_series if line is not None)[:MAX_SERIES]
        if lines:
            charts.append(Chart(title, "minutes", unit, lines, 0.0, ceiling))
    return charts
