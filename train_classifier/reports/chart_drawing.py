"""Draws charts as mermaid, which GitHub renders in a job summary."""

import math
import re

from train_classifier.reports.chart_data import Chart

#: Colours for up to six lines, distinct in light and dark, and the squares that name them under a mermaid
#: chart, which has no legend.
COLOURS = ("#2f81f7", "#e8590c", "#2da44e", "#8957e5", "#c69026", "#8d5a3b")
SQUARES = ("🟦", "🟧", "🟩", "🟪", "🟨", "🟫")


def axis_number(value: float, span: float) -> str:
    """Return a number of an axis that spans `span`, without an exponent, which mermaid does not read."""
    digits = max(0, min(12, 4 - math.floor(math.log10(span))))
    text = f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def mermaid_text(text: str) -> str:
    """Return text that is safe between a mermaid chart's double quotes."""
    return re.sub(r"[^\w .,()/+=%-]", "_", text).replace("%%", "%") or "_"


def mermaid(chart: Chart) -> str:
    """Return a chart as the text of a mermaid block, fence included."""
    palette = ", ".join(COLOURS[: len(chart.series)])
    low, high = chart.range()
    begin, end = chart.domain()
    x_ends = f"{axis_number(begin, end - begin)} --> {axis_number(end, end - begin)}"
    y_ends = f"{axis_number(low, high - low)} --> {axis_number(high, high - low)}"
    lines = [
        "```mermaid",
        f'%%{{init: {{"themeVariables": {{"xyChart": {{"plotColorPalette": "{palette}"}}}}}}}}%%',
        "xychart-beta",
        f'    title "{mermaid_text(chart.title)}"',
        f'    x-axis "{mermaid_text(chart.x)}" {x_ends}',
        f'    y-axis "{mermaid_text(chart.y)}" {y_ends}',
    ]
    for series in chart.series:
        # Mermaid spreads each line evenly over the whole axis: extend a shorter one with its end values.
        points = [axis_number(_value_at(series.points, x), high - low) for x in _grid(chart)]
        lines.append(f"    line [{', '.join(points)}]")
    lines.append("```")
    return "\n".join(lines)


def _grid(chart: Chart) -> list[float]:
    begin, end = chart.domain()
    count = max(len(series.points) for series in chart.series)
    return [begin + (end - begin) * index / (count - 1) for index in range(count)]


def _value_at(points: tuple[tuple[float, float], ...], x: float) -> float:
    """Return a line's value at x; beyond an end, the value of that end. The points have even distances."""
    position = (x - points[0][0]) / (points[-1][0] - points[0][0]) * (len(points) - 1)
    position = min(max(position, 0.0), len(points) - 1.0)
    index = min(int(position), len(points) - 2)
    before, after = points[index][1], points[index + 1][1]
    return before + (after - before) * (position - index)
