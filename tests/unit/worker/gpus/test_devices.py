"""The answers of nvidia-smi, the GPUs of containers, and the findings of the host check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.errors import NoGpu
from train_classifier.worker.checks import engine_check, gpu_check
from train_classifier.worker.gpus import cdi, devices
from train_classifier.worker.gpus.devices import Gpu
from train_classifier.worker.system.host import Host

UUID = "GPU-5f9d8a3e-1c2b-4d5e-8f70-0000000000{:02d}"
GOOD = f"0, {UUID.format(0)}, NVIDIA L4, 23034, 22000, 550.163.01, [N/A]\n"


def smi(tmp_path: Path, output: str, status: int = 0, apps: str = "") -> Host:
    tool = tmp_path / "nvidia-smi"
    (tmp_path / "gpus").write_text(output)
    (tmp_path / "apps").write_text(apps)
    tool.write_text(
        f"#!/bin/sh\ncase $1 in --query-gpu=*) cat {tmp_path}/gpus; exit {status};; *) cat {tmp_path}/apps;; esac\n"
    )
    tool.chmod(0o755)
    return Host(nvidia_smi=str(tool), root=tmp_path / "root")


def card(index: int = 0, total: int | None = 24564, free: int | None = 24000) -> Gpu:
    return Gpu(index, UUID.format(index), "NVIDIA L4", total, free, "550.163.01")


def test_cards_and_their_users(tmp_path: Path) -> None:
    second = f"1, {UUID.format(1)}, NVIDIA A100-SXM4-40GB, 40960, 100, 550.163.01, Enabled\n"
    apps = f"{UUID.format(1)}, 1, /usr/bin/python3, 40000\n{UUID.format(1)}, 2, [Not Found], [N/A]\n"
    discovery = devices.discover(smi(tmp_path, GOOD + second, apps=apps))
    assert discovery.problem is None
    assert [(one.index, one.memory_total_mib, one.mig) for one in discovery.gpus] == [
        (0, 23034, False),
        (1, 40960, True),
    ]
    assert [process.memory_mib for process in discovery.gpus[1].busy_by] == [40000, None]
    assert "/usr/bin/python3 (pid 1, root)" in devices.show_users(discovery.gpus[1])


def test_use_of_a_jobs_cards_is_described_without_names_of_processes(tmp_path: Path) -> None:
    second = f"1, {UUID.format(1)}, NVIDIA H200, 143771, 101670, 580.159.04, Disabled\n"
    host = smi(tmp_path, GOOD + second, apps=f"{UUID.format(1)}, 1, ;sudo sh, 41478\n")
    assert devices.describe_use(host, [UUID.format(0)]) == (
        "GPU 0 (NVIDIA L4) has 23034 MiB of memory, and nobody else uses it"
    )
    assert devices.describe_use(host, [UUID.format(1)]) == (
        "GPU 1 (NVIDIA H200) has 143771 MiB of memory, and it is also used by a process (pid 1, root) with 41478 MiB"
    )
    assert devices.describe_use(Host(nvidia_smi="/nowhere"), [UUID.format(0)]) == ""


@pytest.mark.parametrize("missing", ["[N/A]", "[Not Supported]", "[Unknown Error]", ""])
def test_unknown_memory(tmp_path: Path, missing: str) -> None:
    line = f"0, {UUID.format(0)}, NVIDIA GB10, {missing}, {missing}, 580.95, [N/A]\n"
    discovery = devices.discover(smi(tmp_path, line))
    assert discovery.gpus[0].memory_total_mib is None
    assert "does not report its memory" in devices.require_vram(1, discovery, 16000)[0]


def test_an_error_line_among_good_cards(tmp_path: Path) -> None:
    lost = "Unable to determine the device handle for GPU 0000:02:00.0: Unknown Error\n"
    assert [one.index for one in devices.discover(smi(tmp_path, lost + GOOD)).gpus] == [0]


@pytest.mark.parametrize(
    ("output", "status", "problem"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, "version mismatch"),
        ("No devices were found\n", 6, "finds no GPU"),
        ("Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.", 15, "a GPU is lost"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, "is not loaded"),
        ("", 255, "printed nothing"),
        ("", 0, "finds no GPU"),
    ],
)
def test_failures_each_in_its_words(tmp_path: Path, output: str, status: int, problem: str) -> None:
    discovery = devices.discover(smi(tmp_path, output, status))
    assert discovery.gpus == ()
    assert problem in (discovery.problem or "")
    assert discovery.hint


def test_no_nvidia_smi() -> None:
    assert "no nvidia-smi" in (devices.discover(Host(nvidia_smi="/nowhere/nvidia-smi")).problem or "")


def test_a_hanging_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = smi(tmp_path, "")
    Path(host.nvidia_smi).write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(devices, "TIMEOUT_S", 0.2)
    assert "did not answer" in (devices.discover(host).problem or "")


def test_number_of_gpus(tmp_path: Path) -> None:
    one = devices.discover(smi(tmp_path, GOOD))
    none = devices.discover(Host(nvidia_smi="/nowhere/nvidia-smi"))
    assert devices.gpu_count(1, one) == (1, None)
    assert devices.gpu_count("auto", one) == (1, None)
    assert devices.gpu_count(0, none) == (0, None)
    count, message = devices.gpu_count("auto", none)
    assert count == 0
    assert "training on the CPU" in (message or "")
    with pytest.raises(NoGpu, match="2 GPUs are asked for, this host has 1 GPU"):
        devices.gpu_count(2, one)
    with pytest.raises(NoGpu, match="there is no nvidia-smi"):
        devices.gpu_count(1, none)


def test_memory_floor() -> None:
    # A GTX 970, sold as 4 GB.
    small = devices.Discovery((card(total=4041),))
    assert devices.require_vram(1, small, None) == []
    with pytest.raises(NoGpu, match="at least 8192 MiB asked for: GPU 0"):
        devices.require_vram(1, small, 8192)
    with pytest.raises(NoGpu, match="default floor"):
        devices.require_vram(1, devices.Discovery((card(total=3900),)), None)
    assert devices.free_enough(card(free=100), None)
    assert not devices.free_enough(card(free=100), 200)
    assert devices.free_enough(card(free=None), 200)


def test_memory_that_something_else_holds() -> None:
    busy = devices.Discovery((card(), card(1, free=300)))
    devices.require_free(1, busy, 4000)
    with pytest.raises(NoGpu, match=r"^GPU 1 \(NVIDIA L4\) has 300 of 24564 MiB free; wanted 4000 MiB"):
        devices.require_free(2, busy, 4000)
    # A job uses its own card; a card with unknown memory is accepted.
    devices.require_free(2, busy, 4000, {UUID.format(1)})
    devices.require_free(2, devices.Discovery((card(), card(1, free=None))), 4000)
    # A GTX 970 never has the 4000 MiB of the default floor free.
    devices.require_free(1, devices.Discovery((card(total=4041, free=3960),)), 4000)
    with pytest.raises(NoGpu):
        devices.require_free(1, devices.Discovery((card(total=4041, free=2000),)), None)


@pytest.mark.parametrize(
    ("job_cards", "outcome"),
    [(None, "ok"), ((), "fail"), ((UUID.format(0),), "ok")],
    ids=["job", "proof", "busy"],
)
def test_only_doctor_checks_who_uses_the_memory(
    tmp_path: Path, job_cards: tuple[str, ...] | None, outcome: str
) -> None:
    host = smi(tmp_path, f"0, {UUID.format(0)}, NVIDIA L4, 23034, 200, 550.163.01, [N/A]\n")
    findings = gpu_check.check(host, 1, 4000, None, devices.discover(host), job_cards)
    [memory] = [one for one in findings if one.name == "gpu-memory"]
    assert memory.status == outcome
    assert "200" in memory.message


class Engine:
    """An engine's /info: the one thing that device_options reads."""

    def __init__(self, **info: Any) -> None:
        self._info = info

    def info(self) -> dict[str, Any]:
        return self._info


