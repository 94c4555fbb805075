"""Results that stayed on the host are packed later, also after a packing that was killed."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train_classifier.worker.jobs import recover
from train_classifier.worker.state.store import Job


def test_archive_of_a_killed_packing_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path)
    job.write_status(state="finished")
    job.write_result({"exit_code": 0, "unpacked": {"why": "elsewhere"}})
    dead = subprocess.Popen(["true"])
    dead.wait()
    unfinished = tmp_path / f".artefacts.tar.gz.{dead.pid}.140000000000000.tmp"
    unfinished.touch()
    monkeypatch.setattr(recover, "_pack", lambda _, result, *more: result)
    host: Any = SimpleNamespace(job_user=lambda: None)
    recover.pack(job, host, None, lambda: None)
    assert not unfinished.exists()
