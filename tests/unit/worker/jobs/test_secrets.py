"""Where a job's secrets wait for its worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train_classifier.core.job import new_job_id
from train_classifier.worker.jobs import secrets
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account


def test_file_of_another_account_with_the_name_of_the_secrets_keeps_no_job_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the memory that all accounts share; who sees the processes of a push knows the job's id."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(secrets, "MEMORY", str(memory))
    # An account without a folder in /run/user.
    account = Account("ada", 4_000_000_000, os.getgid(), str(tmp_path))
    for name in ("free", "taken"):
        job = Job(tmp_path / name / new_job_id())
        job.dir.mkdir(parents=True)
        planted = memory / f"train-classifier-{job.id}.secrets"
        if name == "taken":
            planted.symlink_to(tmp_path / "elsewhere")
        secrets.store_secrets(job, account, {"TOKEN": "s3cret"})
        assert planted.exists() == (name == "free")
        assert secrets.take_secrets(job) == {"TOKEN": "s3cret"}
        assert not list(job.dir.iterdir()) and os.path.lexists(planted) == (name == "taken")
    assert not (tmp_path / "elsewhere").exists()
