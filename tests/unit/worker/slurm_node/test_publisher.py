"""What travels between a node and the shared folder while a job runs, and which launch of a job runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from train_classifier.core.job import SCHEMA, new_job_id
from train_classifier.worker.slurm import shared_folder
from train_classifier.worker.slurm_node import node_job
from train_classifier.worker.slurm_node.publisher import Publisher
from train_classifier.worker.state.files import write_bytes, write_json
from train_classifier.worker.state.store import Job


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    name = new_job_id()
    jobs = [Job(tmp_path / place / name) for place in ("local", "shared")]
    for job in jobs:
        job.dir.mkdir(parents=True)
        write_json(
            job.dir / "status.json",
            {"schema": SCHEMA, "id": name, "version": 3, "state": "submitted", "launcher": "slurm-node"},
        )
        write_bytes(job.lease, b"")
    write_bytes(jobs[1].dir / shared_folder.STOP_FILE, b"")
    return Publisher(*jobs, {"launcher": "slurm"})


def look_again(publisher: Publisher) -> None:
    publisher._next_look = float("-inf")
    assert publisher.publish()


def test_log_and_status_are_published(publisher: Publisher) -> None:
    local, shared = publisher.local, publisher.shared
    assert publisher.publish() and not shared.log.exists()
    local.log.write_bytes(b"one\n")
    local.write_status(state="running")
    assert publisher.publish()
    assert shared.log.read_bytes() == b"one\n"
    assert (shared.status()["state"], shared.status()["launcher"]) == ("running", "slurm")
    # An interrupted write is continued where it ended.
    with local.log.open("ab") as log:
        log.write(b"two\nthree\n")
    with shared.log.open("ab") as log:
        log.write(b"tw")
    assert publisher.publish()
    assert shared.log.read_bytes() == b"one\ntwo\nthree\n"
    local.write_status(state="finished")
    assert publisher.publish()
    assert shared.status()["state"] == "running"


def test_each_request_to_stop_reaches_the_node(publisher: Publisher) -> None:
    local, shared = publisher.local, publisher.shared
    look_again(publisher)
    assert not local.cancel.exists()
    shared_folder.ask_to_stop(shared, "me@here")
    look_again(publisher)
    assert local.cancel.read_bytes() == b"me@here"
    first = local.cancel.stat().st_ino, local.cancel.stat().st_mtime_ns
    look_again(publisher)
    assert (local.cancel.stat().st_ino, local.cancel.stat().st_mtime_ns) == first
    shared_folder.ask_to_stop(shared, "me@here")
    look_again(publisher)
    assert (local.cancel.stat().st_ino, local.cancel.stat().st_mtime_ns) != first


def test_job_that_the_submit_host_ended_stops_and_publishes_nothing_more(publisher: Publisher) -> None:
    local, shared = publisher.local, publisher.shared
    shared.write_result({"exit_code": 10})
    look_again(publisher)
    assert publisher.is_superseded and local.cancel.exists()
    local.log.write_bytes(b"late\n")
    look_again(publisher)
    assert not shared.log.exists()


def test_second_launch_of_an_attempt_does_not_run_the_job(publisher: Publisher) -> None:
    job = publisher.shared
    assert node_job.take_attempt(job, {"SLURM_JOB_ID": "7"})
    assert not node_job.take_attempt(job, {"SLURM_JOB_ID": "7"})
    assert node_job.take_attempt(job, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
