"""What travels between a node and the shared folder while a job runs, and which launch of a job runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from train_classifier.core.job import SCHEMA, new_job_id
from train_classifier.worker.slurm import shared_folder
from train_classifier.worker.slurm_node import attempt
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


def test_thread_publishes_until_it_is_finished(publisher: Publisher) -> None:
    """It has no attribute by whose name Thread of an older Python ends, as 3.12 and before do by `_stop`."""
    publisher.local.log.write_bytes(b"one\n")
    publisher.start()
    publisher.finish()
    assert not publisher.is_alive() and publisher.problem is None
    names = {*dir(threading.Thread), *vars(threading.Thread()), "_stop"}
    assert not {*vars(publisher)} - {*vars(threading.Thread())} & names


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


FIRST = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node1"}


def launch(job: Job, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """Another process takes the attempt, says so, and lives until its standard input ends."""
    code = (
        "import json, pathlib, sys\nfrom train_classifier.worker.slurm_node import attempt\n"
        "from train_classifier.worker.state.store import Job\n"
        "attempt.take(Job(pathlib.Path(sys.argv[1])), json.loads(sys.argv[2]), lambda: False)\n"
        "print('taken', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(job.dir), json.dumps(variables)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"taken\n"
    return process


def looks(process: subprocess.Popen[bytes], after: int, action: Callable[[], object]) -> Callable[[], bool]:
    """Return a question that does something at this look at the other launch, and answers no."""
    count = 0

    def look() -> bool:
        nonlocal count
        count += 1
        assert count <= after or process.poll() is not None, "it does not wait for the other launch"
        if count == after:
            action()
        return False

    return look


def test_second_launch_of_an_attempt_waits_for_the_first(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes over from one that was killed, has nothing to do after one with a result, and heeds Slurm."""
    monkeypatch.setattr(attempt, "LOOK_S", 0.01)
    job = publisher.shared
    process = launch(job, FIRST)

    def kill() -> None:
        process.kill()
        process.wait()

    assert attempt.take(job, {**FIRST, "SLURM_RESTART_COUNT": "1"}, lambda: False)
    assert not attempt.take(job, FIRST, lambda: True)
    assert attempt.take(job, FIRST, looks(process, 3, kill))
    job.write_result({"exit_code": 0})
    assert not attempt.take(job, FIRST, lambda: False)


def test_launch_on_another_node_counts_as_ended_when_it_is_silent(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "LOOK_S", 0.01)
    monkeypatch.setattr(attempt, "SILENCE_S", 0.3)
    job = publisher.shared
    process = launch(job, FIRST)
    signs = iter(range(60))

    def give_sign() -> bool:
        number = next(signs, None)
        if number is not None:
            write_json(job.dir / shared_folder.ALIVE_FILE, {"time": float(number)})
        return False

    with process:
        assert attempt.take(job, {**FIRST, "SLURMD_NODENAME": "node2"}, give_sign)
    assert next(signs, None) is None
