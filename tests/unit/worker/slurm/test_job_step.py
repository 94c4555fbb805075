"""The command line by which a running job of Slurm is entered; Slurm itself runs it in tests/integration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train_classifier.core.errors import NotReady
from train_classifier.core.job import SCHEMA, new_job_id
from train_classifier.worker.slurm import job_step, shared_folder
from train_classifier.worker.state.files import write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Host


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(Store(tmp_path).make().jobs / new_job_id())
    job.dir.mkdir(parents=True)
    status = {"schema": SCHEMA, "id": job.id, "version": 1, "state": "running", "node": "node2"}
    write_json(job.dir / "status.json", status)
    shared_folder.write_number(job, "12")
    return job


def test_step_runs_this_program_on_the_node_of_the_job_without_variables_of_the_caller(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "0123456789abcdef"
    own.mkdir()
    (own / "__main__.py").touch()
    monkeypatch.setattr(program, "PROGRAM", own)
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execvpe", lambda file, words, variables: started.append((words, variables)))
    monkeypatch.setenv("SLURM_PARTITION", "other")
    for terminal in (False, True):
        job_step.become_step(job, Host().caller(), ["exec-on-node", job.id, "-x", "a b"], terminal)
    for (words, variables), kind in zip(started, ("--unbuffered", "--pty"), strict=True):
        assert words[0] == "srun" and {"--jobid=12", "--nodelist=node2", "--overlap", kind} <= set(words)
        assert len({"--unbuffered", "--pty"} & set(words)) == 1
        assert words[-4:] == ["exec-on-node", job.id, "-x", "a b"]
        copy = Path(words[words.index("-I") + 1])
        assert copy == Store.of(job.dir).workers / own.name and (copy / "__main__.py").is_file()
        assert "SLURM_PARTITION" not in variables and variables["USER"] == Host().caller().name


def test_job_on_no_node_cannot_be_entered(job: Job) -> None:
    for fields in ({"state": "submitted"}, {"state": "running", "node": None}):
        job.write_status(**fields)
        with pytest.raises(NotReady, match="runs on no node"):
            job_step.become_step(job, Host().caller(), ["exec-on-node", job.id, "pipe", "true"], False)
