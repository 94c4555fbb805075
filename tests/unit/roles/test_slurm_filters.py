"""What a cluster has, as slurm.conf and gres.conf write it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from role_files import ROOT


def _filters(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"filters_{name}", ROOT / f"plugins/filter/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


host_check, slurm_controller, slurm_node = map(_filters, ("host_check", "slurm_controller", "slurm_node"))

HARDWARE = "hardware NodeName=gpu-1 CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=2 RealMemory=64215"
LINES = ["name gpu-1", "address 192.0.2.11", "version slurm-wlm 24.11.5", HARDWARE, "pci 2"]
# The driver's order is not that of the device files.
PROC = ["proc 1, GPU-b, NVIDIA GeForce RTX 3090", "proc 0, GPU-a, NVIDIA H100 80GB HBM3"]
SMI = ["smi 0, GPU-b, NVIDIA GeForce RTX 3090", "smi 1, GPU-a, NVIDIA H100 80GB HBM3"]
SETTINGS: dict[str, Any] = {"address": "", "cpus": 0, "reserved_mib": 2048, "gpus": "auto", "more": {}}


def described(lines: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    return slurm_node.description(LINES + PROC + SMI if lines is None else lines, {**SETTINGS, **settings})


def test_cards_are_counted_as_their_device_files_are() -> None:
    node = described()
    assert node["problem"] == ""
    assert [(card["file"], card["uuid"], card["type"]) for card in node["cards"]] == [
        ("/dev/nvidia0", "GPU-a", "h100_80gb_hbm3"),
        ("/dev/nvidia1", "GPU-b", "rtx_3090"),
    ]
    # Without /proc (a container) nvidia-smi's numbers are those of the files.
    assert [card["uuid"] for card in described(LINES + SMI)["cards"]] == ["GPU-b", "GPU-a"]


def test_memory_leaves_room_for_the_system_and_for_the_next_boot() -> None:
    first = described()["keys"]["RealMemory"]
    assert int(first) <= 64215 - 2048 and int(first) % 256 == 0
    # The kernel reports some MiB less at another boot: no new configuration.
    assert described([line.replace("64215", "64206") for line in LINES + PROC])["keys"]["RealMemory"] == first


def test_settings_of_a_node_win() -> None:
    node = described(cpus=4, gpus=["/dev/nvidia1"], more={"Weight": 10}, address="gpu-1.example.org")
    assert node["keys"] == {"CPUs": "4", "RealMemory": "61952", "Weight": "10"}
    assert node["cards"] == [{"file": "/dev/nvidia1", "uuid": "GPU-b", "type": "rtx_3090"}]
    assert node["address"] == "gpu-1.example.org"


@pytest.mark.parametrize(
    ("lines", "settings", "sentence"),
    [
        (LINES + PROC[:1], {}, "2 NVIDIA cards, and the driver shows 1"),
        (["name gpu_1", *LINES[1:], *PROC], {}, "letters, digits and hyphens"),
        ([LINES[0], *LINES[2:], *PROC], {}, "no way from it to the controller"),
        (LINES + PROC, {"reserved_mib": 64000}, "slurm_node_memory_reserved_mib"),
    ],
)
def test_what_cannot_be_a_node_is_refused_in_a_sentence(
    lines: list[str], settings: dict[str, Any], sentence: str
) -> None:
    assert sentence in described(lines, **settings)["problem"]
    assert described(lines, **settings)["problem"].endswith(".")


def test_answers_of_a_node_add_nothing_to_the_controllers_files() -> None:
    """Whoever is root there answers what he likes."""
    node = described(
        [
            "name gpu-1", "address 192.0.2.11(rw,no_root_squash) *",
            "hardware NodeName=x CPUs=16,Foo=1 Boards=1 RealMemory=64000 Gres=gpu:9 Reason=a#b",
            "version slurm-wlm 24.11.5 Features=x",
            "proc 0, GPU-1 State=DOWN, NVIDIA H100 State=DOWN Weight=1",
        ]
    )  # fmt: skip
    assert "no way from it" in node["problem"] and node["address"] == ""
    lines = slurm_controller.node_lines({"gpu-1": {**node, "address": "192.0.2.11"}})
    assert lines == [
        "NodeName=gpu-1 NodeAddr=192.0.2.11 Boards=1 RealMemory=61952 Gres=gpu:h100_state_down_weight_1:1 State=UNKNOWN"
    ]
    # Read line by line by the health check of the node itself.
    assert node["cards"][0]["uuid"] == "GPU-1 State=DOWN" and node["version"] == "24.11.5"


def cluster(*names: str) -> dict[str, dict[str, Any]]:
    return {f"{name}.example.org": {**described(), "name": name} for name in names}


def test_nodes_and_cards_have_lines() -> None:
    nodes = cluster("gpu-1")
    assert slurm_controller.node_lines(nodes) == [
        "NodeName=gpu-1 NodeAddr=192.0.2.11 CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=2 "
        "RealMemory=61952 Gres=gpu:h100_80gb_hbm3:1,gpu:rtx_3090:1 State=UNKNOWN"
    ]
    assert slurm_controller.gres_lines(nodes) == [
        "NodeName=gpu-1 Name=gpu Type=h100_80gb_hbm3 File=/dev/nvidia0",
        "NodeName=gpu-1 Name=gpu Type=rtx_3090 File=/dev/nvidia1",
    ]


def test_job_that_asks_for_a_gpu_leaves_the_others_usable() -> None:
    shares = slurm_controller.shares(cluster("gpu-1", "gpu-2"))
    assert shares == {"DefMemPerCPU": 3872, "DefCpuPerGPU": 8}
    assert 2 * shares["DefCpuPerGPU"] * shares["DefMemPerCPU"] <= 61952
    assert slurm_controller.shares({}) == {}


def test_partition_has_its_hosts_and_slurms_keys() -> None:
    nodes = cluster("gpu-1", "gpu-2")
    [all_of_them, one] = slurm_controller.partition_lines(
        {"gpu": {"Default": "YES"}, "big": {"nodes": ["gpu-2.example.org"], "MaxTime": "1:00:00"}}, nodes
    )
    assert all_of_them.startswith("PartitionName=gpu ") and "Nodes=gpu-1,gpu-2 " in all_of_them
    assert "Nodes=gpu-2 " in one and "MaxTime=1:00:00" in one
    with pytest.raises(Exception, match="no nodes of the inventory"):
        slurm_controller.partition_lines({"big": {"nodes": ["gone"]}}, nodes)


def test_node_that_was_not_looked_at_stays_as_it_was() -> None:
    before = cluster("gpu-1", "gpu-2")
    names = ["gpu-2.example.org", "gpu-3.example.org", "gpu-4.example.org"]
    new = {"gpu-3.example.org": {**described(), "name": "gpu-3"}, "gpu-2.example.org": {}}
    nodes = slurm_controller.nodes(names, new, before)
    assert [one["name"] for one in nodes.values()] == ["gpu-2", "gpu-3"]
    config = "\n".join(slurm_controller.node_lines(before))
    assert slurm_controller.removed(config, nodes) == ["gpu-1"]


def test_names_that_two_hosts_have_are_found() -> None:
    twice = {**cluster("gpu-1"), "other": {**described(), "name": "gpu-1"}}
    assert slurm_controller.same_names(twice) == ["gpu-1"]
    assert slurm_controller.same_names(cluster("gpu-1", "gpu-2")) == []


@pytest.mark.parametrize(
    ("node", "controller", "works"),
    [
        ("24.11.5", "24.11.1", True),
        ("23.11.4", "24.11.5", True),
        ("22.05.8", "24.11.5", False),
        ("24.11.5", "22.05.8", False),
        ("", "24.11.5", True),
    ],
)
def test_slurm_of_another_release_is_refused(node: str, controller: str, works: bool) -> None:
    problem = slurm_controller.version_problem(node, controller)
    assert (problem == "") == works


@pytest.mark.parametrize(
    ("stdout", "status", "sentence"),
    [
        ("NodeName=gpu-1 State=IDLE Reason=x", 0, ""),
        ("NodeName=gpu-1 State=IDLE+DRAIN Reason=broken [root@2026]", 0, ""),
        ("NodeName=gpu-1 State=DOWN* Reason=Not responding [slurm@2026]", 0, "does not reach it at 192.0.2.11"),
        ("NodeName=gpu-1 State=IDLE+INVALID_REG Reason=gres/gpu count too low (1 < 2) [slurm@2026]", 0, "count too low"),
        ("", 1, "does not know the node gpu-1"),
    ],
)  # fmt: skip
def test_why_a_node_does_not_register(stdout: str, status: int, sentence: str) -> None:
    problem = slurm_node.registered({"stdout": stdout, "rc": status}, described(), "login")
    assert sentence in problem and (problem == "") == (sentence == "")


def test_account_with_another_number_is_refused() -> None:
    lines = "train-classifier:x:998:998::/:/usr/sbin/nologin\nada:x:1001:1001:,,,:/home/ada:/bin/sh\n"
    assert slurm_node.account_problem(lines, lines, "login") == ""
    other = lines.replace("998:998", "997:997")
    assert "train-classifier (number 998 on login, 997 here)" in slurm_node.account_problem(
        other, lines, "login"
    )
    assert "ada (number 1001 on login, missing here)" in slurm_node.account_problem(
        lines.partition("\n")[0], lines, "login"
    )
    assert slurm_node.account_problem(lines, "", "login") == ""


def test_mount_unit_is_named_as_systemd_names_it() -> None:
    assert slurm_node.mount_unit("/srv/train-classifier") == r"srv-train\x2dclassifier.mount"
    assert slurm_node.mount_unit("/shared/") == "shared.mount"


@pytest.mark.parametrize(
    ("lines", "status", "words"),
    [
        (["munge ok", "slurmd active", "state idle|none"], "ok", "gives this node jobs"),
        (["munge ok", "slurmd active", "state drained|train-classifier: nvidia-smi fails: x"], "fail", "takes no new job: train-classifier: nvidia-smi fails"),
        (["munge ok", "slurmd active", "state idle*|none"], "fail", "does not reach it"),
        (["munge ok", "slurmd failed", "state down*|Not responding"], "fail", "slurmd is failed"),
        (["munge ok", "slurmd active", "state slurm_load_partitions: no controller"], "fail", "does not know this node"),
    ],
)  # fmt: skip
def test_host_check_says_what_slurm_thinks_of_a_node(lines: list[str], status: str, words: str) -> None:
    munge, node = host_check.slurm_rows(lines)
    assert munge["status"] == "ok"
    assert (node["name"], node["status"]) == ("slurm-node", status)
    assert words in node["message"]


def test_host_check_says_that_munge_fails() -> None:
    [row] = host_check.slurm_rows(["munge is not installed"])
    assert row["status"] == "fail" and "journalctl" not in row["hint"]
    [row] = host_check.slurm_rows(["munge STATUS: Rewound credential (16)"])
    assert row["status"] == "fail" and "Rewound" in row["message"]
    assert host_check.slurm_rows([]) == []


@pytest.mark.parametrize(
    ("brought", "answer"), [(["munge", "slurmd"], True), (["slurmd"], False), (None, False)]
)
def test_key_of_munge_is_the_roles_only_with_the_package(
    tmp_path: Path, brought: list[str] | None, answer: bool
) -> None:
    """Otherwise it may be that of another cluster, and is not replaced."""
    [probe] = [
        task
        for task in yaml.safe_load((ROOT / "roles/slurm_node/tasks/look.yml").read_text())
        if "register" in task
    ]
    packages = tmp_path / "packages.json"
    if brought is not None:
        # The role needs it either way.
        packages.write_text(json.dumps({"brought": brought, "wanted": {"slurm_node": ["munge"]}}))
    names = {**dict.fromkeys(probe["environment"], str(tmp_path / "nothing")), "PACKAGES": str(packages)}
    script = probe["ansible.builtin.shell"]
    output = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **names}, stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    assert ("brought_munge" in output.split()) == answer


def test_files_of_the_roles_are_where_slurm_looks_for_them() -> None:
    """slurm.conf of one role names the programs that the other one writes."""
    node = (ROOT / "roles/slurm_node/vars/main.yml").read_text()
    controller = (ROOT / "roles/slurm_controller/vars/main.yml").read_text()
    assert "__slurm_node_folder: /var/lib/train-classifier/slurm\n" in node
    assert "__slurm_controller_node_folder: /var/lib/train-classifier/slurm\n" in controller


def test_health_check_resumes_only_what_it_drained() -> None:
    """A node that the epilog drained still has containers on its cards, which the health check does not look for."""
    files = ROOT / "roles/slurm_node/files"
    reason = re.findall(r'"reason=(.*?): ', (files / "epilog").read_text())
    pattern = re.search(r"Reason=(.*?): '\*\) drained=ours", (files / "health-check").read_text())
    assert pattern and len(reason) == 1 and not reason[0].startswith(pattern[1])
