"""Counters of a control group."""

from pathlib import Path

import pytest

from train_classifier.worker.system import cgroup


@pytest.mark.parametrize(
    ("controller", "name", "content"),
    [
        ("unified", "io.stat", "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=9 dios=0\n7:0 \n253:0 rbytes=4096 wbytes=512\n"),
        ("blkio", "blkio.throttle.io_service_bytes", "8:0 Read 4096\n8:0 Write 512\n8:0 Total 4608\n253:0 Read 4096\nTotal 8704\n"),
    ],
)  # fmt: skip
def test_bytes_of_a_device_on_another_count_once(
    controller: str, name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "8:0" / "slaves").mkdir(parents=True)
    (tmp_path / "253:0" / "slaves" / "sda").mkdir(parents=True)
    monkeypatch.setattr(cgroup, "DEVICES", tmp_path)
    (tmp_path / name).write_text(content)
    group = cgroup.ControlGroup(0)
    group._folders = {controller: tmp_path}
    assert group.disk_bytes() == (4096, 512)
    (tmp_path / name).write_text("8:0 rbytes=x\n8:0 Read x\n")
    assert group.disk_bytes() == (None, None)
    group._folders = {}
    assert group.disk_bytes() == (None, None)
