"""The job summary and the report page: their content, and that untrusted text has no effect."""

import json
import os
import re
from pathlib import Path

import pytest

from train_classifier.core.errors import TROUBLESHOOTING
from train_classifier.core.report.page import document_of
from train_classifier.reports import chart_data, chart_drawing, job_summary
from train_classifier.reports.report import Report

HOSTILE = "</code></pre><script>alert(1)</script> @octocat #12 https://evil.example www.evil.example | `x` **b** \x1b[31m"

RESULT = {
    "id": "20261123-141500-1234abcd",
    "model": "mnist",
    "outcome": "trained",
    "exit_code": 0,
    "training_exit_status": 0,
    "archive": {"sha256": "3f" * 32, "bytes": 2048},
    "metrics": {"test_accuracy": 0.9712, "broken": float("nan"), "flag": True},
    "seconds": {"image": 0.0, "environment": 1.2, "training": 139.2},
    "image": {"reference": "tensorflow/tensorflow:2.17.0-gpu"},
    "gpu_check": {"mode": "framework", "proven": True},
    "gpus": [{"name": "NVIDIA H200", "uuid": "GPU-0"}],
}
MANIFEST = {
    "repository": {"name": "classifiers", "commit": "0123456789abcdef", "dirty": True},
    "host": {"name": "lab-1"},
}
HISTORY = "epoch,loss,val_loss,accuracy\n" + "".join(
    f"{n},{2 / n},{3 / n},{1 - 1 / n}\n" for n in range(1, 6)
)
USAGE = "time_s,cpu_percent,memory_bytes,gpu_uuid,gpu_util_percent,gpu_memory_mib\n" + "".join(
    f"{5 * n},150,{1 << 30},GPU-{gpu},{60 + gpu},8000\n" for n in range(100) for gpu in (0, 1)
)
FAILED = RESULT | {
    "exit_code": 4,
    "outcome": "failed",
    "training_exit_status": 1,
    "reason": "The model failed.",
    "hint": HOSTILE,
}
FAILED_LINK = f"{TROUBLESHOOTING}failed"


def drawn(markdown: str) -> list[list[float]]:
    return [
        [float(value) for value in line.split(",")]
        for line in re.findall(r"^    line \[(.*)\]$", markdown, re.M)
    ]


def test_summary_of_a_good_job() -> None:
    text = job_summary.markdown(
        Report(
            result=RESULT,
            manifest=MANIFEST,
            history=HISTORY,
            usage=USAGE,
            log="secret line",
            seconds={"push": 0.5},
        )
    )
    rows = dict(re.findall(r"^\| ([\w-]+) \| <code>(.*)</code> \|$", text, re.M))
    assert rows["Model"] == "mnist"
    assert rows["Repository"] == "classifiers 0123456789ab with changes"
    assert rows["Host"] == "lab-1"
    assert rows["GPU"] == "NVIDIA H200"
    assert rows["Duration"] == "2 min 21 s&#58; push 0.5 s, environment 1.2 s, training 2 min 19 s"
    assert rows["Exit"] == "0 (trained)"
    assert rows["Artefacts"] == "2.0 KiB"
    assert rows["SHA-256"] == "3f" * 32
    assert "| <code>test&#95;accuracy</code> | 0.9712 |" in text
    assert "broken" not in text
    assert "flag" not in text
    assert re.findall(r'title "(.*)"', text) == [
        "Loss",
        "Metrics",
        "GPU use",
        "GPU memory",
        "Processor use",
        "Memory",
    ]
    assert drawn(text)[0] == pytest.approx([2, 1, 2 / 3, 0.5, 0.4], abs=1e-3)
    assert "🟦 <code>loss</code> · 🟧 <code>val&#95;loss</code>" in text
    assert "secret line" not in text


def test_summary_of_a_failed_job_shows_the_log_without_markup() -> None:
    log = f"one\n```\n{HOSTILE}\n``````` html\n@octocat <b>\nold\rnew\nlast"
    text = job_summary.markdown(Report(result=FAILED | {"model": HOSTILE}, history=HISTORY, log=log))
    fence = re.search(r"^(`{4,})text$", text, re.M)
    assert fence
    inside, after = text[fence.end() :].split(f"\n{fence[1]}\n", 1)
    assert inside.splitlines()[-2:] == ["new", "last"]
    assert "@octocat <b>" in inside
    assert fence[1] not in inside
    assert "4 (failed), the model&#39;s exit status is 1" in text
    link = f"[What this means, and what to do]({FAILED_LINK})"
    assert link in text[: fence.start()]
    outside = text[: fence.start()].replace(link, "") + re.sub(r"```mermaid\n.*?\n```", "", after, flags=re.S)
    assert not re.search(r"@\w|#\d|<script|https?:|www\.|\x1b|\*\*b", re.sub(r"&#(\d+);", "", outside))
    # A mention is looked for after the entities are resolved.
    hint = outside[outside.index("**The model failed.**") :]
    assert "&#64;\u200boctocat" in hint
    assert set(re.findall(r"</?(\w+)", outside)) == {"code", "details", "summary"}


