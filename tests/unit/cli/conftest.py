"""Our command on hosts of this machine, whose jobs the tests write by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import json_output
import pytest

from train_classifier.cli import app
from train_classifier.controller.transport import RemoteHost


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """The folder of the hosts' states, each below the host's name."""
    return tmp_path


@pytest.fixture
def command(hosts: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Our command, which finds these hosts in whatever inventory; what it prints is checked as JSON."""

    def run(*words: str, on: Sequence[str | RemoteHost] = ("one",)) -> tuple[int, str, str]:
        connected = [
            host if isinstance(host, RemoteHost) else RemoteHost(host, state_dir=str(hosts / host))
            for host in on
        ]
        monkeypatch.setattr("train_classifier.cli.hosts.hosts", lambda *_: connected)
        capfd.readouterr()
        code = app.run(words)
        out, err = capfd.readouterr()
        json_output.check(words, out)
        return code, out, err

    return run
