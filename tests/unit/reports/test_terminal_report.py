"""`report` in a terminal, and the comparison with earlier runs."""

import base64
import io
import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import json_output
import pytest

from train_classifier.cli import app
from train_classifier.cli.runs import job_report
from train_classifier.core.errors import ExitCode
from train_classifier.core.report import curves, document, page
from train_classifier.reports import run_comparison, terminal_report

RESULT = {
    "id": "20260101-000000-0123abcd", "model": "m", "exit_code": 0, "outcome": "trained", "gpus": [], "metrics": {"accuracy": 0.5},
}  # fmt: skip
HOSTILE = "\x1b]8;;http://x\x07\x1b[31mred\u202e\r\x07"


def sample(result: dict[str, Any] = RESULT, name: str = "loss", **more: Any) -> dict[str, Any]:
    table = curves.from_csv(f"epoch,{name},val_loss\n1,4,3\n2,2,2\n3,1,1.5\n")
    assert table
    return document.build(
        document.JobRecords(result=result, tables=[("artefacts/history.csv", table)], **more)
    )


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [None, 30, 80, 200])
def test_report_fits_the_terminal_and_has_plots(width: int | None, colour: bool) -> None:
    shown = terminal_report.render(sample(), width, colour, has_braille=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= (max(40, width) if width and width < 80 else 80)
    assert plain.startswith("m trained\n") and "accuracy  0.5" in plain
    # Without colours each line has its own plot.
    assert len(re.findall(" by epoch: ", plain)) == (1 if colour else 2)
    assert ("\x1b[34mloss\x1b[0m" in shown) == colour
    assert re.search("[\u2801-\u28ff]", shown)
    assert not re.search(
        "[\u2800-\u28ff]", terminal_report.render(sample(), width, colour, has_braille=False)
    )


@pytest.mark.parametrize(
    ("first", "last", "ticks"),
    [
        (1, 5, "1 3 5"), (1, 20, "1 4 7 10 13 16 19"), (1, 30, "1 6 11 16 21 26 31"), (0, 1, "0 1"), (5, 7, "5 6 7"),
        (0, 200_000, "0 32000 64000 96000 128000 160000 192000"),
    ],
)  # fmt: skip
def test_epochs_are_whole_numbers_on_the_axis(first: int, last: int, ticks: str) -> None:
    rows = "\n".join(f"{epoch},{1 / (epoch + 1)}" for epoch in sorted({first, (first + last) // 2, last}))
    table = curves.from_csv(f"epoch,loss\n{rows}\n")
    assert table
    records = document.JobRecords(result=RESULT, tables=[("artefacts/history.csv", table)])
    lines = terminal_report.render(document.build(records), 80, False, has_braille=True).splitlines()
    axis = next(number for number, line in enumerate(lines) if line.startswith("-----------|-|"))
    assert lines[axis + 1].split("|")[1].split() == ticks.split()


@pytest.mark.parametrize("width", range(40, 81, 3))
def test_numbers_of_an_axis_fit_the_terminal(width: int) -> None:
    shown = document.build(document.JobRecords(result=RESULT))
    for x in ([0.5, 123456.5], [0, 999_999_999]):
        chart = {
            "title": "Loss",
            "x": "step",
            "y": "loss",
            "lines": [{"name": "loss", "x": x, "y": [1.0, 0.5]}],
        }
        text = terminal_report.render({**shown, "curves": [chart]}, width, False, has_braille=True)
        assert max(map(len, text.splitlines())) <= width


def test_failed_report_shows_reason_and_traceback_without_control_characters() -> None:
    log = f"start\nTraceback (most recent call last):\n  File x\nValueError: {HOSTILE}\n"
    failed = {
        **RESULT,
        "exit_code": 4,
        "outcome": "failed",
        "reason": f"why {HOSTILE}",
        "metrics": {HOSTILE: 1},
    }
    result = sample(failed, name="loss\x1b[31m\x07", log=log, manifest={"arguments": [HOSTILE]})
    # As it may come from an archive that somebody made.
    result["failure"].append(HOSTILE)
    result["log"]["lines"][-1] += HOSTILE
    result["curves"][0]["title"] = HOSTILE
    result["facts"][0]["rows"].append([HOSTILE, HOSTILE])
    shown = terminal_report.render(result, 80, False, has_braille=True)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert (
        "why" in shown
        and "\nTraceback\nTraceback (most recent call last):\n" in shown
        and "start" not in shown
    )


def test_runs_are_compared_by_metrics_and_arguments() -> None:
    runs = [
        {"id": "2", "outcome": "trained", "metrics": {"b": 2, "a": float("nan")}, "started": 1, "finished": 61, "commit": "c" * 40, "arguments": ["--x", HOSTILE]},
        {"id": "1", "outcome": "failed", "metrics": None, "started": None, "finished": 9, "commit": None, "arguments": []},
    ]  # fmt: skip
    compared = run_comparison.comparison("2", runs)
    assert compared == {
        "columns": ["b", "a", "seconds", "commit", "arguments"],
        "runs": [
            {"job": "1", "outcome": "failed", "values": [None, None, None, "", ""]},
            {"job": "2", "outcome": "trained", "values": [2, None, 60, "c" * 12, "--x red���"]},
        ],
    }
    assert run_comparison.comparison("2", runs[:1]) is None
    shown = {**sample(), "comparison": compared}
    assert "Earlier runs\njob  outcome" in terminal_report.render(shown, 80, False, has_braille=False)


def test_a_line_is_drawn_to_its_last_and_highest_point() -> None:
    shown = sample()
    x, y = [0.0, 5.0, 10.0, 15.0], [0.0, 281.0, 281.9, 282.0]
    chart = {"title": "Memory", "x": "seconds", "y": "MiB", "lines": [{"name": "memory", "x": x, "y": y}]}
    rows = terminal_report.render(
        {**shown, "curves": [chart], "usage": []}, 80, False, has_braille=True
    ).splitlines()
    plot = [row.partition("| ")[2] for row in rows if re.search("[\u2801-\u28ff]", row)]
    assert max(len(row.rstrip("\u2800")) for row in plot[1:]) < max(map(len, plot)) / 2
    assert len(plot[0].rstrip("\u2800")) >= max(map(len, plot)) - 1


def test_earlier_runs_fit_80_columns_with_all_digits_of_their_metrics() -> None:
    job, arguments = "20260131-120000-0123abcd", "--epochs 60 --learning-rate 0.001"
    runs = [
        {"job": job, "outcome": "trained", "values": [0.980556, 0.0463879, 85.4, "c" * 12, arguments]}
    ] * 2
    compared = {"columns": ["val_accuracy", "val_loss", "seconds", "commit", "arguments"], "runs": runs}
    text = terminal_report.render({**sample(), "comparison": compared}, 80, False, has_braille=False)
    head, row, _ = text.partition("Earlier runs\n")[2].splitlines()[:3]
    assert head.split() == ["job", "outcome", "val_accuracy", "val_loss", "seconds", "arguments"]
    assert row.split()[:5] == [job, "trained", "0.980556", "0.0463879", "85.4"]
    assert len(row) <= 80 and row.endswith("…")


def archive(path: Path, content: bytes) -> str:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("job/report.html")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_report_of_an_archive_asks_no_host(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = archive(tmp_path / "a.tar.gz", page.render(sample()))
    assert app.run(["report", path]) == 0
    assert capfd.readouterr().out.startswith("m trained\n")
    assert app.run(["report", path, "--json", "-o", str(tmp_path / "r.html")]) == 0
    shown = json.loads(capfd.readouterr().out)
    json_output.validate("report", shown)
    assert shown["title"] == "m trained"
    assert page.document_of((tmp_path / "r.html").read_bytes()) == sample()
    assert app.run(["report", path, "-o", str(tmp_path / "missing" / "r.html")]) == ExitCode.BAD_INPUT
    assert "cannot be written: No such file or directory." in capfd.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        page.MARK.encode() + b"{}</script>",
        page.MARK.encode() + b'{"title": [], "metrics": 3}</script>',
        page.MARK.encode() + b'{"title": "x", "metrics": [["a", 1e999]], "curves": [{"lines": [{"x": [1e999]}]}]}</script>',
        page.MARK.encode() + b'{"title": "x", "metrics": [], "images": [1], "notes": 3, "log": "' + bytes(3 << 20).replace(b"\0", b"x") + b'"}</script>',
        page.MARK.encode() + b'{"title": ' + b"[" * 900 + b"]" * 900 + b"}</script>",
    ],
    ids=range(7),
)  # fmt: skip
@pytest.mark.parametrize("words", [(), ("--json",), ("-o", "r.html")], ids=["text", "json", "page"])
def test_damaged_archive_is_refused_in_a_sentence(
    content: bytes,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = app.run(["report", archive(tmp_path / "a.tar.gz", content), *words])
    out, err = capfd.readouterr()
    if code == 0:
        # A page shows what it can.
        assert page.document_of((tmp_path / "r.html").read_bytes()) is not None
    else:
        assert code == ExitCode.BAD_INPUT and re.search("holds no report|is damaged", err)
        assert json.loads(out)["exit_code"] == 2 if out else "--json" not in words
        assert not (tmp_path / "r.html").exists()


def test_archive_that_is_not_there_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert app.run(["report", "missing.tar.gz"]) == ExitCode.BAD_INPUT
    assert "there is no file missing.tar.gz" in capfd.readouterr().err


@pytest.mark.parametrize("job", ["../../x", "/x", 3, None, "a\0b", RESULT["id"]])
def test_page_for_the_browser_goes_into_the_cache_whatever_its_job_is_called(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    path = archive(tmp_path / "a.tar.gz", page.render({**sample(), "job": job}))
    assert app.run(["report", path, "--open"]) == 0
    (written,) = (tmp_path / "cache").rglob("*.html")
    assert written.parent == tmp_path / "cache" / "train-classifier" / "reports"
    assert written.stem == (job if job == RESULT["id"] else "report") and opened == [written.as_uri()]
    assert {each.name for each in tmp_path.iterdir()} == {"cache", "a.tar.gz"}


def test_page_that_unpacks_without_end_is_not_taken() -> None:
    assert (
        len(job_report._unpacked(base64.b64encode(zlib.compress(bytes(1 << 26), 1)).decode()))
        == 2 * page.MAX_PAGE
    )
    assert job_report._unpacked("x") == job_report._unpacked(None) == b""
