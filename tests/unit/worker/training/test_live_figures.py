"""What a running model has used and measured: the ends of its files, whatever they are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Host
from train_classifier.worker.training import live_figures
from train_classifier.worker.training.usage import COLUMNS

HEAD = ",".join(COLUMNS) + "\n"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path / "20260101-000000-00000000")
    (job.workspace / "artefacts").mkdir(parents=True)
    return job


def figures(job: Job, began: Any = 0.0) -> dict[str, Any]:
    """What is found where jobs run as the account that asks; jobs of root: test_jobs.py of the command line."""
    (found,) = live_figures.look([(job, {"times": {"training": [began, None]}})], Host().caller())
    return found


def test_metrics_are_those_of_the_last_whole_row(job: Job) -> None:
    history = job.workspace / "artefacts/history.csv"
    assert figures(job)["history"] == {}
    history.write_text("epoch,loss,val_loss\n")
    assert figures(job)["history"] == {}
    history.write_text("\ufeffepoch, loss,note,val_loss\n0,0.9,x,\n1,0.5,good,nan\n2,0.2")
    assert figures(job)["history"] == {"epoch": 1, "loss": 0.5}
    rows = "".join(f"{epoch},{1 / (epoch + 1)}\n" for epoch in range(10_000))
    history.write_text("epoch,loss\n" + rows)
    assert figures(job)["history"] == {"epoch": 9999, "loss": 1 / 10_000}
    # A row that is longer than what is read has no beginning there.
    history.write_text("epoch,loss\n1,0.5\n" + "9," * (1 << 15) + "\n")
    assert figures(job)["history"] == {}


def test_file_of_the_checkout_does_not_count(job: Job) -> None:
    (job.workspace / "artefacts/history.csv").write_text("epoch,loss\n1,0.5\n")
    assert figures(job, time.time() - 60)["history"] == {"epoch": 1, "loss": 0.5}
    assert figures(job, time.time() + 60)["history"] == {}


@pytest.mark.parametrize(
    "kind", ["link", "linked folder", "FIFO", "folder", "binary", "no workspace", "times"]
)
def test_strange_files_are_left_out(job: Job, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "history.csv").write_text("epoch,loss\n1,0.5\n")
    (elsewhere / "usage.csv").write_text(HEAD + "1,2,3,,,,,\n")
    folder = job.workspace / "artefacts"
    history = folder / "history.csv"
    began: Any = 0.0
    job.usage.symlink_to(elsewhere / "usage.csv")
    if kind == "link":
        history.symlink_to(elsewhere / "history.csv")
    elif kind == "linked folder":
        folder.rmdir()
        folder.symlink_to(elsewhere)
    elif kind == "FIFO":
        os.mkfifo(history)
    elif kind == "folder":
        history.mkdir()
    elif kind == "binary":
        history.write_bytes(b'\0\xff\r"\n' * 100)
    elif kind == "no workspace":
        job.workspace.rename(tmp_path / "gone")
    else:
        began = "yesterday"
    assert figures(job, began) == {"cpu_percent": None, "memory_bytes": None, "gpus": [], "history": {}}


def test_use_is_that_of_the_newest_rows_of_all_cards(job: Job) -> None:
    assert figures(job)["gpus"] == []
    job.usage.write_text(HEAD)
    assert figures(job)["cpu_percent"] is None
    job.usage.write_text(HEAD + "0.2,,4096,,,,,\n")
    assert figures(job) == {"cpu_percent": None, "memory_bytes": 4096, "gpus": [], "history": {}}
    rows = [
        f"{seconds},{seconds},{seconds * 1000},GPU-{card},{card},{seconds},0,0\n"
        for seconds in (5, 10)
        for card in range(64)
    ]
    # The last row is being written.
    job.usage.write_text(HEAD + "".join(rows) + "15,15,15000,GPU-0")
    usage = figures(job)
    assert (usage["cpu_percent"], usage["memory_bytes"]) == (10, 10_000)
    assert usage["gpus"] == [{"uuid": f"GPU-{card}", "percent": card, "memory_mib": 10} for card in range(64)]
    job.usage.write_text(HEAD + "5,1,1,GPU-0,,,,\n")
    assert figures(job)["gpus"] == [{"uuid": "GPU-0", "percent": None, "memory_mib": None}]
