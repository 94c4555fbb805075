"""Results that are too large to be packed, on their way from a node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.job import SCHEMA, new_job_id
from train_classifier.worker.slurm import shared_folder
from train_classifier.worker.slurm_node import unpacked_results
from train_classifier.worker.slurm_node.publisher import Publisher
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import write_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Host

HOST = Host(disk_floor_bytes=0)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    name = new_job_id()
    local, shared = (Job(tmp_path / place / name) for place in ("local", "shared"))
    for job in (local, shared):
        job.workspace.mkdir(parents=True)
        write_json(job.dir / "status.json", {"schema": SCHEMA, "id": name, "version": 3, "state": "running"})
    (local.workspace / "large").write_bytes(b"x" * 5000)
    (shared.workspace / "model.py").touch()
    return Publisher(local, shared, {})


def bring(publisher: Publisher, host: Host = HOST) -> str | None:
    return unpacked_results.bring(publisher.local, publisher.shared, host.caller(), host, publisher)


def test_results_replace_the_sources(publisher: Publisher) -> None:
    assert bring(publisher) is None
    assert os.listdir(publisher.shared.workspace) == ["large"]


def test_results_without_room_stay_on_the_node(publisher: Publisher) -> None:
    why = bring(publisher, Host(disk_floor_bytes=1 << 60))
    assert why is not None and "the shared folder has room for 0" in why
    assert os.listdir(publisher.shared.workspace) == [] and (publisher.local.workspace / "large").exists()
    result = {"reason": "too much", "hint": None, "unpacked": {"why": "too-large"}}
    left = unpacked_results.left_on_node(result, publisher.local.workspace, "gpu-1", why)
    assert "unpacked" not in left and f"stay on gpu-1, in {publisher.local.workspace}" in left["reason"]


def test_cancel_ends_the_copy(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as a disk, it holds the job's cards for as long as it takes."""

    def copy(*trees: Any) -> None:
        shared_folder.ask_to_stop(publisher.shared, "me")
        publisher._next_look = float("-inf")
        trees[-1]()
        raise AssertionError("the copy goes on")

    monkeypatch.setattr(file_trees, "copy", copy)
    assert bring(publisher) == "the job was asked to end"
    assert os.listdir(publisher.shared.workspace) == []
