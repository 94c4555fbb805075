"""A person's half of a worker takes what the service account's half says as a stranger's."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.errors import ExitCode, NotReady
from train_classifier.core.job import SCHEMA, JobSpec, Repository, new_job_id
from train_classifier.worker.jobs.secrets import store_secrets
from train_classifier.worker.slurm_node import node_job, person_half, tree_stream
from train_classifier.worker.slurm_node.person_half import PersonHalf
from train_classifier.worker.state.files import read_json, write_bytes, write_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Host

#: The other half: takes the job, then does what the test says.
BEGIN = """
import json, os, pathlib, sys, time
from train_classifier.worker.slurm_node import tree_stream
from train_classifier.worker.slurm_node.pipe import Pipe
pipe = Pipe(os.fdopen(0, "rb"), os.fdopen(1, "wb"))
folder = pathlib.Path(sys.argv[1])
pipe.send({})
header = pipe.receive_object()
for name in ("workspace", "checkpoints"):
    (folder / name).mkdir()
    tree_stream.receive_tree(pipe, folder / name, tree_stream.Room(folder, 0))
result = {"exit_code": 0, "reason": None, "hint": None, "detail": None, "id": "another", "outcome": "x", "seconds": {}}
status = {"phase": "training", "message": "training", "times": {"training": [1.5, None]}, "notes": ["a"], "gpus": ["GPU-1"], "started": 1.5}
"""


class Halves:
    """A job that a person submitted, and its run by a half that a test writes."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        self.host = Host(slurm_shared_dir=folder, disk_floor_bytes=0)
        self.account = self.host.caller()
        self.other = folder / "other"
        self.other.mkdir()
        asked_spec = JobSpec(
            new_job_id(), "look", Repository("look", "0" * 16), log_max_bytes=1 << 20, **spec
        )
        self.shared = Job(folder / "shared" / "jobs" / asked_spec.id)
        for name in (self.shared.workspace, self.shared.checkpoints):
            name.mkdir(parents=True)
        (self.shared.workspace / "look.py").write_text("print()")
        (self.shared.checkpoints / "epoch").write_text("1")
        write_json(self.shared.dir / "spec.json", asked_spec.to_dict())
        write_json(
            self.shared.dir / "status.json",
            {"schema": SCHEMA, "id": asked_spec.id, "version": 3, "state": "submitted", "model": "look"},
        )
        store_secrets(self.shared, self.account, dict.fromkeys(asked_spec.secrets, "s3cret"), in_memory=False)
        self.local = node_job.bring_in(
            self.shared, self.host, self.account, self.shared.status(), self.shared.log, folder / "local"
        )
        node_job.set_submitted(self.local, self.shared)

    def run(self, code: str, begin: str = BEGIN) -> dict[str, Any]:
        """Run the job, and return its result."""
        half = PersonHalf(self.local, self.shared, self.host)
        half.run(self.account, [sys.executable, "-c", begin + code, str(self.other)])
        result = self.local.result()
        assert result is not None and self.local.status()["state"] == "finished"
        return result


@pytest.fixture
def halves(tmp_path: Path) -> Halves:
    return Halves(tmp_path, secrets=("TOKEN",))


