"""roles/host_check/files/jobs.py finds what runs on a host: workers, workflow jobs, and an engine that cannot be asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[3] / "roles/host_check/files/jobs.py"
# One for each test of each run: they run side by side, and the program looks at the whole machine.
PACKING, STARTING, QUEUED, READ = (f"20260101-000000-{os.getpid():07x}{n}" for n in (1, 2, 3, 4))
HOLD = "import sys, time; held = open(sys.argv[1], 'w'); print(flush=True); time.sleep(100)"
Start = Callable[..., "subprocess.Popen[bytes]"]


def look(socket: str = "/nonexistent/docker.sock") -> dict[str, Any]:
    """Run the program as Ansible does, by standard input."""
    text = PROGRAM.read_text().replace('"/var/run/docker.sock"', repr(socket))
    done = subprocess.run([sys.executable, "-I", "-"], input=text, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*words: object, wait: bool = False) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE)
        started.append(process)
        if wait:
            assert process.stdout is not None
            process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("job", "path"),
    [(PACKING, f"of somebody/jobs/{PACKING}/lock"), (QUEUED, f"queue/000000000007-{QUEUED}.json")],
    ids=["packing", "queued"],
)
def test_job_without_container_is_found_in_any_state_folder(
    tmp_path: Path, start: Start, job: str, path: str
) -> None:
    lock = tmp_path / path
    lock.parent.mkdir(parents=True)
    assert job not in look()["jobs"]
    worker = start(sys.executable, "-c", HOLD, lock, wait=True)
    assert job in look()["jobs"]
    worker.kill()
    worker.wait()
    assert job not in look()["jobs"]


def test_worker_without_open_files_is_found(tmp_path: Path, start: Start) -> None:
    start(sys.executable, "-c", "import time; time.sleep(100)", "run", tmp_path / "jobs" / STARTING)
    end = time.monotonic() + 240
    while STARTING not in look()["jobs"]:
        assert time.monotonic() < end


def test_reader_of_a_log_is_not_a_job(tmp_path: Path, start: Start) -> None:
    log = tmp_path / "jobs" / READ / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("")
    start(sys.executable, "-c", HOLD.replace(", 'w')", ")"), log, wait=True)
    assert READ not in look()["jobs"]


def test_a_workflow_job_is_found(tmp_path: Path, start: Start) -> None:
    worker = tmp_path / "bin" / "Runner.Worker"
    worker.parent.mkdir()
    shutil.copy("/bin/sleep", worker)
    start(worker, "100")
    assert "a workflow job of a GitHub runner" in look()["jobs"]


def test_an_engine_that_runs_and_does_not_answer_is_a_problem(tmp_path: Path, start: Start) -> None:
    shim = tmp_path / "containerd-shim-runc-v2"
    shim.symlink_to(sys.executable)
    start(shim, "-c", "import time; time.sleep(100)", "-namespace", "moby")
    assert "No such file" in look()["problem"]
