"""Draws charts: as mermaid, which GitHub renders in a job summary, and as SVG for a separate page."""

import html
import math
import re

from train_classifier.reports.chart_data import Chart

#: Colours for up to six lines, distinct in light and dark, and the squares that name them under a mermaid
#: chart, which has no legend.
COLOURS = ("#2f81f7", "#e8590c", "#2da44e", "#8957e5", "#c69026", "#8d5a3b")
SQUARES = ("🟦", "🟧", "🟩", "🟪", "🟨", "🟫")

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44


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


def ticks(low: float, high: float, limit: int = 6) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / limit
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(chart: Chart) -> str:
    """Return a chart as an SVG element that takes its colours from the page's style sheet."""
    low, high = chart.range()
    begin, end = chart.domain()

    def across(x: float) -> float:
        return LEFT + (x - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    names = ", ".join(series.name for series in chart.series)
    label = html.escape(f"{chart.title}: {names} by {chart.x}")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in ticks(low, high):
        y = down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{axis_number(tick, high - low)}</text>'
        )
    for tick in ticks(begin, end, 8):
        x, number = across(tick), axis_number(tick, end - begin)
        parts.append(f'<text class="mid" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}">{number}</text>')
    centre = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="mid" x="{centre}" y="{HEIGHT - 6}">{html.escape(chart.x)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="mid" transform="translate(14 {middle}) rotate(-90)">{html.escape(chart.y)}</text>'
    )
    for index, series in enumerate(chart.series):
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in series.points)
        parts.append(f'<polyline class="line c{index}" points="{path}"/>')
    return "".join([*parts, "</svg>"])
