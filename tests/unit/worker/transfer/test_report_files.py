"""The report in the archive: what the packer takes for it from files that a model wrote."""

import itertools
import json
import os
import pwd
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.errors import TROUBLESHOOTING
from train_classifier.core.job import JobSpec, Repository
from train_classifier.core.report import page
from train_classifier.core.report.curves import LOOK_ROWS, from_json_lines
from train_classifier.worker.jobs import conclude
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account
from train_classifier.worker.transfer import report_files

LOG = (
    "epoch 1\nTraceback (most recent call last):\n  File \"m/__main__.py\", line 3, in <module>\n    f()\n"
    "ValueError: <script>alert(1)</script>\nafter\n"
)  # fmt: skip
USAGE = (
    "time_s,cpu_percent,memory_bytes,gpu_uuid,gpu_util_percent,gpu_memory_mib,disk_read_bytes,disk_written_bytes\n"
    + "".join(
        f"{5 * n},150,{1 << 30},GPU-{card},{60 + card},8000,{n << 20},0\n"
        for n in range(9)
        for card in range(8)
    )
)


def png(width: int = 2, height: int = 2, more: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (
        zlib.compress(b"\0" + b"\x7f" * width)
        if width * height > 1 << 20
        else zlib.compress((b"\0" + b"\x7f" * width) * height)
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + more + chunk(b"IEND", b"")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "workspace" / "artefacts").mkdir(parents=True)
    (tmp_path / "log.txt").write_text(LOG)
    (tmp_path / "usage.csv").write_text(USAGE)
    return tmp_path


def report(job: Path, files: dict[str, str | bytes], **ending: Any) -> dict[str, Any]:
    """Pack a job with these files, and return the document of its report."""
    root = job / "workspace"
    spec = JobSpec(
        "20260101-000000-00000000",
        "m",
        Repository("digits", "0" * 16, "a" * 40, False),
        arguments=("--lr", "<b>"),
    )
    (root / "artefacts" / "old.png").write_bytes(png())
    entry = pwd.getpwuid(os.geteuid())
    account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)
    conclude.record_initial_artefacts(Job(job), spec, account, [], lambda: None)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    head = {
        "outcome": "trained",
        "exit_code": 0,
        "arguments": list(spec.arguments),
        "times": {"training": [100, 145.0]},
        **ending,
    }
    request = {
        "manifest": head, "result": {"id": job.name, "model": "m", "reason": "why", **head}, "need_new": True,
        "most_bytes": 1 << 50, "threads": 1, "results": (), "elsewhere": None,
    }  # fmt: skip
    answer = conclude.write_archive(Job(job), account, request, None, lambda: None)
    assert answer["report_problem"] is None
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        source = archive.extractfile("job/report.html")
        assert source
        content = source.read()
    assert content == (job / "report.html").read_bytes() and len(content) <= page.MAX_PAGE
    document = page.document_of(content)
    assert document
    return document