def test_job_goes_there_and_its_results_come_back(halves: Halves) -> None:
    result = halves.run(
        """
(folder / "header").write_text(json.dumps(header))
pipe.send({"status": status})
pipe.send_block(b"one\\n")
pipe.send_block(b"two\\n")
(folder / "usage.csv").write_text("1,2\\n")
tree_stream.send_file(pipe, folder / "usage.csv", lambda: None)
tree_stream.send_file(pipe, folder / "manifest.json", lambda: None)
(folder / "stock.json").write_text("{}")
tree_stream.send_file(pipe, folder / "stock.json", lambda: None)
(folder / "checkpoints" / "epoch").write_text("2")
(folder / "workspace" / "more").write_text("3")
pipe.send({"result": {**result, "unpacked": {"why": "elsewhere"}, "remarks": ["r"]}})
for name in ("checkpoints", "workspace"):
    pipe.send({"tree": name})
    tree_stream.send_tree(pipe, folder / name, lambda: None)
pipe.send({"done": True})
"""
    )
    header = read_json(halves.other / "header")
    assert header["spec"]["id"] == halves.local.id and header["secrets"] == {"TOKEN": "s3cret"}
    assert (halves.other / "workspace" / "look.py").read_text() == "print()"
    assert halves.local.log.read_bytes() == b"one\ntwo\n" and halves.local.usage.read_text() == "1,2\n"
    assert not halves.local.manifest.exists()
    assert (result["id"], result["outcome"], result["schema"]) == (halves.local.id, "trained", SCHEMA)
    assert result["remarks"] == ["r"] and result["unpacked"] == {"why": "elsewhere"}
    status = halves.local.status()
    assert (status["times"], status["notes"]) == ({"training": [1.5, None]}, ["a"])
    assert (halves.shared.checkpoints / "epoch").read_text() == "2"
    assert {path.name for path in halves.shared.workspace.iterdir()} == {"look.py", "more"}
    # Otherwise `fetch` would pack none of it.
    stock = halves.shared.stock.stat().st_ctime_ns
    assert all(path.stat().st_ctime_ns > stock for path in halves.shared.workspace.iterdir())
    assert not list(halves.shared.dir.glob("*.new")) and not list(halves.shared.dir.glob("*.old"))


def test_cancel_sign_of_the_controller_and_signal_reach_the_other_half(halves: Halves) -> None:
    """The test does the next of these when the last one has arrived."""
    events: list[Callable[[], object]] = [
        lambda: write_bytes(halves.local.cancel, b"ada"),
        lambda: os.utime(halves.local.lease, ns=(7, 7)),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
        lambda: write_bytes(halves.local.cancel, b"ada, again"),
    ]

    def cause() -> None:
        for number, event in enumerate(events):
            while not halves.local.log.exists() or halves.local.log.read_bytes().count(b"\n") < number + 1:
                time.sleep(0.01)
            event()

    thread = threading.Thread(target=cause, daemon=True)
    thread.start()
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        halves.run(
            f"""
pipe.send_block(b"begin\\n")
for _ in range({len(events)}):
    pipe.send_block(json.dumps(pipe.receive_object()).encode() + b"\\n")
pipe.send({{"result": result}})
pipe.send({{"done": True}})
"""
        )
    finally:
        signal.signal(signal.SIGTERM, handlers[0])
        signal.signal(signal.SIGINT, handlers[1])
    assert halves.local.log.read_text().splitlines() == [
        "begin", '{"cancel": "ada"}', '{"lease": true}', '{"signal": true}', '{"cancel": "ada, again"}',
    ]  # fmt: skip


SEND = "for message in messages: pipe.send_block(message) if isinstance(message, bytes) else pipe.send(message)\n"
END = '[{"result": result}, {"done": True}]'


