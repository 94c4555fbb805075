"""The training playbook of one run: nothing of it remains, and no host is changed without an order."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import Any

import pytest

from train_classifier.ansible_bridge import playbook
from train_classifier.cli.runs.training_playbook import Play, playbook_processes
from train_classifier.controller.temp_files import PREFIX


class Listener:
    """Takes what the steps say; refuses the order, so that no host is touched."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.events: list[str] = []

    def event(self, event: str, **fields: Any) -> None:
        self.events.append(event)

    def log(self, data: bytes) -> None:
        raise AssertionError("there is no job")

    def answer(self, question: Any) -> Any:
        self.asked.append(question)
        raise ConnectionError("no order")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this test, short enough for a socket."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def started() -> list[int]:
    """Our ansible-playbook, once it is there."""
    until = time.monotonic() + 240
    while not (pids := playbook_processes()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return pids


def test_ended_play_leaves_no_process_and_no_file(folder: Path) -> None:
    play = Play(Listener(), queue.SimpleQueue())
    play.start(None, None)
    processes = started()
    time.sleep(1)
    play.end(5)
    assert not [process for process in processes if Path(f"/proc/{process}").exists()]
    assert not list(folder.glob(f"{PREFIX}*"))
    assert not list((folder / ".ansible").rglob("ansible-local*"))


def test_first_step_asks_for_the_order_of_the_chosen_host(folder: Path) -> None:
    (folder / "hosts").write_text("one ansible_connection=local\ntwo ansible_connection=local\n")
    listener, inbox = Listener(), queue.SimpleQueue[tuple[str, Any]]()
    play = Play(listener, inbox)
    play.start(str(folder / "hosts"), "two")
    kind, outcome = inbox.get(timeout=240)
    play.end(5)
    assert kind == "done" and isinstance(outcome, playbook.Outcome) and outcome.status != 0
    assert [question["host"]["name"] for question in listener.asked] == ["two"]
    assert not list(folder.glob(f"{PREFIX}*"))
