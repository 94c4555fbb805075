"""Files that somebody else may have replaced are read without an effect on anything else."""

import os
import threading
from pathlib import Path

import pytest

from train_classifier.core import regular_file


def test_fifo_behind_a_link_is_not_opened(tmp_path: Path) -> None:
    """Its writer would go on, as a device may begin its work: /dev/watchdog reboots the machine."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    only_handles: list[bool] = []
    os_open = os.open

    def record(path: str, flags: int, *more: int) -> int:
        only_handles.append(bool(flags & os.O_PATH))
        return os_open(path, flags, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", record)
        for pipe in (False, True):
            with pytest.raises(ValueError, match="not a regular file"):
                regular_file.read(tmp_path / "link", 10, pipe=pipe, within=str(tmp_path))
    assert only_handles == [True, True]


def test_pipe_of_a_shell_is_read_to_its_end() -> None:
    source, target = os.pipe()
    writer = threading.Timer(0.1, lambda: (os.write(target, b"A=1"), os.close(target)))
    writer.start()
    assert regular_file.read(f"/dev/fd/{source}", 10, pipe=True) == b"A=1"
    os.close(source)


def test_file_behind_a_link_is_read_within_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "inside" / "file").write_text("x")
    (tmp_path / "inside" / "link").symlink_to("file")
    (tmp_path / "inside" / "out").symlink_to("../file")
    within = str(tmp_path / "inside")
    assert regular_file.read(tmp_path / "inside" / "link", 1, within=within) == b"x"
    with pytest.raises(ValueError, match="out of the repository"):
        regular_file.read(tmp_path / "inside" / "out", 1, within=within)
    with pytest.raises(ValueError, match="is over"):
        regular_file.read(tmp_path / "inside" / "link", 0, within=within)
