"""Which launcher is used, and what a unit gets."""

import os
from pathlib import Path

import pytest

from train_classifier.worker.system import launcher


def test_user_manager_without_current_groups_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launcher._manager_has_current_groups(tmp_path)
    manager = tmp_path / "proc" / "77"
    manager.mkdir(parents=True)
    (manager / "comm").write_text("systemd\n")
    groups = " ".join(str(group) for group in os.getgroups())
    (manager / "status").write_text(f"Name:\tsystemd\nGroups:\t{groups} 4711 \n")
    assert launcher._manager_has_current_groups(tmp_path)
    # Added to docker since then.
    now = [*os.getgroups(), 4712]
    monkeypatch.setattr(os, "getgroups", lambda: now)
    assert not launcher._manager_has_current_groups(tmp_path)


def test_unit_gets_address_of_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
    monkeypatch.delenv("TRAIN_CLASSIFIER_HOST_JSON", raising=False)
    assert launcher._passed_variables() == {"DOCKER_HOST": "unix:///run/user/1000/docker.sock"}


def test_start_time_distinguishes_processes() -> None:
    assert launcher.start_time(os.getpid()) == launcher.start_time(os.getpid())
    assert launcher.start_time(1 << 30) is None
