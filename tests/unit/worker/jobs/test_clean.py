"""What clean removes, and what one item that cannot be removed does to the others."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.errors import NotReady
from train_classifier.worker.jobs import clean, removal
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Account


def test_one_job_that_cannot_be_removed_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    for letter in "ab":
        job = Job(store.jobs / f"20260101-000000-{letter * 8}")
        job.dir.mkdir(parents=True)
        job.write_status(state="finished")
        job.write_result({"exit_code": 0, "finished": time.time() - 10})
    first, second = store.all_jobs()
    remove = removal.remove

    def fail_first(job: Job, account: Account) -> bool:
        if job.id == first.id:
            raise NotReady(f"{job.dir} cannot be removed")
        return remove(job, account)

    monkeypatch.setattr(removal, "remove", fail_first)
    account = Account("worker", os.geteuid(), os.getegid(), "/")
    host: Any = type("AnyHost", (), {"job_user": lambda _: account})()
    cleaning = clean.Cleaning(host, store, dry_run=False)
    cleaning.jobs(0)
    assert cleaning.removed["jobs"] == 1 and not second.dir.exists()
    assert isinstance(cleaning.failure, NotReady)
