"""What a model leaves and what is made of it: no crash, bounded time, and nothing in it becomes markup.

Every example is chosen by hypothesis from a fixed seed, so that two runs are the same.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
from typing import Any

import pytest
from hostile import DATA, FIXED, LEAVES, NUMBERS, RESULT, TEXT, VALUES, bounded, digits, tables
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from train_classifier.core.errors import TROUBLESHOOTING
from train_classifier.core.report import curves, document, event_files, images, log_end, page
from train_classifier.core.text import number, short, table
from train_classifier.github_action import slack_message, workflow_commands
from train_classifier.reports import archive_reader, chart_data, job_summary, tracebacks
from train_classifier.reports.report import Report

# What a model leaves.


def framed(events: list[bytes]) -> bytes:
    """Return records as TensorBoard frames them."""
    return b"".join(struct.pack("<Q", len(event)) + bytes(4) + event + bytes(4) for event in events)


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
        curves.thinned(io.BytesIO(content.encode("utf-8", "replace")), limit=100)
        check_page(Report(result={"exit_code": 0}, history=content, usage=content).page())
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


@FIXED
@given(content=DATA | st.lists(DATA, max_size=5).map(framed))
def test_event_files_of_any_content_are_read(content: bytes) -> None:
    with bounded():
        table = event_files.read(io.BytesIO(content), len(content))
    for points in (table.lines if table else {}).values():
        assert all(math.isfinite(value) for point in points for value in point)


@FIXED
@given(
    content=DATA
    | DATA.map(lambda data: b"\x89PNG\r\n\x1a\n" + data)
    | DATA.map(lambda data: b"\xff\xd8\xff" + data)
)
def test_only_whole_images_are_shown(content: bytes) -> None:
    with bounded():
        assert images.check(content) is None


@FIXED
@given(
    content=TEXT,
    rows=st.lists(
        st.dictionaries(TEXT | st.sampled_from(["epoch", "step"]), VALUES, max_size=5), max_size=20
    ),
)
def test_json_lines_of_any_content_are_shown(content: str, rows: list[dict[str, Any]]) -> None:
    lines = "\n".join([content, *(json.dumps(row, default=str) for row in rows)])
    with bounded():
        table = curves.from_json_lines(lines)
        tables = [("artefacts/log.jsonl", table)] if table else []
        check_page(page.render(document.build(document.JobRecords(result={"exit_code": 0}, tables=tables))))


@FIXED
@given(log=TEXT)
def test_last_traceback_is_a_part_of_the_log(log: str) -> None:
    with bounded():
        lines = log_end.clean_lines(log)
        part = log_end.traceback(lines)
    assert part is None or 0 <= part[0] < part[1] <= len(lines)


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


def check_page(content: bytes) -> None:
    """Check that a page is the prebuilt one, with a document in it that cannot end its element."""
    text = content.decode("ascii", "replace")
    before, mark, after = text.partition(page.MARK)
    data, end, after = after.partition(page.END)
    prebuilt = page.PAGE.read_bytes().decode("ascii", "replace")
    assert f"{before}{mark}null{end}{after}" == prebuilt
    assert not re.search(r"[<>&\u2028\u2029]", data)
    # As a browser's JSON.parse, which knows no NaN.
    assert isinstance(json.loads(data, parse_constant=lambda name: pytest.fail(name)), dict)
    assert len(content) <= page.MAX_PAGE


#: As GitHub has it: HTML is allowed, tables are known.
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
BLOCKS = {"<details open><summary>End of the log</summary>\n", "</details>", "</details>\n"}


OUR_LINK = re.escape(TROUBLESHOOTING) + "[a-z0-9-]+"
#: The end of a link has no address.
LINK_END = TROUBLESHOOTING + "end"


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
                if child.type in ("link_open", "link_close"):
                    # Our own page about the outcome.
                    assert re.fullmatch(OUR_LINK, str(child.attrs.get("href", LINK_END)))
                    continue
                assert child.type in (
                    "text", "text_special", "softbreak", "strong_open", "strong_close", "em_open", "em_close",
                    "html_inline", "code_inline",
                )  # fmt: skip
                if child.type == "html_inline":
                    assert child.content in ("<code>", "</code>")
            # What GitHub makes a link of without any markup.
            outside = re.sub(rf"<code>.*?</code>|\]\({OUR_LINK}\)", "", token.content)
            assert not re.search(
                r"(?i)https?:|www\.|@|#\w", re.sub(r"&#\d+;", "", outside).replace("&#64;", "")
            )
        else:
            assert token.type.rpartition("_")[0] in (
                "heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td"
            ), token.type  # fmt: skip


@FIXED
@given(report=REPORT)
def test_page_of_a_report_is_the_prebuilt_one(report: Report) -> None:
    with bounded():
        check_page(report.page())


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
