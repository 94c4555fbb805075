"""What stops a job."""

import os
from pathlib import Path

import pytest

from train_classifier.core.errors import Cancelled
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.state.store import Job
from train_classifier.worker.training.stop_reasons import Watch


def spec(**changes: object) -> JobSpec:
    values = {
        "id": "20260101-000000-00000000",
        "model": "m",
        "repository": Repository("r", "0" * 16),
        **changes,
    }
    return JobSpec(**values)  # type: ignore[arg-type]


class Clock:
    """Stands in for the module time: it goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("train_classifier.worker.training.stop_reasons.time", clock)
    return clock


def test_lease_is_measured_by_changes_of_its_file(tmp_path: Path, clock: Clock) -> None:
    job = Job(tmp_path)
    watch = Watch(job, spec(lease_s=4.0))
    job.lease.touch()
    os.utime(job.lease, (1, 1))
    watch.check()
    for stamp in (2, 10**9, 3):
        clock.now += 2.5
        os.utime(job.lease, (stamp, stamp))
        watch.check()
    clock.now += 6
    with pytest.raises(Cancelled, match="controller is gone"):
        watch.check()


def test_first_reason_is_kept(tmp_path: Path, clock: Clock) -> None:
    job = Job(tmp_path)
    watch = Watch(job, spec())
    watch.check()
    job.cancel.write_text("one")
    clock.now += 1
    with pytest.raises(Cancelled, match="cancelled by one"):
        watch.check()
    job.cancel.write_text("two")
    clock.now += 1
    with pytest.raises(Cancelled, match="cancelled by one"):
        watch.check()
