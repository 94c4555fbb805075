"""What is written for a workflow run: commands that cannot be forged, files that cannot be broken out of."""

import io
import re
from pathlib import Path

import pytest

from train_classifier.github_action.workflow_commands import (
    SUMMARY_LIMIT,
    Workflow,
    escape_property,
    is_github,
    run_url,
)


def workflow(**environment: str) -> tuple[Workflow, io.BytesIO]:
    stream = io.BytesIO()
    return Workflow(stream, {"GITHUB_ACTIONS": "true"} | environment), stream


def outputs(path: Path) -> dict[str, str]:
    """Read the file as the runner does: NAME<<DELIMITER, lines, DELIMITER."""
    values, lines = {}, path.read_text().split("\n")
    while lines:
        head = lines.pop(0)
        if not head:
            continue
        name, end = head.split("<<", 1)
        value = []
        while (line := lines.pop(0)) != end:
            value.append(line)
        values[name] = "\n".join(value)
    return values


def commands(data: bytes) -> list[str]:
    """Return the commands that a runner carries out: its rules for stop-commands and the start of a line."""
    stopped, done = None, []
    for line in re.split(r"\r\n|\n|\r", data.decode("utf-8", "replace")):
        text = line.lstrip()
        if stopped:
            stopped = None if text == f"::{stopped}::" else stopped
        elif match := re.match(r"::stop-commands::(.+)", text):
            stopped = match[1]
        elif text.startswith("::") or "##[" in text:
            done.append(text)
    return done


def test_commands_are_escaped() -> None:
    run, stream = workflow()
    run.group("Training\n::error::x")
    run.error("50% done\r\n::set-output name=a::b", title="a,b:c", file="mnist/a,b.py", line=3)
    run.end_group()
    assert stream.getvalue().decode().splitlines() == [
        "::group::Training%0A::error::x",
        "::error file=mnist/a%2Cb.py,line=3,title=a%2Cb%3Ac::50%25 done%0D%0A::set-output name=a::b",
        "::endgroup::",
    ]
    assert escape_property("%0A") == "%250A"


def test_training_output_cannot_issue_commands() -> None:
    run, stream = workflow()
    with run.stopped():
        for part in (
            b"::error::a\n",
            b"::add-",
            b"mask::b\r::set-output name=x::y\n##[error]c\n",
            b"::resume",
            b"::\nend",
        ):
            run.write(part)
    run.warning("mine")
    assert commands(stream.getvalue()) == ["::warning::mine"]
    assert b"::add-mask::b\r" in stream.getvalue()


def test_each_stop_has_its_own_token_and_ends_after_an_error() -> None:
    run, stream = workflow()
    for _ in range(2):
        with pytest.raises(KeyError), run.stopped():
            raise KeyError
    run.error("after")
    tokens = re.findall(rb"stop-commands::(\S+)", stream.getvalue())
    assert len(set(tokens)) == 2
    assert all(len(token) > 40 for token in tokens)
    assert commands(stream.getvalue()) == ["::error::after"]


def test_every_line_of_a_secret_is_masked() -> None:
    run, stream = workflow()
    run.mask("first%\nsecond\n\n")
    assert stream.getvalue().decode().splitlines() == [
        "::add-mask::first%25%0Asecond%0A%0A",
        "::add-mask::first%25",
        "::add-mask::second",
    ]


def test_outputs_hold_any_value(tmp_path: Path) -> None:
    path = tmp_path / "out"
    run, _ = workflow(GITHUB_OUTPUT=str(path))
    values = {"metrics": '{"a": 1}', "odd": "x<<EOF\nEOF\nexit-code<<E\n0\nE", "empty": "", "text": "é\n"}
    for name, value in values.items():
        assert run.set_output(name, value)
    assert outputs(path) == values
    with pytest.raises(ValueError, match="not a valid name"):
        run.set_output("a<<b\n", "x")


def test_summary_is_added_and_never_passes_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    path.write_text("before\n")
    run, stream = workflow(GITHUB_STEP_SUMMARY=str(path))
    assert run.add_summary("## mnist")
    assert path.read_text() == "before\n\n## mnist\n"
    assert run.add_summary("x" * (run.summary_space() - 2))
    assert not run.add_summary("y" * 4096)
    assert path.stat().st_size <= SUMMARY_LIMIT
    assert commands(stream.getvalue()) == ["::warning::The job summary is full: nothing was added to it."]


def test_without_github_nothing_happens(tmp_path: Path) -> None:
    stream = io.BytesIO()
    run = Workflow(stream, {})
    run.group("a")
    run.mask("b")
    run.error("c")
    with run.stopped():
        run.write(b"output\n")
    assert not run.set_output("name", "value")
    assert not run.add_summary("text")
    assert stream.getvalue() == b"output\n"
    assert not is_github({})
    assert run_url({}) == ""


def test_unwritable_file_is_reported(tmp_path: Path) -> None:
    run, stream = workflow(
        GITHUB_OUTPUT=str(tmp_path), GITHUB_STEP_SUMMARY=str(tmp_path / "missing" / "file")
    )
    assert not run.set_output("name", "value")
    assert not run.add_summary("text")
    assert len(commands(stream.getvalue())) == 2


def test_address_of_the_run() -> None:
    environment = {
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "a/b",
        "GITHUB_RUN_ID": "7",
    }
    assert run_url(environment) == "https://github.com/a/b/actions/runs/7"