def curves(document: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the lines of each file, in the order of the charts."""
    names: dict[str, list[str]] = {}
    for chart in document["curves"]:
        names.setdefault(chart["file"], []).extend(line["name"] for line in chart["lines"])
    return names


def test_curves_of_every_framework_are_found(job: Path) -> None:
    state = {
        "log_history": [
            {"loss": 2.0, "step": 10, "epoch": 0.1},
            {"loss": 1.0, "step": 20, "epoch": 0.2},
            {"eval_loss": 1.5, "step": 20},
        ]
    }
    document = report(job, {
        "artefacts/history.csv": "epoch,loss,val_loss\n1,2,3\n2,1,2\n",
        "artefacts/keras.csv": "epoch;accuracy;loss\n0;0.5;2\n1;0.75;1\n",
        "artefacts/lightning_logs/version_0/metrics.csv": "epoch,step,train_loss,val_acc\n0,49,1.5,\n0,99,,0.5\n1,149,1.25,\n1,199,,0.75\n",
        "artefacts/runs/results.csv": "                  epoch,         train/box_loss\n   1,  2.5\n   2,  1.5\n",
        "artefacts/log.jsonl": '{"step": 1, "reward": 5, "note": "x"}\nnot json\n{"step": 2, "reward": 7}\n',
        "artefacts/checkpoint-20/trainer_state.json": json.dumps(state, indent=2),
        "artefacts/predictions.csv": "id,label\n1,2\n2,3\n",
        "artefacts/old.csv": "epoch,loss\n1,x\n",
    })  # fmt: skip
    assert curves(document) == {
        "artefacts/history.csv": ["loss", "val_loss"],
        "artefacts/checkpoint-20/trainer_state.json": ["loss"],
        "artefacts/keras.csv": ["accuracy", "loss"],
        "artefacts/lightning_logs/version_0/metrics.csv": ["train_loss", "val_acc"],
        "artefacts/log.jsonl": ["reward"],
        "artefacts/runs/results.csv": ["train/box_loss"],
    }
    lightning = next(chart for chart in document["curves"] if chart["lines"][0]["name"] == "train_loss")
    assert (lightning["x"], lightning["lines"][0]["x"], lightning["lines"][0]["y"]) == (
        "step",
        [49, 149],
        [1.5, 1.25],
    )


def test_failed_job_has_traceback_usage_and_reason(job: Path) -> None:
    repository = {"commit": "a" * 40, "address": "https://git.example.org/a/b"}
    document = report(job, {"artefacts/w": "x"}, outcome="failed", exit_code=4, repository=repository)
    assert (document["title"], document["succeeded"]) == ("m failed", False)
    assert document["failure"] == ["why", TROUBLESHOOTING + "failed"]
    start, end = document["log"]["traceback"]
    assert document["log"]["lines"][start:end][0].startswith("Traceback") and document["log"]["lines"][
        end - 1
    ].startswith("ValueError: <script>")
    assert [(chart["title"], len(chart["lines"])) for chart in document["usage"]] == [
        ("GPU use", 8), ("GPU memory", 8), ("Processor use", 1), ("Memory", 1), ("Disk", 2),
    ]  # fmt: skip
    assert document["usage"][-1]["lines"][0]["y"] == [0.2] * 8
    assert document["phases"] == [["training", 0, 45]]
    commit = dict(map(tuple, document["facts"][1]["rows"]))["Commit"]
    assert commit == {"link": f"https://git.example.org/a/b/commit/{'a' * 40}", "text": "a" * 40}
    assert (document["curves"], document["metrics"], document["images"]) == ([], [], [])


def test_nothing_new_is_said_in_the_report(job: Path) -> None:
    document = report(job, {})
    assert document["title"] == "m trained, but delivered no artefacts"
    reason = "the model succeeded, but wrote nothing new into its folders of results"
    assert document["failure"] == [reason, TROUBLESHOOTING + "nothing-delivered"]


def test_only_new_whole_and_moderate_images_are_shown(job: Path) -> None:
    files: dict[str, str | bytes] = {
        "artefacts/z/confusion_matrix.PNG": png(),
        "artefacts/sample.png": png(3, 4),
        "artefacts/page.png": b"<script>alert(1)</script>",
        "artefacts/vector.svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
        "artefacts/cut.png": png()[:-5],
        "artefacts/appended.png": png() + b"<script>",
        "artefacts/damaged.png": png().replace(b"IDAT", b"IDAX"),
        "artefacts/bomb.png": png(30_000, 30_000),
        "artefacts/large.png": png(more=b"\0" * (600 << 10)),
        "artefacts/short.jpg": b"\xff\xd8\xff",
    }
    document = report(job, files)
    assert [(image["name"], image["kind"], image["width"], image["height"]) for image in document["images"]] == [
        ("artefacts/z/confusion_matrix.PNG", "png", 2, 2), ("artefacts/sample.png", "png", 3, 4),
    ]  # fmt: skip
    assert document["notes"] == ["artefacts/large.png is not shown: it is larger than 512.0 KiB"]


def test_many_images_and_tables_stay_within_the_limits(job: Path) -> None:
    size = 200 << 10
    filler = (
        struct.pack(">I", size) + b"teXt" + bytes(size) + struct.pack(">I", zlib.crc32(b"teXt" + bytes(size)))
    )
    files: dict[str, str | bytes] = {f"artefacts/{n:02}.png": png(more=filler) for n in range(30)}
    rows = "".join(f"{n}," + ",".join(str(n * c) for c in range(100)) + "\n" for n in range(10_000))
    files |= {
        f"artefacts/{n:02}.csv": "epoch," + ",".join(f"c{c}" for c in range(100)) + "\n" + rows
        for n in range(3)
    }
    files |= {f"artefacts/more/{n:02}.csv": "epoch,loss\n1,2\n2,1\n" for n in range(20)}
    document = report(job, files)
    assert len(document["images"]) == 4 and "4 of 30 images are shown" in document["notes"]
    assert len(document["curves"]) == 40
    assert any("more than 12 files" in note for note in document["notes"])


def test_time_for_packing_is_not_taken_from_the_report(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds may pass between two files, as on a busy host or with a large model among them."""
    seconds = itertools.count(0, 60)
    monkeypatch.setattr(report_files.time, "monotonic", lambda: float(next(seconds)))
    document = report(job, {"artefacts/history.csv": "epoch,loss\n1,2\n2,1\n", "artefacts/roc.png": png()})
    assert len(document["curves"]) == 1 and len(document["images"]) == 1


def test_files_that_are_not_read_are_counted(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_files, "MAX_SECONDS", 0.0)
    document = report(job, {f"artefacts/{n}.png": png() for n in range(5)})
    assert len(document["images"]) == 1 and "4 more tables and images are not shown" in document["notes"]


def test_ten_thousand_epochs_keep_spike_and_ends(job: Path) -> None:
    rows = "".join(f"{n},{100 if n == 5000 else 1 / n}\n" for n in range(1, 10_001))
    document = report(job, {"artefacts/history.csv": "epoch,loss\n" + rows})
    (chart,) = document["curves"]
    (line,) = chart["lines"]
    assert chart["note"] == "10,000 points: of each of 300 intervals the lowest and the highest"
    assert len(line["x"]) <= 602 and (line["x"][0], line["x"][-1]) == (1, 10_000)
    assert line["y"][line["x"].index(5000)] == 100
    assert line["values"] == [1, 0.0001, 10_000, 100, 5000, 0.0001]


def test_report_that_cannot_be_made_does_not_stop_the_archive(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_files.page, "PAGE", job / "missing")
    with pytest.raises(AssertionError):
        report(job, {"artefacts/w": "x"})
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        names = archive.getnames()
    assert "artefacts/w" in names and "job/report.html" not in names


def test_endless_files_end_soon(job: Path) -> None:
    """Sparse files of a terabyte, as a table, as events and as an image; many names before many short rows."""
    (job / "workspace" / "artefacts").mkdir(exist_ok=True)
    many = json.dumps({"step": 1, **{f"k{n}": 0 for n in range(300_000)}})
    (job / "workspace" / "artefacts" / "many.jsonl").write_text(many + '\n{"step":2}' * 300_000)
    files = report_files.ReportFiles()
    for name in ("history.csv", "events.out.tfevents.1", "log.jsonl", "a.png", "many.jsonl"):
        path = job / "workspace" / "artefacts" / name
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(1 << 40)
        folder = os.open(path.parent, os.O_RDONLY)
        files.add(report_files.Artefact(f"artefacts/{name}".encode(), path.lstat(), folder))
        os.close(folder)
    assert files.notes == [
        "history.csv has no curve: it needs a column epoch and at least two rows",
        "artefacts/a.png is not shown: it is larger than 512.0 KiB",
    ]


def test_rows_of_json_lines_after_the_limit_of_time_are_left_out() -> None:
    text = "".join(f'{{"step": {n}, "loss": 1}}\n' for n in range(5000))
    answers = iter((False, False))
    table = from_json_lines(text, lambda: next(answers, True))
    assert table is not None and len(table.lines["loss"]) == 2 * LOOK_ROWS
