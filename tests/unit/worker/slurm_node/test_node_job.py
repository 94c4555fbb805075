"""A job on its way into a node's own state, beside other jobs of its account there."""

from __future__ import annotations

from pathlib import Path

import pytest

from train_classifier.core import locks
from train_classifier.core.errors import NotReady
from train_classifier.core.job import SCHEMA, JobSpec, Repository, new_job_id
from train_classifier.worker.jobs import recover
from train_classifier.worker.jobs.secrets import store_secrets, take_secrets
from train_classifier.worker.slurm_node import node_job
from train_classifier.worker.state.files import write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import host as system_host
from train_classifier.worker.system.host import Host
from train_classifier.worker.transfer import workspace_copy


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A node with its own state folder."""
    # The folder of the test may lie in a container.
    monkeypatch.setattr(system_host, "refuse_unsafe", lambda path: None)
    return Host(configured_state_dir=f"{tmp_path}/node/{{user}}", queue_dir=tmp_path / "queue")


@pytest.fixture
def shared(tmp_path: Path) -> Job:
    """A job in the shared folder, which another host submitted."""
    spec = JobSpec(new_job_id(), "look", Repository("look", "0" * 16))
    job = Job(tmp_path / "shared" / "jobs" / spec.id)
    job.workspace.mkdir(parents=True)
    write_json(job.dir / "spec.json", spec.to_dict())
    there = {"boot_id": "of the submit host", "submitted_uptime": 1e9, "launcher": "slurm"}
    write_json(
        job.dir / "status.json", {"schema": SCHEMA, "id": job.id, "version": 3, "state": "submitted", **there}
    )
    return job


def bring_in(shared: Job, node: Host) -> Job:
    account = node.caller()
    local = node_job.bring_in(shared, node, account, shared.status(), shared.log)
    workspace_copy.wait(local, lambda: None)
    return local


def test_job_that_comes_in_is_not_taken_for_one_whose_worker_died(node: Host, shared: Job) -> None:
    """Each job of the account that ends on this node finishes those without a worker."""
    local = bring_in(shared, node)
    recover.finish_dead_jobs(Store.of(local.dir), node)
    assert local.result() is None and local.status()["state"] == "pushed"


def test_job_that_cannot_begin_leaves_nothing_on_the_node(
    node: Host, shared: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its secrets are there, and the copy of its workspace goes on."""
    account = node.caller()
    store_secrets(shared, account, {"TOKEN": "s3cret"}, in_memory=False)
    local = node_job.bring_in(shared, node, account, shared.status(), shared.log)
    stored = take_secrets(local, keep=True)
    assert stored == {"TOKEN": "s3cret"}
    # A node without slurmd cannot say which card is the first one.
    for name, value in {"PATH": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotReady, match="slurmd does not list"):
        node_job.take_allocation(shared, local, node, account, [])
    assert not local.dir.exists() and take_secrets(local) == {}
    # Damaged meanwhile.
    shared.log.mkdir()
    with pytest.raises(OSError):
        node_job.bring_in(shared, node, account, shared.status(), shared.log)
    assert not local.dir.exists()


def test_engine_reaches_checkpoints_by_a_descriptor(shared: Job) -> None:
    shared.checkpoints.mkdir()
    source = node_job.open_for_engine(shared.checkpoints)
    shared.dir.rename(shared.dir.with_name("moved"))
    (source / "epoch").touch()
    assert (shared.dir.with_name("moved") / "checkpoints" / "epoch").exists()


def test_earlier_start_that_still_runs_is_not_disturbed(node: Host, shared: Job) -> None:
    local = bring_in(shared, node)
    with locks.hold(local.lock), pytest.raises(NotReady, match="earlier start still runs"):
        bring_in(shared, node)
    assert local.status()["state"] == "pushed"
