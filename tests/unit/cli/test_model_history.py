"""`history` and `compare`: what is shown of the answers of hosts."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from answering_host import AnsweringHost

from train_classifier.cli.console import Console
from train_classifier.cli.runs import model_history
from train_classifier.core.errors import BadInput, ExitCode, NotReady
from train_classifier.core.report import document, page

JOBS = [f"20260101-00000{number}-00000000" for number in range(3)]


class HostWithRuns(AnsweringHost):
    """A host that has known runs, and says what it knows of each."""

    def call(self, request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
        if isinstance(self.known, Exception) or request["verb"] == "runs":
            return super().call(request, timeout)
        for run in self.known["runs"]:
            if run["id"] == request["id"]:
                repository = {"commit": run["commit"]}
                spec = {"model": run["model"], "arguments": run["arguments"], "repository": repository}
                spec.update(shm_bytes=2 << 30, timeout_s=[None, 3600, 60][JOBS.index(run["id"])])
                return {"id": run["id"], "spec": spec, "result": {**run, "seconds": {"training": 2.0}}}
        raise BadInput("no such job")


def run(number: int, metrics: Any, arguments: list[str]) -> dict[str, Any]:
    return {
        "id": JOBS[number], "model": "m", "outcome": "trained", "metrics": metrics, "arguments": arguments,
        "commit": "c" * 40, "finished": 1.8e9 + number,
    }  # fmt: skip


HOST = HostWithRuns(
    "gpu-1",
    {
        "runs": [
            run(0, {"loss": 0.5, "val_accuracy": 0.8}, ["--lr", "1"]),
            run(1, {"val_accuracy": float("nan"), "loss": 0.25}, ["\x1b[31m"]),
            run(2, {"loss": 0.75, "val_accuracy": 0.9}, ["--lr", "2"]),
        ]
    },
)


def test_history_marks_the_best_of_each_kind_of_metric(capfd: pytest.CaptureFixture[str]) -> None:
    assert model_history.show_history([HOST], "m", None, 20, Console()) == 0
    shown = capfd.readouterr().out.splitlines()
    assert "val_accuracy" in shown[0] and [line[:24] for line in shown[1:4]] == JOBS
    assert [" best" in line for line in shown[1:4]] == [False, False, True]
    assert "\x1b" not in "".join(shown)
    assert shown[-1].endswith("▁█")
    assert model_history.show_history([HOST], "m", "loss", 20, Console()) == 0
    assert [" best" in line for line in capfd.readouterr().out.splitlines()[1:4]] == [False, True, False]
    assert model_history.show_history([HOST], "m", "loss", 1, Console(json_mode=True)) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [entry["id"] for entry in answer["runs"]] == JOBS[2:] and answer["runs"][0]["best"] is True
    with pytest.raises(BadInput, match="has the metric 'los'") as caught:
        model_history.show_history([HOST], "m", "los", 20, Console())
    assert str(caught.value.hint) == "They have 'loss', 'val_accuracy'."


def test_value_and_outcome_stay_whole_in_a_narrow_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train_classifier.cli.console.Console.width", 80)
    arguments = ["--epochs", "30", "--learning-rate", "0.001"]
    runs = [run(number, {"val_accuracy": 0.123456 + number}, arguments) for number in range(3)]
    assert model_history.show_history([AnsweringHost("gpu-1", {"runs": runs})], "m", None, 20, Console()) == 0
    *_, best, _, trend = capfd.readouterr().out.splitlines()
    assert len(best) <= 80 and "trained  2.12346 best  --epochs" in best and best.endswith("…")
    assert trend.startswith("val_accuracy  ")


@pytest.mark.parametrize(
    "values", [(1.7e308, -1.7e308, 0.0), (5e-324, 0.0), (0.0, 0.0), (-1.0, -1.0), (1e-300, 1e300)]
)
def test_any_number_has_a_bar(values: tuple[float, ...], capfd: pytest.CaptureFixture[str]) -> None:
    runs = [run(number, {"score": value}, []) for number, value in enumerate(values)]
    assert model_history.show_history([AnsweringHost("gpu-1", {"runs": runs})], "m", None, 20, Console()) == 0
    assert len(capfd.readouterr().out.splitlines()[-1].split()[-1]) == len(values)


def test_history_of_hosts_that_fail(capfd: pytest.CaptureFixture[str]) -> None:
    gone = AnsweringHost("gone", NotReady("no route"))
    assert model_history.show_history([gone, HOST], "m", None, 20, Console()) == ExitCode.NOT_READY
    captured = capfd.readouterr()
    assert JOBS[0] in captured.out and "no route" in captured.err
    with pytest.raises(BadInput, match="no ended run"):
        model_history.show_history([AnsweringHost("gpu-1", {"runs": []})], "m", None, 20, Console())


@pytest.mark.parametrize(
    "odd", [None, 7, "x", [3], {"id": 1, "metrics": [1], "finished": "x", "arguments": 4}]
)
def test_what_a_host_says_breaks_nothing(odd: Any, capfd: pytest.CaptureFixture[str]) -> None:
    host = AnsweringHost("odd", {"runs": [odd, run(0, {"loss": 1}, [])]})
    assert model_history.show_history([host], "m", None, 20, Console()) == 0
    assert JOBS[0] in capfd.readouterr().out
    assert model_history._facts({"spec": odd, "result": odd, "status": odd}, "odd")["host"] == "odd"
    assert model_history._facts({"result": dict.fromkeys(("metrics", "gpus", "image"), odd)}, "odd")


def test_comparison_shows_what_differs(capfd: pytest.CaptureFixture[str]) -> None:
    assert model_history.show_comparison([HOST], [JOBS[0], JOBS[2]], False, Console()) == 0
    shown = capfd.readouterr().out
    assert all(words in shown for words in ("metric loss", "0.5", "0.75", "--lr 1", "--lr 2"))
    assert "repository.commit" not in shown
    assert model_history.show_comparison([HOST], [JOBS[0], JOBS[2]], True, Console()) == 0
    shown = capfd.readouterr().out
    assert "repository.commit" in shown
    rows = [line.split("  ") for line in shown.splitlines()]
    values = {row[0]: [cell.strip() for cell in row[1:] if cell] for row in rows}
    assert (values["timeout"], values["training"], values["shm"]) == (
        ["—", "1 min 0 s"],
        ["2.0 s"],
        ["2.0 GiB"],
    )
    assert model_history.show_comparison([HOST], [JOBS[0], JOBS[1]], False, Console(json_mode=True)) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["jobs"] == JOBS[:2] and answer["different"]["arguments"] == [["--lr", "1"], ["\x1b[31m"]]
    assert answer["same"]["training_s"] == 2.0
    with pytest.raises(BadInput, match="two jobs"):
        model_history.show_comparison([HOST], [JOBS[0], JOBS[0]], False, Console())


def test_two_names_of_one_job_are_no_comparison() -> None:
    class Abbreviating(HostWithRuns):
        def call(self, request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
            return super().call({**request, "id": JOBS[0]}, timeout)

    with pytest.raises(BadInput, match=f"names of one job, {JOBS[0]}"):
        model_history.show_comparison(
            [Abbreviating("gpu-1", HOST.known)], [JOBS[0], "last"], False, Console()
        )


CHART = {
    "title": "Loss", "x": "epoch", "y": "loss", "file": "artefacts/history.csv", "ends": [None, None], "note": "",
    "lines": [{"name": name, "x": [0, 1], "y": [1.0, 0.5], "values": [1, 0, 1, 1, 0, 0.5]} for name in ("loss", "mae")],
}  # fmt: skip


class HostWithPages(HostWithRuns):
    """A host that also has the page of each run, with these charts."""

    def __init__(self, charts: Any) -> None:
        super().__init__("gpu-1", HOST.known)
        self.charts = charts

    def call(self, request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
        answer = super().call(request, timeout)
        if request["verb"] != "report":
            return answer
        shown = document.build(document.JobRecords(result=answer["result"]))
        content = page.render({**shown, "curves": self.charts, "model": "m"})
        return {**answer, "page": base64.b64encode(zlib.compress(content)).decode()}


def test_long_values_are_whole_in_a_narrow_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs and arguments often differ only at their end."""
    monkeypatch.setattr("train_classifier.cli.console.Console.width", 80)
    rates = ["0.02", "0.0002", "0.5"]
    runs = [
        run(n, {"loss": 1.0}, ["--epochs", "30", "--learning-rate", rate]) for n, rate in enumerate(rates)
    ]
    assert model_history.show_comparison([HostWithRuns("gpu-1", {"runs": runs})], JOBS, False, Console()) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = "\n".join(lines)
    assert all(rate in shown for rate in rates) and all(job.rpartition("-")[2] in shown for job in JOBS)
    assert "…" not in shown


