"""The job summary: a report as GitHub's markdown, in which untrusted text has no effect as markup."""

import re

from train_classifier.core.errors import link_of
from train_classifier.core.text import short
from train_classifier.reports.chart_drawing import SQUARES, mermaid
from train_classifier.reports.report import Report

#: Most bytes of the log's tail; the other sections may leave less room.
MAX_LOG = 128 << 10


def inline_code(text: str) -> str:
    """Return untrusted text as inline code for a cell of a table: no markup, link or mention in it."""
    flat = short(" ".join(text.split()), 600)
    return f"<code>{_entities(flat)}</code>" if flat else ""


def plain_text(text: str, limit: int = 2000) -> str:
    """Return untrusted text as plain text: no markup, link or mention in it."""
    flat = short(" ".join(text.split()), limit)
    # A dash, a sign or a number at the beginning would start a rule, a heading or a list.
    escaped = re.sub(r"\A[-+=0-9]", lambda match: f"&#{ord(match[0])};", _entities(flat))
    # GitHub searches for mentions after resolving entities; a zero-width space prevents a mention.
    return re.sub(r"(&#64;|&#35;)", "\\1\u200b", escaped)


def _entities(text: str) -> str:
    escaped = re.sub(r"[^\w .,;%=+…()-]|_", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"(?i)(www)\.", "\\1&#46;", escaped)


def fenced(text: str) -> str:
    """Return text as a code block that it cannot end: the fence is longer than any fence in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def markdown(report: Report, limit: int = 1 << 20) -> str:
    """Return the summary in at most `limit` bytes of UTF-8; a note names sections that do not fit.

    The table comes first and the log is cut at a line, so that the most important content remains.
    """
    mark = "✅" if report.succeeded else "❌"
    facts = [
        "| | |",
        "|---|---|",
        *(f"| {label} | {inline_code(value)} |" for label, value in report.facts()),
    ]
    head = f"## {mark} {plain_text(report.headline(), 200)}"
    sections = ["\n".join(facts)]
    failure = report.failure_texts()
    if failure:
        sections.append(
            "\n\n".join([f"**{plain_text(failure[0])}**", *(plain_text(part) for part in failure[1:])])
        )
    link = link_of(report.result)
    if link:
        sections.append(f"[What this means, and what to do]({link})")
    metrics = report.metrics()
    if metrics:
        rows = (f"| {inline_code(name)} | {value} |" for name, value in metrics)
        sections.append("\n".join(["### Final metrics", "", "| Metric | Value |", "|---|---:|", *rows]))
    note = "\n\n*Cut: the rest is in the report and in `artefacts.tar.gz`.*"
    space = limit - len(head.encode()) - len(note.encode()) - 2
    parts, cut = [head], False

    def add(section: str) -> None:
        nonlocal space, cut
        size = len(section.encode()) + 2
        if size > space:
            cut = True
        else:
            parts.append(section)
            space -= size

    for section in sections:
        add(section)
    # The log comes before the curves, as it is the reason to open the summary of a failed job.
    if not report.succeeded:
        # A fence may have to be as long as the longest run of backticks, twice.
        tail = report.tail(min(MAX_LOG, max(space - 400, 0)))
        if tail:
            add(f"<details open><summary>End of the log</summary>\n\n{fenced(tail)}\n\n</details>")
        cut |= bool(report.log.strip()) and not tail
    for chart in report.charts:
        legend = " · ".join(
            f"{square} {inline_code(line.name)}" for square, line in zip(SQUARES, chart.series, strict=False)
        )
        add(f"{mermaid(chart)}\n\n{legend}")
    return "\n\n".join(parts) + (note if cut else "") + "\n"
