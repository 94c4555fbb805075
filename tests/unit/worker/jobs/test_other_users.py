"""The jobs of other users in `list`: from tickets and labels, which anybody who may use Docker can write."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train_classifier.core.errors import NotReady
from train_classifier.worker.containers import engine
from train_classifier.worker.gpus import gpu_queue
from train_classifier.worker.jobs import other_users, query
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Host

FIRST, SECOND, THIRD = "20260101-000000-00000001", "20260102-000000-00000002", "20260103-000000-00000003"
USER = pwd.getpwuid(os.geteuid()).pw_name


def enqueue(folder: Path, job: str) -> Path:
    return gpu_queue.enqueue(
        folder, job=job, model="mnist", directory=Path("/jobs") / job, want=1, min_vram_mib=None
    )


def container(job: str, kind: str = "job", uid: str = "0", gpus: str = "") -> SimpleNamespace:
    labels = {"job": job, "kind": kind, "uid": uid, "gpus": gpus}
    return SimpleNamespace(
        attrs={"Labels": {f"{engine.LABEL}.{name}": value for name, value in labels.items()}}
    )


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What the engine says that it runs."""
    containers: list[SimpleNamespace] = []
    client = SimpleNamespace(containers=SimpleNamespace(list=lambda **_: containers))
    monkeypatch.setattr(engine, "connect", lambda: client)
    return containers


def listed(folder: Path, own: set[str] | None = None) -> list[tuple[Any, ...]]:
    jobs = other_users.list_jobs(Host(queue_dir=folder), own or set())
    return [
        (job["id"], job["state"], job["phase"], job["model"], job["submitter"], job["gpus"]) for job in jobs
    ]


def test_tickets_and_containers_make_one_list(tmp_path: Path, running: list[SimpleNamespace]) -> None:
    for job in (FIRST, SECOND):
        enqueue(tmp_path, job)
    ticket = gpu_queue.Ticket.claim(tmp_path, SECOND)
    running += [
        container(SECOND, gpus="GPU-1"),
        container(THIRD, uid="65534", gpus="GPU-2"),
        container(THIRD, kind="build"),
    ]
    assert listed(tmp_path) == [
        (FIRST, "submitted", None, "mnist", USER, []),
        (SECOND, "running", "training", "mnist", USER, []),
        (THIRD, "running", "training", None, pwd.getpwuid(65534).pw_name, ["GPU-2"]),
    ]  # fmt: skip
    assert [entry[0] for entry in listed(tmp_path, own={SECOND})] == [FIRST, THIRD]
    ticket.release()
    answer = query.list_jobs({"all_users": True}, Host(queue_dir=tmp_path), Store(tmp_path / "state"))
    assert [entry["id"] for entry in answer["jobs"]] == [FIRST, SECOND, THIRD]
    assert query.list_jobs({}, Host(queue_dir=tmp_path), Store(tmp_path / "state")) == {"jobs": []}


def test_only_the_form_of_a_job_is_shown(
    tmp_path: Path, running: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    running += [container(name) for name in ("", "\x1b[31m", "../x", FIRST + "\n", "last")]
    running += [
        container(FIRST, kind="\x1b", uid="9" * 40, gpus=f"\x1b[2J,GPU-1,{'x' * 129}"),
        SimpleNamespace(attrs={}),
    ]
    path = enqueue(tmp_path, SECOND)
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "\x1b[31m"}))
    assert listed(tmp_path) == [(FIRST, "running", None, None, None, ["GPU-1"])]
    monkeypatch.setattr(other_users, "MOST_JOBS", 3)
    running += [container(f"20260101-000000-{number:08x}") for number in range(100)]
    assert len(listed(tmp_path)) <= 3


def test_one_source_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotReady("the Docker engine does not answer")

    monkeypatch.setattr(engine, "connect", refuse)
    enqueue(tmp_path, FIRST)
    assert [entry[0] for entry in listed(tmp_path)] == [FIRST]
    with pytest.raises(NotReady, match="the queue's folder"):
        listed(tmp_path / "missing")