def test_comparison_is_a_page_with_common_charts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "compared.html"
    host = HostWithPages([CHART, {**CHART, "file": "artefacts/logs/events.out.tfevents.17.host"}])
    assert model_history.show_comparison([host], JOBS, False, Console(), str(path)) == 0
    captured = capfd.readouterr()
    assert captured.out == "" and str(path) in captured.err
    shown = page.document_of(path.read_bytes())
    assert shown is not None
    assert shown["title"] == "3 jobs of m" and shown["jobs"] == JOBS
    assert [len(row) for row in shown["different"]] == [4] * len(shown["different"])
    assert any(row[0] == "arguments" and row[1] == "--lr 1" for row in shown["different"])
    assert "\x1b" not in path.read_text()
    places = [(chart["title"], chart["file"]) for chart in shown["curves"]]
    assert places == [
        ("loss", "artefacts/history.csv"), ("mae", "artefacts/history.csv"),
        ("loss", "artefacts/logs"), ("mae", "artefacts/logs"),
    ]  # fmt: skip
    assert all([line["name"] for line in chart["lines"]] == JOBS for chart in shown["curves"])
    with pytest.raises(BadInput, match="cannot be written"):
        model_history.show_comparison([host], JOBS, False, Console(), str(tmp_path / "no" / "folder"))


@pytest.mark.parametrize(
    "odd",
    [
        None, 7, [7], [{"lines": 7}], [{**CHART, "ends": ["x"]}], [{**CHART, "lines": [{"name": "a"}]}],
        [{**CHART, "lines": [{"name": "a", "x": [0, 1], "y": ["</script>", 1], "values": []}]}],
    ],
)  # fmt: skip
def test_page_of_a_host_breaks_no_comparison(tmp_path: Path, odd: Any) -> None:
    path = tmp_path / "compared.html"
    assert model_history.show_comparison([HostWithPages(odd)], JOBS[:2], False, Console(), str(path)) == 0
    shown = page.document_of(path.read_bytes())
    assert shown is not None and "</script>" not in json.dumps(shown)