YAML = f"""---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
    mounts:
    - name: not-a-device
  name: {UUID.format(1)}
- name: all
"""


def specification(tmp_path: Path, name: str, text: str) -> Engine:
    folder = tmp_path / "root" / "var" / "run" / "cdi"
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    return Engine(ServerVersion="26.1.5", CDISpecDirs=["/etc/cdi", "/var/run/cdi"])


def test_cdi_by_uuid_else_by_index(tmp_path: Path) -> None:
    engine = specification(tmp_path, "nvidia.yaml", YAML)
    options = devices.device_options(engine, [card(0), card(1)], tmp_path / "root")
    request = options["device_requests"][0]
    assert request["Driver"] == "cdi"
    assert request["DeviceIDs"] == ["nvidia.com/gpu=0", f"nvidia.com/gpu={UUID.format(1)}"]
    assert "devices" not in options
    with pytest.raises(NoGpu, match="names GPU 3"):
        devices.device_options(engine, [card(3)], tmp_path / "root")


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("a.yaml", YAML, {"0", UUID.format(1), "all"}),
        ("a.json", '{"kind": "nvidia.com/gpu", "devices": [{"name": "0"}]}', {"0"}),
        ("a.yaml", '{"kind": "nvidia.com/gpu", "devices": [{"name": "0"}]}', {"0"}),
        ("a.json", '{"kind": "other.org/nic", "devices": [{"name": "0"}]}', set()),
        ("a.json", "{", set()),
        ("a.txt", YAML, set()),
    ],
)
def test_names_in_specifications(tmp_path: Path, name: str, text: str, names: set[str]) -> None:
    (tmp_path / name).write_text(text)
    assert cdi.gpu_names([str(tmp_path), "/nowhere"]) == names


