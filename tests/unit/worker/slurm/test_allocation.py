"""What Slurm gave a job on a node, from its variables and from what `slurmd -G` of Slurm 24.11 prints."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from train_classifier.core.errors import NoGpu, NotReady
from train_classifier.core.job import JobSpec, Repository, new_job_id
from train_classifier.worker.containers import helper
from train_classifier.worker.slurm import allocation
from train_classifier.worker.slurm.allocation import Allocation
from train_classifier.worker.system.host import Host

UUIDS = tuple(f"GPU-5f9d8a3e-1c2b-4d5e-8f70-00000000000{number}" for number in range(3))
LINE = "slurmd-node1: Gres Name=gpu Type=(null) Count={} Index=0 ID=7696487 File={} Links=(null) Flags=HAS_FILE\n"
NOISE = "slurmd-node1: error: xcpuinfo_hwloc_topo_load: failed (load will be required after read failures).\n"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A node with three cards, whose device numbers are not in the order of nvidia-smi."""
    rows = "".join(
        f"{index}, {uuid}, NVIDIA L4, 23034, 22000, 550.163.01, [N/A]\n" for index, uuid in enumerate(UUIDS)
    )
    (tmp_path / "rows").write_text(rows)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat {tmp_path}/rows\n")
    tool.chmod(0o755)
    for address, (uuid, minor) in enumerate(zip(UUIDS, (0, 2, 1), strict=True)):
        folder = tmp_path / f"root/proc/driver/nvidia/gpus/0000:0{address}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: NVIDIA L4\nGPU UUID:\t {uuid}\nDevice Minor: \t {minor}\n"
        )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Host(nvidia_smi=str(tool), root=tmp_path / "root")


def print_gres(node: Host, *files: str) -> None:
    tool = Path(node.nvidia_smi).with_name("slurmd")
    output = NOISE + "".join(LINE.format(1, file) for file in files)
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{output}END\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("files", "places", "cards"),
    [
        (["/dev/nvidia[0-2]"], "0", [0]),
        # Numbers of devices are not those of nvidia-smi.
        (["/dev/nvidia[0-2]"], "1", [2]),
        # gres.conf in reversed order.
        (["/dev/nvidia2", "/dev/nvidia1", "/dev/nvidia0"], "0", [1]),
        (["/dev/nvidia2", "/dev/nvidia1", "/dev/nvidia0"], "0,2", [0, 1]),
        (["/dev/nvidia2", "/dev/nvidia[0-1]"], "1-2", [0, 2]),
    ],
)
def test_place_in_gres_conf_leads_to_the_card(
    node: Host, files: list[str], places: str, cards: list[int]
) -> None:
    print_gres(node, *files)
    chosen = allocation.gpus(node, {"SLURM_JOB_GPUS": places})
    assert [card.uuid for card in chosen] == [UUIDS[card] for card in cards]


def test_card_has_its_number_of_the_host_where_slurm_hides_the_others(node: Host) -> None:
    print_gres(node, "/dev/nvidia[0-2]")
    # As nvidia-smi answers where ConstrainDevices is on.
    Path(node.nvidia_smi).with_name("rows").write_text(
        f"0, {UUIDS[1]}, NVIDIA L4, 23034, 22000, 550.163.01, [N/A]\n"
    )
    (card,) = allocation.gpus(node, {"SLURM_JOB_GPUS": "2"})
    assert (card.index, card.uuid) == (1, UUIDS[1])


def test_a_step_on_a_further_node_has_its_own_variable(node: Host) -> None:
    print_gres(node, "/dev/nvidia[0-2]")
    assert [
        card.index for card in allocation.gpus(node, {"SLURM_JOB_GPUS": "0", "SLURM_STEP_GPUS": "1"})
    ] == [2]
    assert allocation.gpus(node, {}) == ()


def test_card_that_nvidia_smi_does_not_list_is_named(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "RECONFIGURATION_S", 0.0)
    print_gres(node, "/dev/nvidia7")
    with pytest.raises(NoGpu, match="/dev/nvidia7"):
        allocation.gpus(node, {"SLURM_JOB_GPUS": "0"})
    with pytest.raises(NoGpu, match=r"has no such line"):
        allocation.gpus(node, {"SLURM_JOB_GPUS": "3"})
    print_gres(node)
    with pytest.raises(NotReady, match="slurmd lists no GPU"):
        allocation.gpus(node, {"SLURM_JOB_GPUS": "0"})


@pytest.mark.parametrize(
    ("variables", "mib"),
    [
        ({"SLURM_MEM_PER_NODE": "2000"}, 2000),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "4"}, 2000),
        ({"SLURM_MEM_PER_GPU": "3000", "SLURM_GPUS_ON_NODE": "2"}, 6000),
        ({"SLURM_CPUS_ON_NODE": "4"}, None),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
    ],
)
def test_memory_of_the_allocation(variables: dict[str, str], mib: int | None) -> None:
    assert allocation.memory_bytes(variables) == (None if mib is None else mib << 20)


def test_allocation_limits_the_job_where_it_names_no_lower_limits() -> None:
    spec = JobSpec(new_job_id(), "look", Repository("look", "0" * 16), memory_bytes=1 << 30, cpus=0.5)
    granted = Allocation((), 2 << 30, 2)
    assert (granted.limit(spec).memory_bytes, granted.limit(spec).cpus) == (1 << 30, 0.5)
    plain = JobSpec(new_job_id(), "look", Repository("look", "0" * 16))
    assert (granted.limit(plain).memory_bytes, granted.limit(plain).cpus) == (2 << 30, 2)
    assert Allocation((), None, None).limit(plain) == plain


def test_allocation_limits_builds_of_a_person_without_docker_rights() -> None:
    """Else code of a build takes three quarters of the node's memory from the jobs of others."""
    host = Host(build_memory_bytes=4 << 30, build_cpus=1)
    assert Allocation((), 1 << 30, 2).limit_host(host) == host
    limits = Allocation((), 1 << 30, 2, limits_builds=True).limit_host(host).limits("a build")
    assert (limits.memory_bytes, limits.cpus, limits.has_memory_of_job) == (1 << 30, 1, True)
    limits = Allocation((), 8 << 30, None, limits_builds=True).limit_host(host).limits("a build")
    assert (limits.memory_bytes, limits.cpus, limits.has_memory_of_job) == (4 << 30, 1, False)
    assert "--memory" in str(helper._memory_limit(dataclasses.replace(limits, has_memory_of_job=True)).hint)
    assert "build_memory_bytes" in str(helper._memory_limit(limits).hint)


def test_no_more_cpus_than_the_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """slurm.conf may count more; the engine would refuse the container."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [allocation.read(Host(), {"SLURM_CPUS_ON_NODE": count}).cpus for count in ("8", "1", "")] == [
        2,
        1,
        None,
    ]
