"""Locks end with their holder, and are for the file that has the name now."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train_classifier.core import locks

HOLD = """
import sys, time
from pathlib import Path
from train_classifier.core import locks
with locks.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert locks.is_held(path)
        with locks.hold_now(path) as is_locked:
            assert not is_locked
        with pytest.raises(TimeoutError), locks.hold(path, timeout=0.3):
            raise AssertionError("never held")
        holder.kill()
    assert not locks.is_held(path)
    with locks.hold_now(path) as is_locked:
        assert is_locked and locks.is_held(path)


def test_lock_on_removed_file_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.hold(path):
        path.unlink()
        with locks.hold(path, timeout=1) as descriptor:
            assert os.fstat(descriptor).st_ino == path.stat().st_ino