def test_old_engine_gets_the_device_nodes_too(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    information = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text(f"Model: NVIDIA L4\nGPU UUID: \t {UUID.format(1)}\nDevice Minor: \t 3\n")
    engine = Engine(ServerVersion="20.10.24+dfsg1", Runtimes={"runc": {}, "nvidia": {}})
    options = devices.device_options(engine, [card(1)], tmp_path)
    assert options["device_requests"][0]["DeviceIDs"] == [UUID.format(1)]
    assert options["devices"] == [f"/dev/{n}:/dev/{n}:rw" for n in ("nvidia3", "nvidiactl", "nvidia-uvm")]
    newer = Engine(ServerVersion="25.0.1", Runtimes={"nvidia": {}})
    assert "devices" not in devices.device_options(newer, [card(1)], tmp_path)


def test_an_engine_without_any_way(tmp_path: Path) -> None:
    with pytest.raises(NoGpu) as raised:
        devices.device_options(Engine(ServerVersion="20.10.24", Runtimes={"runc": {}}), [card()], tmp_path)
    assert "nvidia_container_toolkit" in (raised.value.hint or "")


def pci(root: Path, vendor: str = "0x10de", kind: str = "0x030000") -> None:
    device = root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")


def modinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    tool = tmp_path / "bin" / "modinfo"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho {version}\n" if version else "#!/bin/sh\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")


def load(root: Path, version: str) -> None:
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Wed May  8 05:51:40 UTC 2026\nGCC version:  gcc 12\n"
    )


def test_driver_loaded_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    modinfo(tmp_path, monkeypatch, "535.183.01")
    pci(root)
    load(root, "535.183.01")
    assert gpu_check.driver(root).status == "ok"


def test_driver_upgraded_under_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modinfo(tmp_path, monkeypatch, "550.163.01")
    load(tmp_path / "root", "535.183.01")
    finding = gpu_check.driver(tmp_path / "root")
    assert (finding.status, finding.code) == ("fail", 8)
    assert "550.163.01 is installed, but 535.183.01 is loaded" in finding.message
    assert "reboot" in (finding.hint or "")
    # nvidia-smi lists the cards: its libraries fit the module that is loaded.
    assert gpu_check.driver(tmp_path / "root", works=True).status == "warn"


