"""The worker's own program."""

import os
import subprocess
import sys
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


@pytest.mark.parametrize("command", ["part", "version"])
def test_program_chooses_its_umask(command: str) -> None:
    """Containers and other accounts read what it makes, also where an account's umask is 077."""
    code = (
        "import os, sys; from train_classifier.worker.__main__ import main; main(); print(oct(os.umask(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        umask=0o077,
    )
    assert done.stdout.splitlines()[-1] == "0o22", done
