"""The rules of the GPU queue that need no engine: numbers, tickets as files."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from train_classifier.core.errors import NotReady
from train_classifier.worker.gpus import gpu_queue, tickets


def enqueue(folder: Path, job: str) -> Path:
    return gpu_queue.enqueue(
        folder, job=job, model="mnist", directory=Path("/jobs") / job, want=1, min_vram_mib=None
    )


def test_numbers_go_up_and_files_are_open_to_the_group(tmp_path: Path) -> None:
    paths = [enqueue(tmp_path, job) for job in "ab"]
    paths[1].unlink()
    paths.append(enqueue(tmp_path, "c"))
    assert [path.name for path in paths] == [
        "000000000001-a.json",
        "000000000002-b.json",
        "000000000003-c.json",
    ]
    for name in ("lock", "counter", "000000000001-a.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o660


def test_a_ticket_holds_what_the_contract_says(tmp_path: Path) -> None:
    data = json.loads(enqueue(tmp_path, "a").read_text())
    assert {"job", "uid", "user", "dir", "want", "min_vram_mib", "state", "gpus", "since"} <= set(data)
    assert (data["state"], data["gpus"], data["dir"]) == ("new", [], "/jobs/a")


def test_claim_once(tmp_path: Path) -> None:
    enqueue(tmp_path, "a")
    ticket = gpu_queue.Ticket.claim(tmp_path, "a")
    assert ticket.entry.state == "preparing"
    with pytest.raises(NotReady, match="held by another process"):
        gpu_queue.Ticket.claim(tmp_path, "a")
    # A held ticket is not removed.
    gpu_queue.remove_ticket(tmp_path, "a")
    assert [entry.job for entry in gpu_queue.snapshot(tmp_path)] == ["a"]
    ticket.release()
    with pytest.raises(NotReady, match="lost its place"):
        gpu_queue.Ticket.claim(tmp_path, "a")


def test_a_ticket_of_an_earlier_boot_is_dead(tmp_path: Path) -> None:
    path = enqueue(tmp_path, "a")
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "boot": "00000000-0000-0000-0000-000000000000"}))
    assert gpu_queue.snapshot(tmp_path) == []


def test_a_jump_of_the_clock_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue(tmp_path, "a")
    monkeypatch.setattr(tickets.time, "time", lambda: 1e10)
    assert [entry.job for entry in gpu_queue.snapshot(tmp_path)] == ["a"]
