"""The playbook that starts before its request is checked: nothing of it stays, and no host is touched by it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from train_classifier.ansible_bridge import playbook
from train_classifier.cli import training_playbook as playing
from train_classifier.cli.training_playbook import Play, descendants
from train_classifier.controller.temp_files import PREFIX


class Attendant:
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
    while not (found := descendants("ansible-playbook")):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_a_refused_request_leaves_no_playbook_behind(folder: Path) -> None:
    with Play() as play:
        play.foresee({}, None, None, None)
        found = started()
        time.sleep(1)
    assert not [process for process in found if Path(f"/proc/{process}").exists()]
    assert not list(folder.glob(f"{PREFIX}*"))
    assert not list((folder / ".ansible").rglob("ansible-local*"))


def test_steps_wait_until_somebody_attends(folder: Path) -> None:
    (folder / "hosts").write_text("one ansible_connection=local\n")
    attendant = Attendant()
    with Play() as play:
        play.foresee({}, None, "hosts", "one")
        first = started()
        time.sleep(2)
        assert play.inbox.empty()
        # The request meant just this: what runs already is taken.
        play.start(str(folder / "hosts"), "one")
        assert set(first) <= set(descendants("ansible-playbook"))
        play.attend(attendant)
        kind, outcome = play.inbox.get(timeout=240)
    assert kind == "done" and isinstance(outcome, playbook.Outcome) and outcome.status != 0
    assert attendant.asked[0]["host"]["name"] == "one"
    assert not list(folder.glob(f"{PREFIX}*"))


def test_another_host_is_meant_after_all(folder: Path) -> None:
    (folder / "hosts").write_text("one ansible_connection=local\ntwo ansible_connection=local\n")
    attendant = Attendant()
    with Play() as play:
        play.foresee({}, None, "hosts", "one")
        first = started()
        play.start(str(folder / "hosts"), "two")
        assert not set(first) & set(descendants("ansible-playbook"))
        play.attend(attendant)
        play.inbox.get(timeout=240)
    assert [question["host"]["name"] for question in attendant.asked] == ["two"]


@pytest.mark.parametrize(
    ("settings", "inventory", "host"),
    [('[defaults]\nhost = "x"\n', "hosts", None), ("", None, "x"), ("", "missing", None)],
)
def test_what_a_look_cannot_tell_is_not_started(
    folder: Path, settings: str, inventory: str | None, host: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playing.Play, "start", lambda *_: pytest.fail("started"))
    (folder / "hosts").write_text("one\n")
    (folder / "train-classifier.toml").write_text(settings)
    with Play() as play:
        play.foresee(os.environ, str(folder), inventory, host)