@pytest.mark.parametrize("limit", [2_000, 5_000, 20_000, 1 << 20])
def test_summary_never_exceeds_its_limit(limit: int) -> None:
    columns = [f"metric_{n}_{'é' * 40}" for n in range(300)]
    history = "epoch," + ",".join(columns) + "\n"
    history += "".join(f"{n}," + ",".join(str(n * c) for c in range(300)) + "\n" for n in range(1000))
    report = Report(
        result=FAILED | {"metrics": dict.fromkeys(columns, 1.5), "detail": "x" * 3_000_000},
        history=history,
        usage=USAGE,
        log="".join(f"line {n} {'`' * 500} é€😀\n" for n in range(20_000)),
    )
    text = job_summary.markdown(report, limit)
    assert len(text.encode()) <= limit
    assert "| Model |" in text
    # Cut at a sensible place: whole blocks only, the last line of the log is there if any is.
    assert text.count("```mermaid") == len(re.findall(r"^```$", text, re.M))
    assert text.count("<details") == text.count("</details>")
    if "<details" in text:
        assert "line 19999" in text
        assert "earlier lines, see log.txt" in text
    assert ("*Cut:" in text) == (limit < 1 << 20)


def test_lines_of_a_cut_log_are_not_counted() -> None:
    """Only the end of a long log is available, so its lines are not counted."""
    log = "".join(f"line {n}\n" for n in range(1000))
    assert Report(result=FAILED, log=log).tail(9000).startswith("… 800 earlier lines, see log.txt\n")
    assert (
        Report(result=FAILED, log=log, log_is_cut=True)
        .tail(9000)
        .startswith("… earlier lines are in log.txt\n")
    )
    assert (
        Report(result=FAILED, log="one", log_is_cut=True).tail(9000) == "… earlier lines are in log.txt\none"
    )


def test_empty_result_is_reported() -> None:
    report = Report(result={})
    assert "The job" in job_summary.markdown(report)
    assert document_of(report.page())["title"] == "The job failed because of a bug in train-classifier"  # type: ignore[index]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\0",
        "epoch",
        "epoch,loss\n",
        "epoch,loss\n1,2\n",
        "loss\n1\n2\n",
        "epoch,loss\n1,nan\n2,inf\n",
        "epoch,loss\n1,1\n1,2\n",
    ],
)
def test_no_curve_from_less_than_two_points(text: str) -> None:
    assert chart_data.history(text) == []


def test_thinned_curve_keeps_plateau_and_spike() -> None:
    text = "epoch,loss\n" + "".join(f"{n},{100 if n == 5000 else 1}\n" for n in range(1, 10_001))
    (chart,) = chart_data.history(text)
    values = [y for _, y in chart.series[0].points]
    assert len(values) == chart_data.MAX_POINTS
    assert sum(value > 1.1 for value in values) == 1
    assert chart.domain() == (1, 10_000)


def test_gaps_are_filled_and_repeated_epoch_counts_once() -> None:
    (chart,) = chart_data.history("epoch,loss\n1,4\n2,9\n2,3\n4,1\n5,\n6,cut")
    assert chart.series[0].points == ((1, 4), (2.5, 3), (4, 1))


def test_mermaid_has_no_exponent_no_quote_and_ends_that_differ() -> None:
    text = 'epoch,"a""]; %%{init} loss"\n1,1e-9\n2,2e-9\n3,1e-9\n'
    (chart,) = chart_data.history(text)
    shown = chart_drawing.mermaid(chart)
    numbers = re.findall(r"-?\d[\d.e+-]*", shown.split("y-axis", 1)[1])
    assert not any("e" in number for number in numbers)
    low, high = re.search(r"(\S+) --> (\S+)$", shown.splitlines()[5]).groups()  # type: ignore[union-attr]
    assert float(low) < float(high)
    for line in shown.splitlines()[3:6]:
        assert line.count('"') == 2
        assert "%%" not in line
    flat = chart_data.history("epoch,loss\n1,1000000\n2,1000000.5\n")[0]
    low, high = re.search(r"y-axis \S+ (\S+) --> (\S+)", chart_drawing.mermaid(flat)).groups()  # type: ignore[union-attr]
    assert float(low) < float(high)


def test_page_of_a_job_without_an_archive_has_what_is_known() -> None:
    report = Report(
        result=FAILED | {"model": HOSTILE},
        manifest={"host": {"name": "\udcff" + HOSTILE}},
        history=HISTORY.replace("val_loss", '"<img src=x onerror=alert(1)>"'),
        usage=USAGE,
        log=f"{HOSTILE}\n\udcff\nold\rnew",
    )
    document = document_of(report.page())
    assert document
    text = HOSTILE.replace("\x1b[31m", "")
    assert document["title"] == f"{text} failed" and not document["succeeded"]
    assert document["failure"] == ["The model failed.", text, FAILED_LINK]
    assert [line["name"] for chart in document["curves"] for line in chart["lines"]] == [
        "loss", "<img src=x onerror=alert(1)>", "accuracy",
    ]  # fmt: skip
    assert [chart["title"] for chart in document["usage"]] == [
        "GPU use",
        "GPU memory",
        "Processor use",
        "Memory",
    ]
    assert document["log"]["lines"] == [HOSTILE.replace("\x1b[31m", ""), "�", "new"]


def test_example_in_the_docs_is_current() -> None:
    """docs/job-summary.md is made by this test when WRITE_EXAMPLES is set."""
    papers = Path(__file__).parents[1] / "data" / "job-summary"
    text = job_summary.markdown(
        Report(
            result=json.loads((papers / "result.json").read_text()),
            manifest=json.loads((papers / "manifest.json").read_text()),
            history=(papers / "history.csv").read_text(),
            usage=(papers / "usage.csv").read_text(),
            seconds={"push": 0.4, "fetch": 0.2},
        )
    )
    docs = Path(__file__).parents[3] / "docs" / "job-summary.md"
    mark = "<!-- from here on as it is written -->\n"
    before, separator, example = docs.read_text().partition(mark)
    assert separator
    if os.environ.get("WRITE_EXAMPLES"):
        docs.write_text(f"{before}{mark}\n{text}")
    else:
        assert example == f"\n{text}"
