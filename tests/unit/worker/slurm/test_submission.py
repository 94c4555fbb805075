"""What sbatch is asked for."""

from __future__ import annotations

import dataclasses
import grp
import os
from pathlib import Path

import pytest

from train_classifier.core import options
from train_classifier.core.errors import BadInput, Cancelled
from train_classifier.core.job import JobSpec, Repository, job_of_group, new_group_id, new_job_id
from train_classifier.worker.jobs import prepare, submit
from train_classifier.worker.slurm import shared_folder, submission
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host

SPEC = JobSpec(new_job_id(), "look", Repository("look", "0" * 16))
ALL = dataclasses.replace(
    SPEC, partition="gpu", account="lab", qos="long", constraint="a100|h100", slurm_time_s=7200.0, nice=5,
    dependency="singleton", requeue=True, nodes=2,
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def words(store: Store, spec: JobSpec, gpus: int = 0) -> list[str]:
    assert spec.problems() == []
    return submission.arguments(Job(store.jobs / spec.id), spec, gpus)


def test_each_option_reaches_sbatch(store: Store) -> None:
    plain = words(store, SPEC)
    assert "--no-requeue" in plain and not [
        word for word in plain if word.startswith(("--time", "--mem", "--gres"))
    ]
    spec = dataclasses.replace(ALL, memory_bytes=(1 << 30) + 1, cpus=1.5)
    assert set(words(store, spec, 2)) - set(plain) == {
        "--nodes=2", "--ntasks=2", "--ntasks-per-node=1",
        "--partition=gpu", "--account=lab", "--qos=long", "--constraint=a100|h100", "--time=120", "--nice=5",
        "--dependency=singleton", "--requeue", "--mem=1025M", "--cpus-per-task=2", "--gres=gpu:2",
    }  # fmt: skip


def test_time_limit_follows_from_that_of_the_training(store: Store) -> None:
    spec = dataclasses.replace(SPEC, timeout_s=60.0, grace_s=10.0)
    assert "--time=62" in words(store, spec)
    # A warning would come when a short job begins: Slurm itself gives it half a minute at its limit.
    signals = {
        limit: [
            word for word in words(store, dataclasses.replace(SPEC, slurm_time_s=limit)) if "signal" in word
        ]
        for limit in (60.0, 180.0, 240.0)
    }
    assert signals == {60.0: [], 180.0: [], 240.0: ["--signal=B:TERM@70"]}


def test_dependency_on_jobs_of_ours_names_those_of_slurm(store: Store) -> None:
    ids = ["20261127-214924-0123abcd", "20261127-214925-0123abcd"]
    for number, name in enumerate(ids, 41):
        job = Job(store.jobs / name)
        job.dir.mkdir(parents=True)
        shared_folder.write_number(job, str(number))
    text = f"afterok:{ids[0]}:{ids[1]}?afterany:7"
    assert submission.dependency(store, text) == "afterok:41:42?afterany:7"
    with pytest.raises(BadInput, match="there is no job"):
        submission.dependency(store, "afterok:20261127-214924-ffffffff")
    (store.jobs / ids[0] / shared_folder.NUMBER_FILE).unlink()
    with pytest.raises(BadInput, match="never given to Slurm"):
        submission.dependency(store, text)


def test_cancel_that_comes_during_the_submission_keeps_the_job_out_of_slurm(store: Store) -> None:
    job = Job(store.jobs / SPEC.id)
    job.dir.mkdir(parents=True)
    job.copy.write_bytes(b"copied\n")
    job.cancel.touch()
    with pytest.raises(Cancelled, match="before it was submitted"):
        submit._submit_to_slurm(job, dataclasses.replace(SPEC, gpus=0), Host().caller(), {})
    assert job.status()["state"] == "pushed"


@pytest.mark.parametrize("word", ["", "-x", "a b", "a\nb", "$(x)", "x" * 2000, "gpu'"])
def test_words_that_are_none_of_slurm_are_refused(word: str) -> None:
    for name in ("partition", "account", "qos", "constraint", "dependency"):
        assert dataclasses.replace(SPEC, **{name: word}).problems()


def test_options_of_slurm_are_refused_on_a_plain_host(tmp_path: Path) -> None:
    problems = prepare._slurm_problems(ALL, Host())
    assert len(problems) == len(options.SLURM)
    assert problems[0] == "--partition is an option of Slurm, which starts no jobs on this host"
    assert prepare._slurm_problems(SPEC, Host()) == []
    allowed = Host(engine="slurm", slurm_shared_dir=tmp_path, slurm_host_network=True)
    assert prepare._slurm_problems(ALL, allowed) == []


def test_people_without_docker_rights_are_told_at_once(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    asked = dataclasses.replace(SPEC, nodes=2, requeue=True)
    for name, count in ((group, 2), ("nobody-of-this-name", 0), (None, 0)):
        host = Host(engine="slurm", slurm_shared_dir=tmp_path, slurm_host_network=True, slurm_people=name)
        problems = prepare._slurm_problems(asked, host)
        assert len(problems) == count and all("needs Docker rights on the nodes" in line for line in problems)


def test_several_nodes_need_the_network_of_the_hosts(tmp_path: Path) -> None:
    host = Host(engine="slurm", slurm_shared_dir=tmp_path)
    assert prepare._slurm_problems(SPEC, host) == []
    assert prepare._slurm_problems(dataclasses.replace(SPEC, nodes=1), host) == []
    (problem,) = prepare._slurm_problems(ALL, host)
    assert problem.startswith(
        "--nodes above 1 lets containers use the network of their nodes, which the admin"
    )
    allowed = dataclasses.replace(host, slurm_host_network=True)
    (problem,) = prepare._slurm_problems(dataclasses.replace(ALL, network="none"), allowed)
    assert problem == "--nodes above 1 needs a network: --network none cannot be had with it"


def test_a_group_with_a_limit_is_as_many_chains(store: Store) -> None:
    """Where two run at a time the third waits for the first to end, however that ends."""
    group = new_group_id()
    dependencies = []
    for number in range(1, 5):
        spec = dataclasses.replace(
            SPEC, id=job_of_group(group, number), group=group, max_parallel=2, dependency="afterok:7"
        )
        job = Job(store.jobs / spec.id)
        job.dir.mkdir(parents=True)
        dependencies += [word for word in words(store, spec) if word.startswith("--dependency")]
        shared_folder.write_number(job, str(100 + number))
    assert dependencies == [
        "--dependency=afterok:7", "--dependency=afterok:7", "--dependency=afterok:7,afterany:101",
        "--dependency=afterok:7,afterany:102",
    ]  # fmt: skip
    free = dataclasses.replace(SPEC, id=job_of_group(group, 3), group=group)
    assert not [word for word in words(store, free) if word.startswith("--dependency")]


@pytest.mark.parametrize(
    "words", ["Invalid account or account/partition combination specified", "Invalid qos specification"]
)
def test_account_without_rights_is_refused_in_slurms_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """As sbatch of Slurm 24.11 says it where accounts are enforced."""
    tool = tmp_path / "bin/sbatch"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho 'sbatch: error: Batch job submission failed: {words}' >&2\nexit 1\n")
    tool.chmod(0o755)
    variables = {"PATH": f"{tool.parent}:/usr/bin:/bin"}
    monkeypatch.setattr(submission.commands, "environment", lambda account: variables)
    with pytest.raises(BadInput, match=f"Slurm refused the request: {words}") as caught:
        submission.commands.run(Host().caller(), ["sbatch"])
    error = submission._explain(caught.value, 1, 1)
    assert isinstance(error, BadInput) and "sacctmgr show associations" in str(error.hint)
