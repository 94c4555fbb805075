"""The cause of a failed training in the job's reason and hint."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.errors import TrainingFailed
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.jobs import failed_training
from train_classifier.worker.state import results
from train_classifier.worker.state.store import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    spec = JobSpec("20260101-000000-00000000", "probe", Repository("r", "0" * 16), network="none")
    job = Job(tmp_path / "jobs" / spec.id)
    (job.workspace / "probe").mkdir(parents=True)
    (job.dir / "spec.json").write_text(json.dumps(spec.to_dict()))
    return job


def error_of(job: Job, log: str, **facts: Any) -> TrainingFailed:
    job.log.write_text(log)
    error = TrainingFailed("the model ended with exit status 1", "its last lines are in the log")
    failed_training.add_cause(error, job, {"signal": None, "out_of_memory": None, **facts}, (), None)
    return error


def test_cause_stands_in_reason_and_hint(job: Job) -> None:
    error = error_of(job, "x" * 200_000 + "\nModuleNotFoundError: No module named 'yaml'\n")
    assert error.reason == "the model ended with exit status 1: the Python module yaml is missing"
    assert error.hint == "add the line pyyaml to probe/requirements.txt"


def test_hint_names_the_file_that_people_edit(job: Job) -> None:
    log = "ModuleNotFoundError: No module named 'yaml'\n"
    for file, hint in (
        ("pyproject.toml", "add pyyaml to pyproject.toml"),
        ("uv.lock", "add pyyaml to pyproject.toml, then run uv lock"),
    ):
        results.record_facts(job, environment={"files": [file]})
        assert error_of(job, log).hint == hint


def test_unknown_end_keeps_reason_and_hint(job: Job) -> None:
    error = error_of(job, "ValueError: oops\n")
    assert (error.reason, error.hint) == (
        "the model ended with exit status 1",
        "its last lines are in the log",
    )
    assert (
        error_of(job, "EOFError: EOF when reading a line\n", out_of_memory={}, signal="SIGKILL").hint
        == error.hint
    )


def test_workspace_decides_the_hint(job: Job) -> None:
    log = "ModuleNotFoundError: No module named 'yaml'\n"
    (job.workspace / "requirements.txt").write_text("PyYAML\n")
    assert "copy the line" in (error_of(job, log).hint or "")
    (job.workspace / "probe" / "yaml.py").touch()
    assert "import it as probe.yaml" in (error_of(job, log).hint or "")


def test_links_and_fifos_of_the_workspace_are_not_followed(job: Job, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "yaml.py").touch()
    (tmp_path / "list").write_text("PyYAML\n")
    (job.workspace / "probe").rmdir()
    (job.workspace / "probe").symlink_to(tmp_path / "outside")
    (job.workspace / "requirements.txt").symlink_to(tmp_path / "list")
    log = "ModuleNotFoundError: No module named 'yaml'\n"
    assert error_of(job, log).hint == "add the line pyyaml to probe/requirements.txt"
    (job.workspace / "requirements.txt").unlink()
    os.mkfifo(job.workspace / "requirements.txt")
    assert error_of(job, log).hint == "add the line pyyaml to probe/requirements.txt"


def test_bus_error_without_words_is_full_shared_memory(job: Job) -> None:
    assert "--shm-size" in (error_of(job, "", signal="SIGBUS").hint or "")


def test_full_gpu_memory_names_the_cards(job: Job) -> None:
    job.log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 300.00 GiB.\n")
    error = TrainingFailed("the model ended with exit status 1")
    failed_training.add_cause(error, job, {}, (), lambda: "GPU 0 (NVIDIA H200) has 143771 MiB of memory")
    assert error.reason == "the model ended with exit status 1: the GPU's memory is full"
    assert (error.hint or "").startswith("GPU 0 (NVIDIA H200) has 143771 MiB of memory; use a smaller batch")
    assert error.code == 4
