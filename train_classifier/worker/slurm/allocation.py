"""What Slurm gave a job on this node: its GPUs, memory and CPUs."""

import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from train_classifier.core.errors import NoGpu, NotReady
from train_classifier.core.job import JobSpec
from train_classifier.core.options import show_option
from train_classifier.worker.gpus import devices
from train_classifier.worker.gpus.devices import Gpu
from train_classifier.worker.system.host import Host
from train_classifier.worker.training.stop_reasons import NodeGroup

MIB = 1 << 20
LIMIT_S = 30.0
#: Least share of a further node in the limit of the log, as the option has it.
LEAST_LOG_BYTES = 4096
#: Seconds for which slurmd may list nothing: its files are replaced when the cluster is reconfigured.
RECONFIGURATION_S = 20.0


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The part of a node that a job has."""

    gpus: tuple[Gpu, ...]
    #: None: Slurm does not count memory here.
    memory_bytes: Optional[int]
    cpus: Optional[int]
    #: The other nodes of the job; None: it has one.
    node_group: Optional[NodeGroup] = None
    #: Whether the job's builds and checks have no more of the node either.
    limits_builds: bool = False

    def limit_host(self, host: Host) -> Host:
        """Return the host with the limits that builds and checks of this job have there."""
        if not self.limits_builds:
            return host
        own = host.limits("")
        memory, cpus = self.memory_bytes or own.memory_bytes, self.cpus or own.cpus
        return dataclasses.replace(
            host,
            build_memory_bytes=min(own.memory_bytes, memory),
            build_cpus=min(own.cpus, cpus),
            has_memory_of_job=memory < own.memory_bytes,
        )

    def limit(self, spec: JobSpec) -> JobSpec:
        """Return the specification with the allocation as limits, where it names no lower ones.

        Of a job on several nodes it gets the variables by which they meet; the first node alone has a lease,
        and the logs of the others, which all come into the archive, may together be as large as its own.
        """
        if self.node_group is not None:
            environment = {**self.node_group.variables, **spec.environment}
            spec = dataclasses.replace(spec, environment=environment)
            if self.node_group.rank:
                share = max(spec.log_max_bytes // max((spec.nodes or 1) - 1, 1), LEAST_LOG_BYTES)
                spec = dataclasses.replace(spec, lease_s=None, log_max_bytes=share)
        memory = [size for size in (spec.memory_bytes, self.memory_bytes) if size is not None]
        cpus = [count for count in (spec.cpus, self.cpus) if count is not None]
        return dataclasses.replace(spec, memory_bytes=min(memory, default=None), cpus=min(cpus, default=None))


def read(host: Host, variables: Mapping[str, str]) -> Allocation:
    """Return the allocation from the variables that Slurm sets on a node. Raises NoGpu, NotReady."""
    cpus = _number(variables, "SLURM_CPUS_ON_NODE")
    # slurm.conf may say more than a node has (config_overrides); the engine refuses that.
    present = os.cpu_count() or cpus
    return Allocation(
        gpus(host, variables), memory_bytes(variables), min(cpus, present) if cpus and present else None
    )


def _number(variables: Mapping[str, str], name: str) -> Optional[int]:
    text = variables.get(name, "")
    return int(text) if text.isdigit() and int(text) > 0 else None


def memory_bytes(variables: Mapping[str, str]) -> Optional[int]:
    """Return the memory on this node; Slurm counts MiB, for the node, each CPU or each GPU."""
    node = _number(variables, "SLURM_MEM_PER_NODE")
    if node:
        return node * MIB
    for name, count in (
        ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
        ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
    ):
        size, number = _number(variables, name), _number(variables, count)
        if size and number:
            return size * number * MIB
    return None


def gpus(host: Host, variables: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return the job's cards: Slurm's variable names their places in gres.conf, in the order of that file."""
    # A step on a further node has its own variable.
    text = variables.get("SLURM_STEP_GPUS") or variables.get("SLURM_JOB_GPUS") or ""
    places = expand(text)
    if not places:
        return ()
    files = device_files(host)
    discovery = devices.discover(host, processes=False)
    if not discovery.gpus:
        raise NoGpu(f"no GPU: {discovery.problem}", discovery.hint, discovery.detail)
    known = devices.driver_cards(host.root)
    cards = {}
    for card in discovery.gpus:
        if card.uuid in known:
            # In Slurm's control group nvidia-smi counts only the job's cards, else all by PCI address.
            card = dataclasses.replace(card, index=list(known).index(card.uuid))
        cards[known.get(card.uuid, f"/dev/nvidia{card.index}")] = card
    chosen = []
    for place in places:
        file = files[place] if place < len(files) else None
        if file not in cards:
            raise NoGpu(
                f"Slurm gave this job GPU {place} of gres.conf ({file or 'which has no such line'}), and "
                f"nvidia-smi lists no card with this device",
                "run the role slurm_node on this node again",
            )
        chosen.append(cards[file])
    return tuple(sorted(chosen, key=lambda card: card.index))


def expand(text: str) -> list[int]:
    """Return the numbers of a list as 0,2-3; anything else in it is left out."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if match:
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


def device_files(host: Host) -> list[str]:
    """Return the device files of this node's GPUs, in the order in which Slurm counts them. Raises NotReady.

    slurmd itself knows that order: gres.conf may include lines of other nodes, or leave it to detection.
    """
    deadline = time.monotonic() + RECONFIGURATION_S
    while True:
        try:
            process = subprocess.run(
                ["slurmd", "-G"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                cwd="/", timeout=LIMIT_S, check=False, encoding="utf-8", errors="replace",
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = f"slurmd does not list this node's GPUs: {error}"
            raise NotReady(reason, "run the role slurm_node on it") from error
        files = parse_gres(process.stdout.splitlines())
        if files:
            return files
        if time.monotonic() > deadline:
            output = process.stdout.strip()[-2000:]
            raise NotReady("slurmd lists no GPU of this node", "run the role slurm_node on it", output)
        time.sleep(1)


def parse_gres(lines: Sequence[str]) -> list[str]:
    """Return the device files in the output of `slurmd -G`."""
    files = []
    for line in lines:
        match = re.search(r"\bGres Name=gpu\b.*\bFile=(/\S+)", line)
        if match:
            files += expand_files(match[1])
    return files


def expand_files(pattern: str) -> list[str]:
    """Return the files of a pattern as /dev/nvidia[0-1,3]."""
    match = re.fullmatch(r"(.*)\[([\d,-]+)\]", pattern)
    if not match:
        return pattern.split(",")
    return [f"{match[1]}{number}" for number in expand(match[2])]


def node_name(variables: Mapping[str, str]) -> str:
    """Return this node's name in Slurm."""
    return variables.get("SLURMD_NODENAME") or Path("/etc/hostname").read_text(encoding="ascii").strip()


def host_network_problem(host: Host, nodes: int) -> str:
    """Return why a job may not have so many nodes here, empty when it may."""
    if nodes == 1 or host.slurm_host_network:
        return ""
    return (
        f"{show_option('nodes')} above 1 lets containers use the network of their nodes, which the "
        "administrator of this cluster has not allowed (training_host_slurm_host_network)"
    )