@pytest.mark.parametrize(
    ("nouveau", "secure", "installed", "words"),
    [
        (True, False, None, "driven by nouveau"),
        (False, True, "535.1", "Secure Boot is on"),
        (False, False, "535.1", "installed but not loaded"),
        (False, False, None, "has an NVIDIA card but no driver"),
    ],
)
def test_card_without_driver(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nouveau: bool,
    secure: bool,
    installed: str | None,
    words: str,
) -> None:
    root = tmp_path / "root"
    modinfo(tmp_path, monkeypatch, installed)
    pci(root)
    if nouveau:
        (root / "sys/module/nouveau").mkdir(parents=True)
    variables = root / "sys/firmware/efi/efivars"
    variables.mkdir(parents=True)
    (variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\6\0\0\0" + bytes([secure]))
    finding = gpu_check.driver(root)
    assert (finding.status, finding.code) == ("fail", 8)
    assert words in finding.message


def test_no_card_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modinfo(tmp_path, monkeypatch, None)
    pci(tmp_path / "root", vendor="0x8086")
    assert gpu_check.driver(tmp_path / "root").status == "skip"


def test_faults_in_the_kernel_log(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kmsg").write_text(
        "4,1,1,-;NVRM: Xid (PCI:0000:01:00): 31, pid=12, name=python3, MMU Fault\n"
        "4,2,2,-;NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', GPU has fallen off the bus.\n"
    )
    findings = gpu_check.kernel_faults(tmp_path)
    assert [one.status for one in findings] == ["warn"]
    assert "0000:41:00 reported Xid 79" in findings[0].message


def test_mig_is_reported(tmp_path: Path) -> None:
    line = f"0, {UUID.format(0)}, NVIDIA A100, 40960, 40000, 550.163.01, Enabled\n"
    host = smi(tmp_path, line)
    info = {"ServerVersion": "26.1.5", "Runtimes": {"nvidia": {}}}
    findings = gpu_check.check(host, 1, None, info, devices.discover(host))
    assert ["split by MIG" in one.message for one in findings if one.name == "mig"] == [True]


def test_auto_fails_nothing(tmp_path: Path) -> None:
    host = smi(tmp_path, "Failed to initialize NVML: Driver/library version mismatch\n", 18)
    findings = gpu_check.check(host, "auto", None, {"Runtimes": {}}, devices.discover(host))
    assert {one.status for one in findings} <= {"skip", "warn", "ok"}
    assert any("training on the CPU" in one.message for one in findings)


def test_auto_takes_the_cpu_when_the_engine_cannot_hand_over(tmp_path: Path) -> None:
    host = smi(tmp_path, f"0, {UUID.format(0)}, NVIDIA A100, 40960, 40000, 550.163.01, Disabled\n")
    discovery = devices.discover(host)
    (finding,) = [
        one
        for one in gpu_check.check(host, "auto", None, {"Runtimes": {}}, discovery)
        if one.name == "gpu-containers"
    ]
    assert (finding.status, "training on the CPU" in finding.message) == ("warn", True)
    assert "of at least 50000 MiB" in (gpu_check.obstacle(host, 50000, discovery) or "")


@pytest.mark.parametrize(
    ("info", "server", "words"),
    [
        ({"ServerVersion": "5.4.2"}, "Libpod/5.4.2 (linux)", "podman"),
        (
            {"ServerVersion": "27.2.0", "DockerRootDir": "/var/snap/docker/common/var-lib-docker"},
            "Docker",
            "snap",
        ),
        ({"ServerVersion": "27.2.0", "SecurityOptions": ["name=userns"]}, "Docker", "userns-remap"),
        ({"ServerVersion": "27.2.0", "SecurityOptions": ["name=rootless"]}, "Docker", "rootless"),
        ({"ServerVersion": "19.03.8"}, "Docker", "too old"),
    ],
)
def test_engines_that_cannot_be_used(info: dict[str, Any], server: str, words: str) -> None:
    findings = engine_check._findings(info, server)
    assert [(one.status, one.code) for one in findings] == [("fail", 3)]
    assert words in findings[0].message
    assert findings[0].hint


@pytest.mark.parametrize(
    ("kernel", "options", "found"),
    [
        ("Y\n", ["name=seccomp,profile=default"], ["ok", "warn"]),
        ("Y\n", ["name=apparmor", "name=seccomp,profile=default"], ["ok"]),
        ("N\n", [], ["ok"]),
        (None, None, ["ok"]),
    ],
)
def test_engine_without_the_apparmor_of_its_kernel(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str | None,
    options: list[str] | None,
    found: list[str],
) -> None:
    monkeypatch.setattr(engine_check, "APPARMOR", tmp_path / "enabled")
    if kernel is not None:
        engine_check.APPARMOR.write_text(kernel)
    findings = engine_check._findings({"ServerVersion": "28.1", "SecurityOptions": options}, "Docker")
    assert [one.status for one in findings] == found
