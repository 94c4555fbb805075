"""The job summary: a report as GitHub's markdown, in which untrusted text has no effect as markup."""

import re

from train_classifier.reports.chart_drawing import SQUARES, mermaid
from train_classifier.reports.report import Report

#: Most bytes of the log's tail; the other sections may leave less room.
MOST_LOG = 128 << 10


def code(text: str, most: int = 600) -> str:
    """Return untrusted text as inline code for a cell of a table: no markup, link or mention in it."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= most else flat[: most - 1] + "…"
    return f"<code>{_entities(flat)}</code>" if flat else ""


def prose(text: str, most: int = 2000) -> str:
    """Return untrusted text as plain text: no markup, link or mention in it."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= most else flat[: most - 1] + "…"
    # A dash, a sign or a number at the beginning would start a rule, a heading or a list.
    escaped = re.sub(r"\A[-+=0-9]", lambda match: f"&#{ord(match[0])};", _entities(flat))
    # GitHub searches for mentions after resolving entities; a zero-width space prevents a mention.
    return re.sub(r"(&#64;|&#35;)", "\\1\u200b", escaped)


def _entities(text: str) -> str:
    escaped = re.sub(r"[^\w .,;%=+…()-]|_", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"(?i)(www)\.", "\\1&#46;", escaped)


def fenced(text: str, language: str = "text") -> str:
    """Return text as a code block that it cannot end: the fence is longer than any fence in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def markdown(report: Report, limit: int = 1 << 20) -> str:
    """Return the summary in at most `limit` bytes of UTF-8; a note names sections that do not fit.

    The table comes first and the log is cut at a line, so that the most important content remains.
    """
    mark = "✅" if report.good else "❌"
    facts = ["| | |", "|---|---|", *(f"| {label} | {code(value)} |" for label, value in report.facts())]
    head = f"## {mark} {prose(report.headline(), 200)}"
    sections = ["\n".join(facts)]
    trouble = report.trouble()
    if trouble:
        sections.append("\n\n".join([f"**{prose(trouble[0])}**", *(prose(part) for part in trouble[1:])]))
    metrics = report.metrics()
    if metrics:
        rows = (f"| {code(name)} | {value} |" for name, value in metrics)
        sections.append("\n".join(["### Final metrics", "", "| Metric | Value |", "|---|---:|", *rows]))
    log = "" if report.good else "log"
    charts = []
    for chart in report.charts:
        legend = " · ".join(
            f"{square} {code(line.name)}" for square, line in zip(SQUARES, chart.series, strict=False)
        )
        charts.append(f"{mermaid(chart)}\n\n{legend}")

    note = "\n\n*Cut: the rest is in the report and in `artefacts.tar.gz`.*"
    left = limit - len(head.encode()) - len(note.encode()) - 2
    kept, cut = [], False
    # The log comes before the curves, as it is the reason to open the summary of a failed job.
    for section in [*sections, *([log] if log else []), *charts]:
        text = section
        if section == "log":
            tail = report.tail(min(MOST_LOG, max(left - 400, 0)))
            # A fence may have to be as long as the longest run of backticks, twice.
            block = fenced(tail)
            text = f"<details open><summary>End of the log</summary>\n\n{block}\n\n</details>" if tail else ""
            cut |= bool(report.log.strip()) and not tail
        size = len(text.encode()) + 2
        if size > left:
            cut = True
            continue
        if text:
            kept.append(text)
            left -= size
    return "\n\n".join([head, *kept]) + (note if cut else "") + "\n"
