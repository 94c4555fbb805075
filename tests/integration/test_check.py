"""The host check on this machine: a real engine, a stand-in nvidia-smi, and every refusal of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import pytest
from queue_site import UUIDS, QueueSite

from train_classifier.core.errors import BadInput
from train_classifier.worker.checks import host_check
from train_classifier.worker.gpus import gpu_queue
from train_classifier.worker.system.host import Host

pytestmark = pytest.mark.engine


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a state folder and no GPU."""
    return Host(
        service_user="nobody",
        root=tmp_path / "root",
        configured_state_dir=str(tmp_path / "state"),
        queue_dir=tmp_path / "no-queue",
        nvidia_smi="/nowhere/nvidia-smi",
        disk_floor_bytes=1,
    )


def run_check(host: Host, **request: Any) -> dict[str, dict[str, Any]]:
    answer = host_check.check(host, {"state_dir": host.configured_state_dir, **request})
    assert answer["ready"] is all(check["status"] != "fail" for check in answer["checks"])
    json.dumps(answer)
    return {check["name"]: check for check in answer["checks"]}


def failures(checks: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {name: check["code"] for name, check in checks.items() if check["status"] == "fail"}


def test_host_without_gpu_is_ready_for_cpu_jobs(engine: docker.DockerClient, host: Host) -> None:
    answer = host_check.check(host, {"gpus": 0, "state_dir": host.configured_state_dir})
    assert answer["ready"], answer["checks"]
    assert answer["engine"]["version"] == engine.version()["Version"]
    assert answer["host"]["cpus"] >= 1
    assert answer["gpus"] == []
    assert {
        "python",
        "docker-sdk",
        "engine",
        "rsync",
        "uv",
        "state-folder",
        "disk",
        "clock",
        "drain",
        "gpu",
    } <= {check["name"] for check in answer["checks"]}


def test_missing_gpu_is_exit_8_and_auto_uses_cpu(engine: docker.DockerClient, host: Host) -> None:
    checks = run_check(host, gpus=1)
    assert failures(checks) == {"gpu": 8}
    assert "--gpus 0" in checks["gpu"]["hint"]
    checks = run_check(host, gpus="auto")
    assert failures(checks) == {}
    assert checks["gpu"]["status"] == "warn"
    assert "training on the CPU" in checks["gpu"]["message"]


def test_too_many_gpus_and_too_little_memory_fail(
    engine: docker.DockerClient, host: Host, tmp_path: Path
) -> None:
    site = QueueSite(tmp_path)
    host = dataclasses.replace(host, nvidia_smi=str(site.smi), queue_dir=site.folder)
    checks = run_check(host, gpus=3)
    assert checks["gpu"]["message"] == "3 GPUs are asked for, this host has 2 GPUs"
    checks = run_check(host, gpus=1, min_vram_mib=50000)
    assert "at least 50000 MiB" in checks["gpu-memory"]["message"]
    # The engine here knows nothing of GPUs.
    assert failures(checks).get("gpu-containers") == 8


def test_missing_queue_is_exit_3_and_is_reported_first(
    engine: docker.DockerClient, host: Host, tmp_path: Path
) -> None:
    site = QueueSite(tmp_path)
    checks = run_check(dataclasses.replace(host, nvidia_smi=str(site.smi)), gpus=1)
    assert failures(checks)["queue"] == 3
    assert next(iter(failures(checks).items())) == ("queue", 3)
    assert "training_host" in checks["queue"]["hint"]


def test_check_names_the_user_of_each_gpu(engine: docker.DockerClient, host: Host, tmp_path: Path) -> None:
    site = QueueSite(tmp_path)
    (tmp_path / "apps").write_text(f"{UUIDS[1]}, {os.getpid()}, /usr/bin/blender, 200\n")
    host = dataclasses.replace(host, nvidia_smi=str(site.smi), queue_dir=site.folder)
    site.enqueue("a")
    ticket = gpu_queue.Ticket.claim(site.folder, "a")
    ticket.wait(engine, site.host, None, print, lambda: None)
    answer = host_check.check(host, {"gpus": 1, "state_dir": host.configured_state_dir})
    ticket.release()
    assert answer["gpus"][0]["busy_by"].startswith("job a (mnist) of ")
    assert "blender" in answer["gpus"][1]["busy_by"]
    messages = [check["message"] for check in answer["checks"] if check["name"] == "gpu-users"]
    assert len(messages) == 1
    assert "which is no job of train-classifier" in messages[0]


def test_drained_host_is_not_ready(engine: docker.DockerClient, host: Host) -> None:
    marker = host.root / "var/lib/train-classifier/drain"
    marker.parent.mkdir(parents=True)
    marker.write_text("new power supply on Friday\n")
    checks = run_check(host, gpus=0)
    assert failures(checks) == {"drain": 3}
    assert "new power supply on Friday" in checks["drain"]["message"]


def test_full_disk_is_not_ready(engine: docker.DockerClient, host: Host) -> None:
    checks = run_check(dataclasses.replace(host, disk_floor_bytes=1 << 60), gpus=0)
    assert failures(checks)["disk"] == 3
    assert "train-classifier clean" in checks["disk"]["hint"]


def test_unusable_state_folder_is_reported(engine: docker.DockerClient, host: Host) -> None:
    checks = run_check(dataclasses.replace(host, service_user="no-such-account"), gpus=0)
    if os.geteuid() == 0:
        assert failures(checks)["state-folder"] == 3
    checks = {check["name"]: check for check in host_check.check(host, {"state_dir": "relative"})["checks"]}
    assert failures(checks)["state-folder"] == 2


def test_missing_engine_is_reported(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    checks = run_check(host, gpus=0)
    assert failures(checks) == {"engine": 3}
    assert "is missing" in checks["engine"]["message"]


def test_missing_docker_permission_is_reported(engine: docker.DockerClient, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to act as another user")
    program = (
        "import json; from train_classifier.worker.checks import engine_check\n"
        "print(json.dumps([one.to_dict() for one in engine_check.check()[1]]))"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program], cwd=Path(__file__).parents[2], user=65534, group=65534, extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    checks = json.loads(done.stdout)
    assert [(check["status"], check["code"]) for check in checks] == [("fail", 3)]
    assert "may not use Docker" in checks[0]["message"]
    assert "training_host_users" in checks[0]["hint"]


def test_check_does_not_import_docker_sdk(engine: docker.DockerClient, host: Host) -> None:
    # Importing it would take most of the time of each job's preflight.
    program = (
        "import sys; from pathlib import Path; from train_classifier.worker.checks import host_check; "
        "from train_classifier.worker.system.host import Host\n"
        f"host = Host(service_user='nobody', nvidia_smi='/nowhere', configured_state_dir='{host.configured_state_dir}')\n"
        "host_check.check(host, {'gpus': 'auto'}); print('docker' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_wrong_requests_are_refused() -> None:
    for request in ({"gpus": "two"}, {"gpus": -1}, {"gpus": True}, {"gpus": 1, "min_vram_mib": "8"}):
        with pytest.raises(BadInput):
            host_check.check(Host(), request)


def test_deep_check_runs_a_container(engine: docker.DockerClient, base_image: str, host: Host) -> None:
    checks = run_check(host, gpus=0, deep=True, image=base_image)
    assert checks["image"]["status"] == "ok"
    assert "Python 3" in checks["image"]["message"]
    checks = run_check(host, gpus=0, deep=True, image="localhost:9/nobody/nothing:1")
    assert checks["image"]["status"] == "warn"
