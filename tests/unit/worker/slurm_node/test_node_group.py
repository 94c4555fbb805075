"""A job on several nodes: what its models are variables, and which failure counts; processes stand for the steps of Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from train_classifier.core.errors import BadInput, Cancelled, ExitCode, TrainingFailed
from train_classifier.core.job import JobSpec, Repository, new_job_id
from train_classifier.worker.slurm import shared_folder
from train_classifier.worker.slurm.allocation import Allocation
from train_classifier.worker.slurm_node import node_group, rendezvous
from train_classifier.worker.slurm_node.node_group import Leader, Member
from train_classifier.worker.slurm_node.rendezvous import Rendezvous
from train_classifier.worker.state import results
from train_classifier.worker.state.files import write_bytes, write_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Host
from train_classifier.worker.training.stop_reasons import Watch

SLURM = {"SLURM_JOB_ID": "4100"}
MEETING = Rendezvous(["node1", "node2", "node3"], ["127.0.0.1", "127.0.0.2", "127.0.0.3"], 61444)
#: Slurm's srun, which starts one process on another node: it keeps the words of the worker's command.
SRUN = """#!/bin/sh
echo "$@" >>{log}
exec sleep 60
"""


@pytest.fixture
def leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leader:
    spec = JobSpec(new_job_id(), "look", Repository("look", "0" * 16), nodes=3, grace_s=1)
    jobs = [Job(tmp_path / place / spec.id) for place in ("local", "shared")]
    for job in jobs:
        job.dir.mkdir(parents=True)
        write_json(job.dir / "spec.json", spec.to_dict())
        job.write_status(state="running", times={"training": [1.0, 50.0]})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN.format(log=tmp_path / "srun"))
    (tmp_path / "bin/srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return Leader(jobs[1], jobs[0], MEETING, SLURM)


def end(leader: Leader, rank: int, status: int, training_end: float | None = None) -> None:
    """A worker ends with this exit status, and its result says so."""
    member = Job(leader.folder / str(rank))
    leader._processes[rank].kill()
    leader._processes[rank].wait()
    leader._processes[rank] = subprocess.Popen(["sh", "-c", f"exit {status}"])
    leader._processes[rank].wait()
    result = {
        "exit_code": status,
        "reason": f"it ended with {status}",
        "hint": None,
        "training_exit_status": 3,
    }
    member.write_result(result)
    member.write_status(times={"training": [1.0, training_end]})
    member.log.write_text(f"log of {rank}\n")


def test_model_is_told_its_place_in_the_words_of_each_framework() -> None:
    variables = rendezvous.variables(MEETING, 1, {**SLURM, "SLURM_NTASKS": "9"})
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"], variables["WORLD_SIZE"]) == (
        "127.0.0.1",
        "61444",
        "3",
    )
    assert [variables[name] for name in ("RANK", "NODE_RANK", "LOCAL_RANK")] == ["1", "1", "0"]
    assert json.loads(variables["TF_CONFIG"]) == {
        "cluster": {"worker": ["127.0.0.1:61444", "127.0.0.2:61444", "127.0.0.3:61444"]},
        "task": {"type": "worker", "index": 1},
    }
    assert [variables[name] for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURMD_NODENAME")] == [
        "3",
        "1",
        "node2",
    ]
    assert variables["SLURM_JOB_NODELIST"] == "node1,node2,node3" and variables["SLURM_JOB_ID"] == "4100"
    assert variables["GLOO_SOCKET_IFNAME"] == variables["NCCL_SOCKET_IFNAME"] == "lo"
    six = rendezvous.variables(Rendezvous(["a", "b"], ["::1", "::1"], 7), 0, SLURM)
    assert six["TF_CONFIG"].count("[::1]:7") == 2


def test_variables_of_the_request_win_and_the_first_node_has_the_lease(leader: Leader) -> None:
    spec = JobSpec(
        new_job_id(), "look", Repository("look", "0" * 16), environment={"MASTER_PORT": "5"}, lease_s=60.0
    )
    first = Allocation((), None, None, leader).limit(spec)
    assert (first.environment["MASTER_PORT"], first.environment["RANK"], first.lease_s) == ("5", "0", 60.0)
    member = Member(leader.folder, 1, leader.local, {"RANK": "1"})
    assert Allocation((), None, None, member).limit(spec).lease_s is None


def test_logs_of_the_further_nodes_are_together_as_large_as_that_of_the_first(leader: Leader) -> None:
    member = Member(leader.folder, 2, leader.local, {})
    for size, share in ((1 << 20, (1 << 20) // 4), (4096, 4096)):
        spec = JobSpec(new_job_id(), "look", Repository("look", "0" * 16), nodes=5, log_max_bytes=size)
        assert Allocation((), None, None, leader).limit(spec).log_max_bytes == size
        assert Allocation((), None, None, member).limit(spec).log_max_bytes == share


def test_each_further_node_is_a_step_of_the_job(leader: Leader, tmp_path: Path) -> None:
    leader.start(2)
    try:
        for process in leader._processes.values():
            assert process.poll() is None
        end_time = time.monotonic() + 30
        while len((tmp_path / "srun").read_text().splitlines() if (tmp_path / "srun").exists() else []) < 2:
            assert time.monotonic() < end_time
        steps = sorted((tmp_path / "srun").read_text().splitlines())
        for rank, step in enumerate(steps, 1):
            assert f"--nodes=1 --ntasks=1 --nodelist=node{rank + 1} --gres=gpu:2" in step
            assert "--export=ALL" in step and step.endswith(f"run {leader.shared.dir} {rank}")
        assert [path.name for path in leader.folder.parent.iterdir()] == ["4100-0"]
        member = Job(leader.folder / "2")
        assert member.status()["state"] == "submitted" and not (member.dir / "ready").read_bytes()
    finally:
        for process in leader._processes.values():
            process.kill()
            process.wait()


def test_training_begins_when_every_node_is_ready(leader: Leader) -> None:
    leader.start(0)
    said: list[str] = []
    members = [Member(leader.folder, rank, leader.local, {}) for rank in (1, 2)]

    def go_on() -> None:
        # The next worker gets ready as the first one waits for it; a further one still waits.
        if members:
            member = members.pop(0)
            with pytest.raises(Cancelled):
                member.wait_ready(said.append, lambda: (_ for _ in ()).throw(Cancelled("waits")))

    try:
        leader.wait_ready(said.append, go_on)
        assert not members and (leader.folder / "go").read_bytes()
        Member(leader.folder, 1, leader.local, {}).wait_ready(said.append, go_on)
    finally:
        for process in leader._processes.values():
            process.kill()
            process.wait()


def test_node_that_fails_stops_the_others_and_is_named(leader: Leader) -> None:
    leader.start(0)
    watch = Watch(leader.local, leader.local.spec())
    watch.node_group = leader
    watch.check()
    end(leader, 2, ExitCode.FAILED, 40.0)
    watch._looked = 0.0
    with pytest.raises(Exception, match="rank 2 on node3: it ended with 4") as caught:
        watch.check()
    assert caught.value.code == ExitCode.FAILED and "log-rank2.txt" in caught.value.hint  # type: ignore[attr-defined]
    request = shared_folder.stop_request(Job(leader.folder))
    assert request is not None and b"rank 0 on node1: rank 2 on node3" in request[0]
    end(leader, 1, ExitCode.CANCELLED)
    error = leader.end(caught.value, watch.check)  # type: ignore[arg-type]
    assert error is not None and error.reason.startswith("rank 2 on node3")
    assert (leader.local.dir / "log-rank2.txt").read_text() == "log of 2\n"
    assert results.read_facts(leader.local)["training"]["training_exit_status"] == 3


def test_every_model_that_failed_is_named_the_first_one_first(leader: Leader) -> None:
    """The model of this node ended at 50: by itself, or because it lost the others."""
    leader.start(0)
    end(leader, 1, ExitCode.FAILED, 60.0)
    end(leader, 2, ExitCode.FAILED, 40.0)
    error = leader.end(TrainingFailed("the model ended with exit status 1"), lambda: None)
    assert error is not None and error.code == ExitCode.FAILED
    assert error.reason.split("; ") == [
        "rank 2 on node3: it ended with 4", "rank 0 on node1: the model ended with exit status 1",
        "rank 1 on node2: it ended with 4",
    ]  # fmt: skip
    assert error.hint == "its log is job/log-rank2.txt of the archive"
    assert "training" not in results.read_facts(leader.local)


def test_model_that_fails_alone_is_the_error_of_the_job(leader: Leader) -> None:
    leader.start(0)
    end(leader, 1, ExitCode.CANCELLED, 60.0)
    end(leader, 2, ExitCode.CANCELLED, 60.0)
    own = TrainingFailed("the model ended with exit status 1")
    assert leader.end(own, lambda: None) is own


def test_node_whose_worker_is_killed_has_no_result(leader: Leader) -> None:
    leader.start(0)
    leader._processes[1].kill()
    leader._processes[1].wait()
    write_bytes(leader._output(1), b"srun: error: node2: task 0: Killed\n")
    error = leader.failure()
    assert error is not None and error.code == ExitCode.LOST and "task 0: Killed" in str(error.detail)
    end(leader, 2, ExitCode.CANCELLED)
    assert leader.end(error, lambda: None) is error


def test_job_that_ends_well_waits_for_the_others(leader: Leader) -> None:
    leader.start(0)
    end(leader, 1, ExitCode.TRAINED)
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            end(leader, 2, ExitCode.TRAINED)

    assert leader.end(None, check) is None and looks >= 2
    assert shared_folder.stop_request(Job(leader.folder)) is None


def test_shared_folder_that_fails_hides_no_cause_and_fails_no_job(leader: Leader) -> None:
    """What cannot be written or read there now: the request to stop, and the records of another node."""
    leader.start(0)
    stop = leader.folder / shared_folder.STOP_FILE
    stop.unlink()
    stop.mkdir()
    watch = Watch(leader.local, leader.local.spec())
    watch.node_group = leader
    write_bytes(leader.local.cancel, b"ada")
    with pytest.raises(Cancelled, match="cancelled by ada") as caught:
        watch.check()
    end(leader, 1, ExitCode.CANCELLED)
    stop.rmdir()
    log = Job(leader.folder / "1").log
    log.unlink()
    log.mkdir()
    running = leader._running

    def run_until_asked() -> list[int]:
        if shared_folder.stop_request(Job(leader.folder)) is not None:
            end(leader, 2, ExitCode.CANCELLED)
        return running()

    leader._running = run_until_asked  # type: ignore[method-assign]
    assert leader.end(caught.value, watch.check) is caught.value
    assert (leader.local.dir / "log-rank2.txt").read_text() == "log of 2\n"
    notes = leader.local.status()["notes"]
    assert len(notes) == 1 and notes[0].startswith("log-rank1.txt is not in the archive: ")


def test_host_network_is_refused_on_a_node_that_does_not_allow_it() -> None:
    node_group.refuse_host_network(Host(), 1)
    node_group.refuse_host_network(Host(slurm_host_network=True), 2)
    with pytest.raises(BadInput, match="has not allowed"):
        node_group.refuse_host_network(Host(), 2)


def test_addresses_are_those_of_slurm_and_the_own_one_is_no_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "scontrol"
    tool.write_text(
        "#!/bin/sh\necho 'NodeName=node2 Arch=x86_64 NodeAddr=127.0.0.9 NodeHostName=node2'\n"
        "echo 'NodeName=node1 Arch=x86_64 NodeAddr=localhost NodeHostName=node1'\n"
    )
    tool.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    monkeypatch.setattr(rendezvous.commands, "environment", lambda account: variables)
    meeting = rendezvous.arrange(Host().caller(), ["node1", "node2"], "node1", "4100")
    assert list(meeting.nodes) == ["node1", "node2"] and meeting.port == 61440 + 4100 % 4096
    assert meeting.addresses[1] == "127.0.0.9"
