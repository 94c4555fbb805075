"""The start of the worker: the stop hook of a unit whose job has ended does nothing more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train_classifier.worker import __main__ as worker

HOOK = """
import sys
from train_classifier.worker import __main__ as worker
sys.argv = ["worker", "finish", sys.argv[1]]
print(worker.main(), "train_classifier.worker.api" in sys.modules)
"""


def test_stop_hook_of_an_ended_job_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"schema": 2, "state": "finished"}')
    done = subprocess.run([sys.executable, "-c", HOOK, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0 False\n", "")


@pytest.mark.parametrize(
    "text", ['{"state": "running"}', "{", "[]", "[" * 100_000, '"finished"', "{}", "\udcff"]
)
def test_other_jobs_are_left_to_the_whole_worker(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text, errors="surrogateescape")
    assert not worker._has_ended(str(tmp_path))


def test_status_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    assert not worker._has_ended(str(tmp_path))
    os.mkfifo(tmp_path / "status.json")
    assert not worker._has_ended(str(tmp_path))
