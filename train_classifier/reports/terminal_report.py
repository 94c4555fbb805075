"""A report for the terminal: the same essentials as the page, with plots of braille dots."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train_classifier.core import text
from train_classifier.core.report.facts import mapping, words
from train_classifier.core.report.metrics import number

#: Most columns of a report, lines of a plot, plots, and lines of one plot's curve that colours distinguish.
MAX_WIDTH, PLOT_HEIGHT, MAX_PLOTS = 80, 8, 6
#: Names that plotille knows, and their codes.
COLOURS = {"blue": 34, "yellow": 33, "green": 32, "magenta": 35, "cyan": 36, "red": 31}
#: Columns that plotille takes beside the plot itself.
PLOT_MARGIN = 16
#: Columns from tick to tick of the x axis, and how much wider a plot may be for whole numbers there.
TICK, MOST_WIDER = 10, 1.2
#: Most lines of a traceback, and rows of a table.
MAX_TRACEBACK, MAX_ROWS = 30, 40


def render(document: Mapping[str, Any], width: int | None, colour: bool, has_braille: bool) -> str:
    """Return the report of a document; `width` is the terminal's. Untrusted text has no control characters.

    Raises KeyError, TypeError, ValueError and the like for a document that is damaged.
    """
    columns = max(min(width or MAX_WIDTH, MAX_WIDTH), 40)
    parts = [text.hanging("", document["title"], columns)]
    parts += [text.hanging("  ", part, columns) for part in words(document.get("failure"))]
    parts += _traceback(document)
    metrics = [[str(name), str(value)] for name, value in document["metrics"]]
    parts += _section("Metrics", text.table(metrics[:MAX_ROWS], right=(1,), width=columns))
    parts += _comparison(mapping(document.get("comparison")), columns)
    if has_braille:
        # All curves, and of the use that of the GPUs or of the processor.
        charts = [*document["curves"][: MAX_PLOTS - 2], *document["usage"][:2]]
        parts += [plot for chart in charts for plot in _plots(chart, columns, colour)]
    for group in document["facts"]:
        rows = [(label, _fact(value)) for label, value in group["rows"]]
        aligned = [text.hanging(f"{text.clean(label):<16}", value, columns) for label, value in rows]
        parts += _section(text.clean(group["title"]), "\n".join(aligned))
    notes = [text.hanging("- ", note, columns) for note in words(document.get("notes"))]
    parts += _section("Not shown", "\n".join(notes))
    return "\n".join(parts)


def _section(title: str, content: str) -> list[str]:
    return ["", title, content] if content else []


def _traceback(document: Mapping[str, Any]) -> list[str]:
    log = mapping(document.get("log"))
    part, lines = log.get("traceback"), words(log.get("lines"))
    if document.get("succeeded") or not lines:
        return []
    shown = lines[slice(*part)] if part else lines
    return _section("Traceback" if part else "End of the log", text.clean("\n".join(shown[-MAX_TRACEBACK:])))


def _comparison(comparison: Mapping[str, Any], width: int) -> list[str]:
    if not comparison.get("runs"):
        return []
    rows = [
        [run["job"], run["outcome"], *(_cell(value) for value in run["values"])]
        for run in comparison["runs"][-MAX_ROWS:]
    ]
    head = ["job", "outcome", *words(comparison["columns"])]
    # What no run has tells them not apart, nor does a commit that all have.
    filled = [
        column
        for column, name in enumerate(head)
        if column < 2
        or (len({row[column] for row in rows}) > 1 if name == "commit" else any(row[column] for row in rows))
    ]
    head, *rows = ([row[column] for column in filled] for row in (head, *rows))
    # Metrics keep their digits as long as there are arguments to be shortened.
    arguments = head.index("arguments") if "arguments" in head else None
    return _section("Earlier runs", text.table(rows, head, width=width, shortened_first=arguments))


def _cell(value: Any) -> str:
    return text.number(value) if number(value) is not None else str(value or "")


def _fact(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    if number(value.get("time")) is not None:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(max(value["time"], 0), 1e11)))
    return " ".join(words(value.get("words"))) or str(value.get("text") or "")


def _plots(chart: Mapping[str, Any], width: int, colour: bool) -> Iterator[str]:
    """Yield a chart as text: all lines in one plot where colours tell them apart, else a plot for each."""
    lines = [line for line in chart["lines"] if len(line["x"]) > 1][: len(COLOURS)]
    for shown in [lines] if colour else [[line] for line in lines[:2]]:
        yield _plot(chart, shown, width, colour)


def _plot(chart: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], width: int, colour: bool) -> str:
    # It takes a tenth of a second, and most commands draw nothing.
    import plotille

    figure = plotille.Figure()
    figure.width, figure.height = width - PLOT_MARGIN, PLOT_HEIGHT
    figure.color_mode, figure.with_colors, figure.origin = "names", colour, False
    figure.x_label = figure.y_label = ""
    figure.register_label_formatter(float, _tick)
    figure.register_label_formatter(int, _tick)
    ys = [float(y) for line in lines for y in line["y"]]
    xs = [float(x) for line in lines for x in line["x"]]
    low, high = min(ys), max(ys)
    if 0 < low < high / 2:
        low = 0.0
    # Each Braille sign has 2 x 4 dots.
    left, right = min(xs), _above(min(xs), max(xs), 2 * figure.width)
    if chart["x"] != "seconds" and all(x.is_integer() for x in xs) and max(xs) > left:
        figure.register_label_formatter(float, _whole_tick)
        # A little more than the lines need: plotille draws nothing that lies at the end itself.
        right = left + _whole_step((max(xs) - left) * 1.0001 * TICK / figure.width) * figure.width / TICK
    figure.set_x_limits(left, right)
    figure.set_y_limits(low, _above(low, high, 4 * figure.height))
    for line, name in zip(lines, COLOURS, strict=False):
        figure.plot(line["x"], line["y"], lc=name if colour else None)
    names = []
    for line, code in zip(lines, COLOURS.values(), strict=False):
        name = text.clean(line["name"])
        names.append(f"{f'{chr(27)}[{code}m{name}{chr(27)}[0m' if colour else name} {_cell(line['y'][-1])}")
    # The names of the axes, which make rows longer, stand in the title.
    rows = [row.rstrip().removesuffix(" ()") for row in figure.show().split("\n")[1:]]
    if len(rows[-1]) > width:
        # The last number of the axis, which may stand beyond the plot.
        rows[-1] = rows[-1][:width].rpartition(" ")[0].rstrip()
    title = chart["title"] if chart["x"] != "seconds" else f"{chart['title']}, {chart['y']}"
    return "\n".join(["", f"{text.clean(title)} by {text.clean(chart['x'])}: {'  '.join(names)}", *rows])


def _above(low: float, high: float, dots: int) -> float:
    """Return the upper end of an axis of so many dots: plotille draws nothing that lies at the end itself."""
    if high - low > 1e-9 * max(abs(high), 1e-9):
        return high + (high - low) * 1.5 / dots
    return high + (abs(high) or 1.0) / 10


def _whole_step(least: float) -> float:
    """Return a step from tick to tick, not much larger than the least, at which whole numbers come.

    They come at each tick, at every second, third or fourth, or, where they are few, at rarer ones.
    """
    unit = 10 ** max(math.floor(math.log10(least)) - 1, 0)
    steps = [math.ceil(least * parts / unit) * unit / parts for parts in (1, 2, 3, 4)]
    near = [step for step in steps if step <= least * MOST_WIDER]
    return near[0] if near else 1 / math.floor(1 / least) if least < 0.5 else steps[-1]


def _whole_tick(value: float, chars: int, delta: Any = None, left: bool = False) -> str:
    """As `_tick`; of the ticks of the x axis, which stand left, only whole numbers are shown."""
    if left and math.isfinite(value):
        value = round(value) if abs(value - round(value)) < 1e-6 * max(abs(value), 1) else math.nan
    return _tick(value, chars, delta, left)


def _tick(value: float, chars: int, delta: Any = None, left: bool = False) -> str:
    """Return a number of an axis in at most `chars` columns, as plotille asks for it."""
    shown = ""
    if math.isfinite(value):
        shown = f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
    return shown[:chars].ljust(chars) if left else shown[:chars].rjust(chars)
