"""Which jobs count as ended, from what squeue of Slurm 24.11 prints; the queue itself is asked in tests/integration."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core import locks
from train_classifier.core.errors import ExitCode, NotReady
from train_classifier.core.job import SCHEMA, new_job_id
from train_classifier.worker.checks import cluster_check
from train_classifier.worker.jobs import recover
from train_classifier.worker.slurm import commands, liveness, shared_folder, slurm_words
from train_classifier.worker.slurm.commands import QueueLook, SlurmSilent
from train_classifier.worker.state.files import write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host

OTHER = "20261127-214924-0123abcd"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path / "jobs" / new_job_id())
    job.dir.mkdir(parents=True)
    write_json(
        job.dir / "status.json",
        {"schema": SCHEMA, "id": job.id, "version": 4, "state": "submitted", "submitted": time.time() - 60},
    )
    shared_folder.write_number(job, "12")
    return job


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> QueueLook:
    """What the last look at the queue found, a moment ago."""
    look = QueueLook(Host().caller())
    look._began, look.asked_at = time.monotonic(), time.time()
    monkeypatch.setattr(liveness, "_looks", {os.geteuid(): look})
    return look


def answered(queue: QueueLook, job: Job, line: str) -> liveness.Liveness:
    queue.jobs = commands.parse_queue(f"tc-{job.id}|{line}\n" if line else "")
    return liveness.look(job, Host(), job.status())


def test_queue_is_read_by_names_of_ours() -> None:
    output = (
        f"tc-{OTHER}|12|PENDING|1795817000||gpu|Nodes required for job are DOWN, DRAINED or reserved | for others\n"
        "tc-x|13|RUNNING|1795817000|node1|gpu|None\n"
        "sbatch|14|RUNNING|1795817000|node1|gpu|None\n"
        "broken\n"
    )
    (line,) = commands.parse_queue(output).values()
    assert (line.number, line.state, line.start, line.nodes) == ("12", "PENDING", 1795817000.0, "")
    assert line.reason.endswith("| for others")
    requeued = f"tc-{OTHER}|12|NODE_FAIL|N/A|node1|gpu|None\ntc-{OTHER}|15|RUNNING|N/A|node2|gpu|None\n"
    assert commands.parse_queue(requeued)[OTHER].number == "15"
    assert commands.parse_places("gpu|7\ngpu|9\nother|8\n") == {"7": 1, "9": 2, "8": 1}


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("12|RUNNING|N/A|node1|gpu|None", None, ""),
        ("12|COMPLETING|N/A|node1|gpu|None", None, ""),
        ("12|PENDING|N/A||gpu|Resources", None, ""),
        ("12|NODE_FAIL|N/A|node1|gpu|None", ExitCode.LOST, "the node of the job failed (node1)"),
        ("12|OUT_OF_MEMORY|N/A|node1|gpu|None", ExitCode.LOST, "lack of memory"),
        ("12|TIMEOUT|N/A|node1|gpu|TimeLimit", ExitCode.TIMED_OUT, "time limit (node1)"),
        ("12|CANCELLED|N/A||gpu|Resources", ExitCode.CANCELLED, "cancelled in Slurm"),
        (
            "12|FAILED|N/A|node1|gpu|NonZeroExitCode",
            ExitCode.LOST,
            "killed or could not start on its node (node1)",
        ),
        ("12|COMPLETED|N/A|node1|gpu|None", ExitCode.LOST, "without a result"),
        ("", ExitCode.LOST, "does not know the job"),
    ],
)
def test_state_of_slurm_says_whether_a_job_ended(
    job: Job, queue: QueueLook, line: str, code: ExitCode | None, words: str
) -> None:
    error = answered(queue, job, line).error
    assert (error and error.code) == code
    assert error is None or words in error.reason


def test_sign_of_life_outlives_the_job_of_slurm(job: Job, queue: QueueLook) -> None:
    write_json(job.dir / shared_folder.ALIVE_FILE, {"time": time.time()})
    for line in ("12|COMPLETED|N/A|node1|gpu|None", ""):
        assert answered(queue, job, line).error is None
    # Slurm itself ended these: no worker lives.
    assert answered(queue, job, "12|NODE_FAIL|N/A|node1|gpu|None").error is not None
    write_json(job.dir / shared_folder.ALIVE_FILE, {"time": time.time() - 1000})
    assert answered(queue, job, "").error is not None


def test_nothing_is_said_from_before_the_submission_or_during_it_or_without_slurm(
    job: Job, queue: QueueLook
) -> None:
    with locks.hold(job.lock):
        assert answered(queue, job, "").error is None
    queue.asked_at = time.time() - 100
    assert answered(queue, job, "").error is None
    queue.silence = SlurmSilent("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    answer = answered(queue, job, "12|NODE_FAIL|N/A|node1|gpu|None")
    assert answer.error is None and answer.silence is not None


def test_message_of_a_waiting_job_is_shown_and_not_written(job: Job, queue: QueueLook) -> None:
    before = job.status()
    queue.places = {"12": 2}
    queue.jobs = commands.parse_queue(f"tc-{job.id}|12|PENDING|N/A||gpu|Resources\n")
    shown = liveness.with_message(job, Host(), before, 0)
    assert shown["message"] == "waiting in Slurm's queue, place 2: what it asks for is in use (Resources)"
    assert shown["slurm_job"] == "12" and 4 < shown["version"] < 5 and job.status() == before
    queue.jobs = commands.parse_queue(f"tc-{job.id}|12|PENDING|N/A||gpu|Priority\n")
    assert liveness.with_message(job, Host(), before, 0)["version"] != shown["version"]
    queue.silence = SlurmSilent("")
    running: dict[str, Any] = {**before, "state": "running", "message": "training"}
    assert liveness.with_message(job, Host(), running, 0)["message"] == "training (Slurm does not answer)"


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("QOSMaxGRESPerUser", "a limit of its QOS is reached (QOSMaxGRESPerUser)"),
        ("AssocGrpGRES", "a limit of its account is reached (AssocGrpGRES)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:node1",
            "a node that it needs is down, drained or reserved (ReqNodeNotAvail)",
        ),
        ("None", "Slurm has not looked at it yet"),
        ("SomethingNew", "Slurm says SomethingNew"),
    ],
)
def test_reasons_in_words(reason: str, sentence: str) -> None:
    assert slurm_words.explain_reason(reason) == sentence


def test_expected_start_is_shown() -> None:
    start = time.time() + 3600
    message = slurm_words.waiting_message("Resources", None, start)
    assert message.endswith(f"; expected start: {time.strftime('%H:%M', time.localtime(start))}")
    assert "expected" not in slurm_words.waiting_message("Resources", None, 1000.0)


def test_nodes_of_a_large_cluster_are_counted() -> None:
    nodes = [[f"gpu-{number}", "idle" if number else "drained*", "gpu:2", "none"] for number in range(300)]
    assert cluster_check.show_nodes(nodes) == "300 nodes: 299 idle, 1 drained*"
    assert cluster_check.show_nodes(nodes[:2]) == "nodes: gpu-0 drained*, gpu-1 idle"


def test_folder_of_another_account_is_refused(tmp_path: Path) -> None:
    host = Host(engine="slurm", slurm_shared_dir=tmp_path)
    own = tmp_path / host.caller().name
    assert host.state_dir({}) == own
    own.symlink_to(tmp_path)
    with pytest.raises(NotReady, match="is not a folder of"):
        host.state_dir({})


def test_nothing_is_made_behind_a_link_of_another_account(tmp_path: Path) -> None:
    """The link may come after the first look at the folder."""
    host = Host(engine="slurm", slurm_shared_dir=tmp_path / "shared")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "shared").mkdir()
    store = Store(host.state_dir({}))
    store.root.symlink_to(elsewhere)
    with pytest.raises(NotReady, match="is not a folder of"):
        shared_folder.make(host, store)
    assert list(elsewhere.iterdir()) == []


def test_folder_of_an_account_is_closed_to_others(tmp_path: Path) -> None:
    """A model can leave a file with the account's setuid bit in its checkpoints."""
    host = Host(engine="slurm", slurm_shared_dir=tmp_path)
    store = Store(host.state_dir({}))
    for _ in range(2):
        shared_folder.make(host, store)
        assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
        # As an earlier version left it.
        store.root.chmod(0o711)


