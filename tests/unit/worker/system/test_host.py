"""Settings and limits of the host."""

import os
from pathlib import Path

import pytest

from train_classifier.core.errors import BadInput, NotReady
from train_classifier.worker.system.host import Host, file_system


def test_wrong_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "host.json"
    monkeypatch.setenv("TRAIN_CLASSIFIER_HOST_JSON", str(path))
    assert Host.load() == Host()
    path.write_text('{"schema": 1, "uv": "/x", "unknown": 1, "state_dir": "/scratch/{user}/tc"}')
    host = Host.load()
    assert host.uv == Path("/x") and host.state_dir({}) == Path(f"/scratch/{host.caller().name}/tc")
    for wrong in (
        "{",
        "[]",
        '{"schema": 2}',
        '{"uv": 5}',
        '{"images": {"cpu": 1}}',
        '{"disk_floor_bytes": true}',
        '{"build_pids": 1}',
        '{"build_cpus": "2"}',
        '{"build_timeout_s": NaN}',
        '{"build_memory_bytes": 1' + "0" * 30 + "}",
        '{"engine": "podman"}',
        '{"engine": "slurm"}',
        '{"engine": "slurm", "slurm_shared_dir": "here"}',
        '{"slurm_node": 1, "slurm_shared_dir": "/srv"}',
    ):
        path.write_text(wrong)
        with pytest.raises(NotReady, match=r"host\.json"):
            Host.load()
    assert file_system(Path("/proc/self")) == "proc"
    with pytest.raises(BadInput):
        host.state_dir({"state_dir": "relative"})


def test_limits_are_configured_or_what_the_host_can_give() -> None:
    limits = Host().limits("a build")
    assert limits.memory_bytes >= 2 << 30 and limits.cpus == os.cpu_count() and limits.pids == 4096
    limits = Host(build_memory_bytes=1 << 30, build_cpus=0.5, build_pids=9, build_timeout_s=7).limits(
        "a build"
    )
    assert (limits.memory_bytes, limits.cpus, limits.pids, limits.timeout_s) == (1 << 30, 0.5, 9, 7)
    assert Host(build_cpus=100_000).limits("a build").cpus == os.cpu_count()
