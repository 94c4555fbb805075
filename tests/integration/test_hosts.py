"""The test hosts have the properties that the other tests rely on."""

from __future__ import annotations

import json

import pytest
from hosts.gpu.world import UUIDS, world
from hosts.machine import TestHost

pytestmark = [pytest.mark.engine, pytest.mark.host]


@pytest.mark.parametrize("user", ["root", "trainer"])
def test_ssh_reaches_the_engine(systemd_host: TestHost, user: str) -> None:
    assert systemd_host.ssh("id -un", user=user).stdout.strip() == user
    assert systemd_host.ssh("docker version -f '{{.Server.Version}}'", user=user).stdout.startswith("20.10")


def test_base_image_runs(systemd_host: TestHost, base_image: str) -> None:
    printed = systemd_host.docker(
        "run", "--rm", "--cap-drop", "ALL", base_image, "python3", "-c", "print(6 * 7)"
    )
    assert printed == "42\n"


def test_trainer_has_a_user_manager(systemd_host: TestHost) -> None:
    run = "XDG_RUNTIME_DIR=/run/user/$(id -u) systemd-run --user --wait --pipe --quiet id -un"
    assert systemd_host.ssh(run, user="trainer").stdout.strip() == "trainer"


def test_state_is_not_on_overlay(systemd_host: TestHost) -> None:
    kinds = systemd_host.shell("stat -f -c %T /var/lib/train-classifier /var/lib/docker /home").split()
    assert not {"overlayfs", "nfs"} & set(kinds)


def test_modules_of_ansible_have_their_server(ssh_host: TestHost) -> None:
    ssh_host.shell("test -S /var/cache/ansible-modules/socket")


def test_restart_changes_the_boot_id(systemd_host: TestHost) -> None:
    before = systemd_host.ssh("cat /proc/sys/kernel/random/boot_id").stdout
    systemd_host.reboot(hard=True)
    assert systemd_host.ssh("cat /proc/sys/kernel/random/boot_id", user="trainer").stdout != before
    assert systemd_host.ssh("docker images -q", user="trainer").stdout.strip()


def test_container_gets_only_its_simulated_gpu(gpu_host: TestHost, base_image: str) -> None:
    look = ("sh", "-c", "ls /dev/nvidia*; nvidia-smi -L")
    for index, uuid in enumerate(UUIDS):
        listed = gpu_host.docker("run", "--rm", "--device", f"nvidia.com/gpu={uuid}", base_image, *look)
        assert f"/dev/nvidia{index}\n" in listed
        assert f"/dev/nvidia{1 - index}\n" not in listed
        assert uuid in listed
        assert UUIDS[1 - index] not in listed


def test_nvidia_smi_answers_like_the_real_program(gpu_host: TestHost) -> None:
    query = "nvidia-smi --query-gpu=index,uuid,memory.total --format=csv"
    assert gpu_host.shell(query) == (
        "index, uuid, memory.total [MiB]\n" + "".join(f"{i}, {u}, 24564 MiB\n" for i, u in enumerate(UUIDS))
    )
    mismatch = "Failed to initialize NVML: Driver/library version mismatch"
    gpu_host.write("/etc/simulated-gpus.json", world(fail={"exit": 18, "message": mismatch}))
    try:
        failed = gpu_host.exec("nvidia-smi", check=False)
        assert (failed.returncode, failed.stdout) == (18, mismatch + "\n")
    finally:
        gpu_host.write("/etc/simulated-gpus.json", world())


def test_plain_host_has_no_systemd(plain_host: TestHost) -> None:
    assert plain_host.ssh("ps -p 1 -o comm=").stdout.strip() != "systemd"
    server = json.loads(plain_host.ssh("docker version -f '{{json .Server}}'", user="trainer").stdout)
    assert server["Os"] == "linux"
