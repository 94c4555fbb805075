"""ansible-runner's events, realistic and malformed, and what Ansible gets of the caller's environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train_classifier.ansible_bridge import content, playbook
from train_classifier.controller.temp_files import private_folder


def test_content_is_found() -> None:
    root = content.root()
    assert (root / "playbooks" / "train.yml").is_file()
    assert (root / "plugins" / "action" / "training_fetch.py").is_file()


def test_first_failure_is_the_reason_and_no_event_file_is_written() -> None:
    reasons = playbook.Reasons()
    first = {"event": "runner_on_failed", "event_data": {"res": {"msg": "\x1b[0;31mno such thing\x1b[0m"}}}
    assert reasons(first) is False
    assert reasons({"event": "runner_on_failed", "event_data": {"res": {"msg": "later"}}}) is False
    assert reasons.text() == "no such thing"
    assert not reasons.unreachable


def test_unreachable_host_is_recognised() -> None:
    reasons = playbook.Reasons()
    reasons({"event": "runner_on_unreachable", "event_data": {"res": {"msg": "no route"}}})
    assert reasons.unreachable and reasons.text() == "no route"


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": None},
        {"event": "runner_on_failed"},
        {"event": "runner_on_failed", "event_data": None},
        {"event": "runner_on_failed", "event_data": {"res": "text"}},
        {"event": "verbose", "stdout": None},
        {"event": "EOF"},
    ],
)
def test_malformed_events_are_ignored(event: dict[str, Any]) -> None:
    reasons = playbook.Reasons()
    assert reasons(event) is False
    assert reasons.text() is None


def test_output_outside_tasks_is_the_reason_if_no_task_failed() -> None:
    reasons = playbook.Reasons()
    for number in range(100):
        reasons({"event": "verbose", "stdout": f"line {number}"})
    assert (reasons.text() or "").splitlines()[-1] == "line 99"
    assert len((reasons.text() or "").splitlines()) <= 30


def test_failed_playbook_has_the_message_of_ansible_and_no_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VERY_PRIVATE", "hunter2-very-rare")
    with private_folder() as folder:
        private = folder / "ansible"
        private.mkdir()
        outcome = playbook.run(
            "train.yml",
            private,
            inventory="no-such-host,",
            limit="another",
            variables={"training_job_host": "all"},
        )
        assert outcome.status != 0
        assert "limit" in (outcome.reason or "")
        for path in private.rglob("*"):
            assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    assert not Path(folder).exists()


def test_playbook_that_is_not_wanted_any_more_ends_as_it_starts(tmp_path: Path) -> None:
    outcome = playbook.run("train.yml", tmp_path, inventory="localhost,", cancelled=lambda: True)
    assert outcome.status == 128 + 9


def test_missing_ansible_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playbook.sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = playbook.run("train.yml", tmp_path, inventory="localhost,")
    assert outcome.status == 127
    assert "ansible-playbook cannot be started" in (outcome.reason or "")
