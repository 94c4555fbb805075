"""What a model leaves and what is made of it: no crash, bounded time, and nothing in it becomes markup.

Every example is chosen by hypothesis from a fixed seed, so that two runs are the same.
"""

from __future__ import annotations

import html.parser
import io
import json
import math
import re
from typing import Any

import pytest
from hostile import DATA, FIXED, LEAVES, NUMBERS, RESULT, TEXT, VALUES, bounded, digits, tables
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from train_classifier.core.text import number, short, table
from train_classifier.github_action import slack_message, workflow_commands
from train_classifier.reports import archive_reader, chart_data, html_page, job_summary, tracebacks
from train_classifier.reports.report import Report

# What a model leaves.


@FIXED
@given(content=TEXT)
def test_curves_are_finite(content: str) -> None:
    with bounded():
        for chart in chart_data.history(content) + chart_data.usage(content):
            assert all(
                math.isfinite(value) for line in chart.series for point in line.points for value in point
            )


@FIXED
@given(
    head=st.lists(st.sampled_from(["epoch", "loss", "val_loss", "time_s", "gpu_uuid", "memory_bytes", "x"]), max_size=5),
    rows=st.lists(st.lists(NUMBERS.map(digits) | TEXT, max_size=5), max_size=20),
)  # fmt: skip
def test_tables_of_any_content_are_rendered_safely(head: list[str], rows: list[list[str]]) -> None:
    content = "\n".join(",".join(row) for row in [head, *rows])
    with bounded():
        archive_reader.thinned(io.BytesIO(content.encode("utf-8", "replace")), limit=100)
        check_page(html_page.render(Report(result={"exit_code": 0}, history=content, usage=content)))
        check_markdown(job_summary.markdown(Report(result={"exit_code": 4}, history=content, usage=content)))


@FIXED
@given(content=DATA)
def test_manifest_of_any_content_is_read(content: bytes) -> None:
    with bounded():
        assert isinstance(archive_reader.ArchiveFiles(manifest=content).manifest_data, dict)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"\xff", b'{"a": NaN}', b"[]"],
    ids=range(6),
)
def test_hostile_manifest_is_read(content: bytes) -> None:
    with bounded():
        assert isinstance(archive_reader.ArchiveFiles(manifest=content).manifest_data, dict)


# What is made of it.

REPORT = st.builds(
    Report,
    result=st.one_of(
        RESULT,
        st.fixed_dictionaries(
            {
                "exit_code": st.sampled_from([0, 4, 6]),
                "model": TEXT, "id": TEXT, "outcome": TEXT, "reason": TEXT, "hint": TEXT, "detail": TEXT,
                "signal": TEXT, "training_exit_status": NUMBERS,
                "metrics": st.dictionaries(TEXT, NUMBERS, max_size=5),
                "seconds": st.dictionaries(TEXT, NUMBERS, max_size=5),
                "gpus": st.lists(tables("name", "uuid", values=TEXT), max_size=3),
                "image": tables("reference", values=TEXT),
                "archive": tables("bytes", "sha256", values=LEAVES),
                "out_of_memory": tables("limit_bytes", values=NUMBERS),
            }
        ),
    ),
    manifest=tables("repository", "host", values=VALUES | tables("name", "commit", "dirty")),
    history=TEXT,
    usage=TEXT,
    log=TEXT,
    log_is_cut=st.booleans(),
    host=TEXT,
)  # fmt: skip

TAGS = {
    "html": {"lang"}, "head": set(), "meta": {"charset", "http-equiv", "content", "name"}, "title": set(), "style": set(),
    "body": set(), "h1": {"class"}, "h2": set(), "div": {"class"}, "p": set(), "table": set(), "tr": set(), "th": set(),
    "td": {"class"}, "figure": set(), "figcaption": set(), "span": {"class"}, "b": set(), "pre": set(),
    "svg": {"viewbox", "role", "aria-label"}, "line": {"class", "x1", "x2", "y1", "y2"},
    "text": {"class", "x", "y", "transform"}, "polyline": {"class", "points"},
}  # fmt: skip


