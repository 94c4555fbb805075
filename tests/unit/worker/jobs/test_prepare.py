"""What a new job starts from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from train_classifier.core.errors import BadInput
from train_classifier.core.job import JobSpec, Repository, job_of_group
from train_classifier.worker.jobs import prepare
from train_classifier.worker.state.store import Store

GROUP = "20260102-000000-012345"


def test_jobs_of_a_group_resume_from_one_that_was_there_before(tmp_path: Path) -> None:
    """The first may have written checkpoints before the last is prepared."""
    store = Store(tmp_path)
    spec = JobSpec("20260101-000000-00000001", "m", Repository("r", "0" * 16))
    sibling = dataclasses.replace(spec, id=job_of_group(GROUP, 1), group=GROUP)
    own = dataclasses.replace(spec, id=job_of_group(GROUP, 2), group=GROUP, resume="last")

    def add(one: JobSpec) -> None:
        checkpoints = store.jobs / one.id / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "epoch").touch()
        (store.jobs / one.id / "spec.json").write_text(json.dumps(one.to_dict()))

    add(sibling)
    with pytest.raises(BadInput, match="no earlier job"):
        prepare._find_resumed_job(store, own)
    add(spec)
    assert prepare._find_resumed_job(store, own).id == spec.id
    # A later command resumes from the group's newest job.
    later = dataclasses.replace(spec, id="20260103-000000-00000001", resume="last")
    assert prepare._find_resumed_job(store, later).id == sibling.id
