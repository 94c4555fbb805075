"""The worker's own program."""

import os
from pathlib import Path

import pytest

from train_classifier.worker.system import program


def test_program_is_opened_while_bytecode_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python writes `submit.cpython-311.pyc.<number>` and renames it: what was listed may be gone."""
    (tmp_path / "__main__.py").touch(0o600)
    (tmp_path / "__pycache__").mkdir(0o700)
    (tmp_path / "__pycache__" / "later.pyc").touch(0o600)
    walk = os.walk

    def as_seen_before_the_rename(top: Path) -> list[tuple[str, list[str], list[str]]]:
        return [(folder, folders, ["gone.pyc.1399", *names]) for folder, folders, names in walk(top)]

    monkeypatch.setattr(program, "PROGRAM", tmp_path)
    monkeypatch.setattr(program.os, "walk", as_seen_before_the_rename)
    program.open_to_all()
    monkeypatch.undo()
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")} == {
        "__main__.py": 0o644, "__pycache__": 0o755, "later.pyc": 0o644,
    }  # fmt: skip