class _Tags(html.parser.HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= TAGS[tag]

    handle_startendtag = handle_starttag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def check_page(text: str) -> None:
    """Check that a page has our tags only."""
    text.encode()
    _Tags().feed(text)


#: As GitHub has it: HTML is allowed, tables are known.
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
BLOCKS = {"<details open><summary>End of the log</summary>\n", "</details>", "</details>\n"}


def check_markdown(text: str) -> None:
    """Check that a summary has our headings, tables and blocks only."""
    assert len(text.encode()) <= 1 << 20
    for token in MARKDOWN.parse(text):
        if token.type == "html_block":
            assert token.content in BLOCKS
        elif token.type == "fence":
            assert token.info in ("text", "mermaid")
            if token.info == "mermaid":
                assert re.fullmatch(
                    r'%%\{init: [^\n]*\}%%\nxychart-beta\n( {4}[\w "\'.,()/+=%>\[\]-]*\n)*', token.content
                )
        elif token.type == "inline":
            for child in token.children or []:
                assert child.type in (
                    "text", "text_special", "softbreak", "strong_open", "strong_close", "em_open", "em_close",
                    "html_inline", "code_inline",
                )  # fmt: skip
                if child.type == "html_inline":
                    assert child.content in ("<code>", "</code>")
            # What GitHub makes a link of without any markup.
            outside = re.sub(r"<code>.*?</code>", "", token.content)
            assert not re.search(
                r"(?i)https?:|www\.|@|#\w", re.sub(r"&#\d+;", "", outside).replace("&#64;", "")
            )
        else:
            assert token.type.rpartition("_")[0] in (
                "heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td"
            ), token.type  # fmt: skip


@FIXED
@given(report=REPORT)
def test_report_has_only_own_tags(report: Report) -> None:
    with bounded():
        check_page(html_page.render(report))


@FIXED
@example(report=Report(result={"reason": " "}))
@given(report=REPORT)
def test_job_summary_has_only_own_markup(report: Report) -> None:
    with bounded():
        check_markdown(job_summary.markdown(report))


@FIXED
@given(report=REPORT, room=st.integers(0, 3000))
def test_shortened_job_summary_is_rendered(report: Report, room: int) -> None:
    with bounded():
        job_summary.markdown(report, room)


@FIXED
@given(
    notice=st.builds(
        slack_message.Notice,
        event=st.sampled_from(slack_message.Event),
        model=TEXT, repository=TEXT, host=TEXT, job=TEXT, phase=TEXT, reason=TEXT, hint=TEXT, tail=TEXT,
        exit_status=NUMBERS, seconds=NUMBERS, metrics=st.dictionaries(TEXT, NUMBERS, max_size=5),
        run_url=st.sampled_from(["", "https://github.com/a/b"]),
    )
)  # fmt: skip
def test_slack_message_has_no_markup_of_users(notice: slack_message.Notice) -> None:
    with bounded():
        message = slack_message.message(notice)
        json.loads(json.dumps(message, allow_nan=False).encode())
    for block in message["blocks"]:
        for part in [block.get("text"), *block.get("fields", ())]:
            if part is None:
                continue
            text = part["text"]
            assert len(text) <= 3000
            assert "<" not in text.replace("<https://github.com/a/b|open the run>", "")
            assert text.count("```") in (0, 2)
            assert all(letter.isprintable() or letter in "\n\t\u200b" for letter in text)
    assert "<" not in message["text"]


@FIXED
@given(log=TEXT)
def test_annotations_are_single_safe_commands(log: str) -> None:
    with bounded():
        annotation_list = tracebacks.find(log)
    assert len(annotation_list) <= tracebacks.MAX_ANNOTATIONS
    for annotation in annotation_list:
        assert not annotation.file.startswith(("/", ".."))
        line = workflow_commands.command(
            "error", annotation.message, file=annotation.file, line=annotation.line, title=annotation.message
        )
        assert line.count(b"\n") == 1
        assert b"\r" not in line
        assert re.fullmatch(rb"::error file=[^:,]*,line=[0-9]+,title=[^:,]*::.*\n", line, re.DOTALL)


@FIXED
@given(rows=st.lists(st.lists(LEAVES, min_size=3, max_size=3), max_size=4))
def test_terminal_output_has_no_control_characters(rows: list[list[Any]]) -> None:
    with bounded():
        shown = table([[short(cell, 50) for cell in row] for row in rows])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    with bounded():
        for row in rows:
            for cell in row:
                if isinstance(cell, (int, float)):
                    number(cell)