def test_submit_host_runs_no_program_of_the_shared_folder(tmp_path: Path) -> None:
    """Who is root on a node can write there as any account."""
    host = Host(engine="slurm", slurm_shared_dir=tmp_path)
    store = Store(host.state_dir({}))
    worker = store.workers / "0123456789abcdef"
    worker.mkdir(parents=True)
    (worker / "__main__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for number, fields in enumerate(({"schema": SCHEMA, "launcher": "setsid"}, {"schema": SCHEMA + 1})):
        job = Job(store.jobs / f"20260101-00000{number}-0123abcd")
        job.dir.mkdir(parents=True)
        status = {"version": 1, "state": "running", "boot_id": "another", "worker": str(worker), **fields}
        write_json(job.dir / "status.json", status)
        os.utime(job.dir / "status.json", (1, 1))
    recover.finish_dead_jobs(store, host)
    assert not (tmp_path / "ran").exists()


def test_reason_why_a_worker_could_not_start_is_in_the_result(job: Job) -> None:
    job.crash.write_text("Traceback\nNotReady: host.json cannot be read\n")
    assert recover.finish_slurm_job(
        job, Host(service_user="nobody"), slurm_words.ending("FAILED", "None", "node1")
    )
    result = job.result()
    assert result is not None and result["exit_code"] == ExitCode.LOST
    assert result["detail"].endswith("NotReady: host.json cannot be read")


def test_folders_of_others_do_not_keep_a_dead_job_from_being_finished(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each account of the submit host can make any folder in memory, also before this one does."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(shared_folder, "MEMORY", memory)
    account = Host().caller()
    usual = memory / f"train-classifier-{account.uid}"
    (memory / f"{usual.name}0").mkdir()
    usual.symlink_to(tmp_path / "elsewhere")
    (memory / f"{usual.name}.0").write_text("")
    if os.geteuid() == 0:
        usual.unlink()
        usual.mkdir(mode=0o777)
        os.chown(usual, 12345, 12345)
    ended = slurm_words.ending("NODE_FAIL", "None", "node1")
    assert recover.finish_slurm_job(job, Host(service_user="nobody"), ended)
    assert job.status()["state"] == "finished"
    lock = shared_folder.local_lock(account, job)
    assert lock.exists() and stat.S_IMODE(lock.parent.stat().st_mode) == 0o700
    assert not (tmp_path / "elsewhere").exists() and len(list(memory.iterdir())) == 4
    # The usual name is free again: others still find the same lock.
    usual.rmdir() if os.geteuid() == 0 else usual.unlink()
    assert shared_folder.local_lock(account, job) == lock
