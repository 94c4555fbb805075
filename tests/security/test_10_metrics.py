"""Row 10: metrics and curves that cannot be read are left out and reported; archive and report are still made."""

import json

import pytest
from worker_support import Machine, accounts, host_fixture

from train_classifier.core.report.page import document_of
from train_classifier.reports import chart_data, job_summary
from train_classifier.reports.archive_reader import ArchiveFiles
from train_classifier.reports.report import Report

host = host_fixture(accounts())


@pytest.mark.engine
def test_10_unreadable_metrics_do_not_stop_the_archive(host: Machine) -> None:
    program = (
        "open('artefacts/weights', 'w').write('x')\n"
        "open('artefacts/metrics.json', 'w').write('{\"big\": 1' + '0' * 400 + ', \"nan\": NaN, \"loss\": 0.5}')\n"
        "open('artefacts/history.csv', 'w').write('epoch,loss\\n1,5e-324\\n2,nan\\n3,1e400\\n')\n"
    )
    job, result = host.train(program)
    assert (result["outcome"], result["metrics"]) == ("trained", {"loss": 0.5}), result
    assert result["remarks"] == ["metrics left out: metrics.json: 'big' is not a finite number, and 1 more"]
    assert {"artefacts/weights", "artefacts/metrics.json", "artefacts/history.csv"} < set(host.names(job))
    assert host.manifest(job)["metrics"] == {"loss": 0.5}


@pytest.mark.engine
@pytest.mark.parametrize(
    "text", ["'{\"a\": ' + '[' * 400000", "'{\"a\": 1' + '0' * 900000 + '}'", "'[' * 900000"]
)
def test_10_hostile_metrics_do_not_stop_the_archive(host: Machine, text: str) -> None:
    program = f"open('artefacts/x', 'w').write('x')\nopen('artefacts/metrics.json', 'w').write({text})\n"
    job, result = host.train(program)
    assert (result["outcome"], result["metrics"]) == ("trained", None), result
    assert "metrics left out" in result["remarks"][0] and "artefacts/x" in host.names(job)


def title(report: Report) -> str:
    document = document_of(report.page())
    assert document
    return str(document["title"])


HISTORIES = {
    "denormal": "epoch,loss\n0,5e-324\n1,1e-323\n2,0\n",
    "denormal epochs": "epoch,loss\n0,1\n5e-324,2\n1e-323,3\n",
    "tiny epochs": "epoch,loss\n1e-30,1\n2e-30,2\n3e-30,5\n",
    "infinite": "epoch,loss\n0,inf\n1,-inf\n2,nan\ninf,1\nnan,2\n",
    "beyond": "epoch,loss\n0,1e400\n1,1e308\n2,-1e308\n1e400,1\n",
    "large": "epoch,loss\n0,9e29\n1,-9e29\n2,1\n9e29,4\n",
    "next to each other": f"epoch,loss\n1,{1.0!r}\n{1.0000000000000002!r},{1.0000000000000002!r}\n",
    "empty": "", "only a head": "epoch,loss\n", "no epoch": "loss\n1\n2\n",
    "many digits": "epoch,loss\n1," + "9" * 5000 + "\n2," + "1" * 5000 + "\n",
    "huge line": "epoch,loss\n1,2\n2," + "x" * 500_000 + "\n3,4\n",
    "huge head": "epoch," + "x" * 500_000 + "\n1,2\n2,3\n",
    "quotes": 'epoch,loss\n1,"2\n2,"3\n"""""\n', "NUL": "epoch,loss\n1,\0\n\0,2\n3,4\n",
    "many columns": "epoch," + ",".join(f"c{n}" for n in range(5000)) + "\n" + ("1," * 5001 + "\n2," + "2," * 5000) + "\n",
    "separators": "epoch,loss\n1_0,1_0\n2,0x10\n٣,٤\n",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HISTORIES))
def test_10_hostile_curves_do_not_stop_the_report(name: str) -> None:
    text = HISTORIES[name]
    result = {
        "id": "20260101-000000-0123abcd",
        "model": "m",
        "exit_code": 0,
        "outcome": "trained",
        "gpus": [],
    }
    report = Report(result=result, history=text, usage=text.replace("epoch,loss", "time_s,cpu_percent"))
    assert title(report) == "m trained" and "m trained" in job_summary.markdown(report)


@pytest.mark.parametrize(
    "value", [10**400, float("nan"), float("inf"), -(10**400), 5e-324, 1e308, True, "x", None, [1], {}]
)
def test_10_unusual_numbers_do_not_stop_the_report(value: object) -> None:
    result = {
        "id": "20260101-000000-0123abcd", "model": "m", "exit_code": 4, "outcome": "failed", "metrics": {"a": value, "b": 1},
        "archive": {"bytes": value, "sha256": "0"}, "seconds": {"image": value, "training": 1.0},
        "out_of_memory": {"limit_bytes": value}, "gpus": [],
    }  # fmt: skip
    report = Report(result=result)
    assert title(report) == "m failed" and "m failed" in job_summary.markdown(report)
    assert ("b", "1") in report.metrics()


def test_10_readable_curve_is_shown_beside_unreadable_curves() -> None:
    charts = chart_data.history("epoch,loss,bad\n1,0.5,nan\n2,0.25,1e400\n3,0.125,x\n")
    assert [[line.name for line in chart.series] for chart in charts] == [["loss"]]


def test_10_report_names_what_is_left_out() -> None:
    remarks = ["metrics left out: metrics.json: 'big' is not a finite number"]
    result = {"id": "20260101-000000-0123abcd", "model": "m", "exit_code": 0, "gpus": [], "remarks": remarks}
    report = Report(result=result, history="epoch,loss,bad\n1,0.5,nan\n2,0.25,1e400\n")
    text = job_summary.markdown(report)
    assert "is not a finite number" in text
    assert "curves without a number: bad" in text.replace("&#58;", ":")
    assert remarks[0] in document_of(report.page())["notes"]  # type: ignore[index]


def test_10_deep_manifest_does_not_stop_the_report() -> None:
    assert ArchiveFiles(manifest=b"[" * 200_000).manifest_data == {}
    assert ArchiveFiles(manifest=json.dumps([1]).encode()).manifest_data == {}