@pytest.mark.parametrize(
    "messages",
    [
        '[{"status": {**status, "phase": "other"}}]',
        '[{"status": {**status, "message": 7}}]',
        '[{"status": {**status, "message": "a" * 200_000}}]',
        '[{"status": {**status, "times": {"training": [1, "x"]}}}]',
        '[{"status": {**status, "times": {"training": 1}}}]',
        '[{"status": {**status, "notes": ["a"] * 21}}]',
        '[{"status": {**status, "gpus": [1]}}]',
        '[{"status": []}]',
        '[{"record": "spec.json"}, b"{}", {"end": True}]',
        '[{"record": "../out"}, b"1", {"end": True}]',
        '[{"record": None}, b"1", {"end": True}]',
        '[{"tree": "checkpoints"}, {"end": True}]',
        '[{"result": {**result, "exit_code": 99}}]',
        '[{"result": {**result, "reason": 7}}]',
        '[{"result": {**result, "remarks": "text"}}]',
        '[{"result": {**result, "remarks": [1]}}]',
        '[{"result": {**result, "unpacked": [1]}}]',
        '[{"result": {**result, "seconds": 1}}]',
        '[{"result": []}]',
        '[{"done": True}]',
        '[{"result": result}, {"tree": "workers"}, {"end": True}]',
        '[{"result": result}, {"tree": "checkpoints"}, {"path": "../out", "mode": 0o644}, b"1", {"end": True}]',
        '[{"error": {"code": 2, "reason": ["x"]}}]',
        '[{"other": 1}]',
    ],
)  # fmt: skip
def test_lie_ends_the_job_and_writes_nothing_elsewhere(halves: Halves, messages: str) -> None:
    before = {path for path in halves.shared.dir.parents[2].rglob("*") if halves.other not in path.parents}
    spec = (halves.local.dir / "spec.json").read_bytes()
    result = halves.run(f"messages = {messages} + {END}\n{SEND}")
    assert result["exit_code"] == ExitCode.NOT_READY, result
    assert "do not understand each other" in result["reason"]
    assert (halves.local.dir / "spec.json").read_bytes() == spec
    assert (halves.shared.checkpoints / "epoch").read_text() == "1"
    after = {path for path in halves.shared.dir.parents[2].rglob("*") if halves.other not in path.parents}
    assert {path.name for path in after - before} <= {"log.txt", "result.json", "lock"}


def test_endless_log_ends_at_its_limit(halves: Halves) -> None:
    result = halves.run('while True: pipe.send_block(b"a" * 100_000)')
    assert result["exit_code"] == ExitCode.NOT_READY
    assert halves.local.log.stat().st_size <= (1 << 20) + person_half.MOST_LINES


def test_refusal_of_the_other_half_is_the_jobs_own(halves: Halves) -> None:
    error = '{"error": {"code": 2, "reason": "job 7 of Slurm is not yours", "hint": "no"}}'
    result = halves.run(f"pipe.send({error})")
    assert (result["exit_code"], result["reason"]) == (ExitCode.BAD_INPUT, "job 7 of Slurm is not yours")


def test_sudo_that_refuses_is_quoted(halves: Halves) -> None:
    result = halves.run("sys.exit('sudo: a password is required')", begin="import sys\n")
    assert result["exit_code"] == ExitCode.NOT_READY and "does not run the job" in result["reason"]
    assert result["detail"] == "sudo: a password is required"


def test_other_half_that_is_killed_loses_the_job(halves: Halves) -> None:
    result = halves.run('pipe.send_block(b"one")\nos.kill(os.getpid(), 9)')
    assert result["exit_code"] == ExitCode.LOST and halves.local.log.read_bytes() == b"one"


def test_results_that_find_no_room_leave_what_was_there(
    halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(tree_stream.Room):
        def use(self, size: int = 0, entries: int = 0) -> None:
            # The records come to another folder.
            if self._folder == halves.shared.dir:
                raise NotReady("no room")

    monkeypatch.setattr(person_half, "Room", Full)
    result = halves.run(
        """
pipe.send({"result": {**result, "unpacked": {"why": "too-large"}}})
for name in ("checkpoints", "workspace"):
    pipe.send({"tree": name})
    tree_stream.send_tree(pipe, folder / name, lambda: None)
pipe.send({"done": True})
"""
    )
    assert "unpacked" not in result and len(result["remarks"]) == 2
    assert result["remarks"][0] == "its checkpoints could not be brought from the node: no room"
    assert (halves.shared.checkpoints / "epoch").read_text() == "1"


def test_job_that_needs_docker_rights_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    halves = Halves(tmp_path, nodes=2, requeue=True)
    result = halves.run("", begin="raise SystemExit('never started')\n")
    assert result["exit_code"] == ExitCode.BAD_INPUT
    assert "--nodes" in result["reason"] and "--requeue" in result["reason"]


def test_state_of_the_job_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with person_half.temporary_state() as none:
        assert none is None
    monkeypatch.setattr(person_half, "is_needed", lambda: True)
    with person_half.temporary_state() as folder:
        assert folder is not None and folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
