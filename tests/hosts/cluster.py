"""A test cluster: a Slurm controller and nodes with two simulated cards each, set up without Ansible."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .fleet import prepare, simulate_gpus
from .machine import LABEL, HostError, TestHost, make_image, owner_label, run
from .play import ROOT

SHARED = "/srv/train-classifier"
CONTROLLER = "controller"
# The machine has fewer CPUs than the nodes say (config_overrides), and its containers have no control groups of their own.
# Without disable_send_gids a job has the groups of its user on the controller, where nobody is in group docker.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={controller}
SlurmctldParameters=enable_configless
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SlurmdTimeout=60
ReturnToService=2
GresTypes=gpu
Epilog=/var/lib/train-classifier/slurm/epilog
DefMemPerCPU=500
LaunchParameters=disable_send_gids
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr={address} CPUs=8 RealMemory=8000 Gres=gpu:2 State=UNKNOWN\n"
GRES = "NodeName={name} Name=gpu File=/dev/nvidia[0-1]\n"


T = TypeVar("T")


def in_parallel(function: Callable[[T], None], arguments: Sequence[T]) -> None:
    """Call a function with each argument at once; raises the first exception after all have ended."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        calls = [pool.submit(function, argument) for argument in arguments]
    for call in calls:
        call.result()


@dataclass(kw_only=True)
class Network:
    """A private network of this machine's engine, and the volume that the hosts on it share at `SHARED`."""

    name: str
    subnet: str
    names: dict[str, str]

    @classmethod
    def create(cls, names: Sequence[str]) -> Network:
        """A network with an address for each name; the hosts keep it when they start again."""
        labels = ("--label", LABEL, "--label", owner_label())
        for _ in range(20):
            name, base = f"tc-test-cluster-{secrets.token_hex(3)}", f"10.213.{secrets.randbelow(256)}"
            made = run(
                "docker", "network", "create", *labels, "--subnet", f"{base}.0/24", name, check=False,
            )  # fmt: skip
            if made.returncode == 0:
                run("docker", "volume", "create", *labels, name)
                addresses = {host: f"{base}.{10 + number}" for number, host in enumerate(names)}
                return cls(name=name, subnet=f"{base}.0/24", names=addresses)
        raise HostError(f"no network could be made: {made.stderr}")

    def options(self, host: str) -> list[str]:
        """`docker run`'s options that put a host on the network and give it the shared folder."""
        known = [f"--add-host={name}:{address}" for name, address in self.names.items()]
        # As on a real host root may look into the processes of others: the engine mounts what a worker has opened.
        rights = ["--cap-add", "SYS_PTRACE"]
        return [
            "--network",
            self.name,
            "--ip",
            self.names[host],
            *known,
            *rights,
            "-v",
            f"{self.name}:{SHARED}",
        ]

    def remove(self) -> None:
        """Remove network and volume; the hosts are gone."""
        run("docker", "network", "rm", self.name, check=False)
        run("docker", "volume", "rm", "-f", self.name, check=False)


@dataclass(kw_only=True)
class Cluster:
    """A running cluster. The controller is the submit host; users and ids are the same on every host."""

    controller: TestHost
    nodes: list[TestHost]
    network: Network
    shared: str = SHARED

    @property
    def hosts(self) -> list[TestHost]:
        """The controller and the nodes."""
        return [self.controller, *self.nodes]

    def node(self, name: str) -> TestHost:
        """The host that Slurm knows by this name."""
        return next(node for node in self.nodes if node.name == name)

    def sbatch(self, *options: str, script: str = "#!/bin/sh\nexit 0\n", user: str = "trainer") -> str:
        """Submit a script; Slurm's id of the job."""
        command = ("sbatch", "--parsable", "--chdir=/", *options)
        return self.controller.exec(*command, user=user, input=script).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, key by key."""
        output = self.controller.exec("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(word.split("=", 1) for word in output.split() if "=" in word)

    def node_state(self, name: str) -> str:
        """A node's state as Slurm names it (`idle`, `drain` …)."""
        return self.controller.exec("sinfo", "-h", "-N", "-n", name, "-o", "%T").stdout.strip()

    def wait_ready(self, seconds: float = 120) -> None:
        """Wait until every node is idle."""
        deadline = time.monotonic() + seconds
        while states := {node.name: self.node_state(node.name) for node in self.nodes}:
            if set(states.values()) == {"idle"}:
                return
            if time.monotonic() > deadline:
                logs = "".join(h.shell("tail -n 20 /var/log/slurm/*.log", check=False) for h in self.hosts)
                raise HostError(f"the nodes are not idle: {states}\n{logs}")
            time.sleep(0.3)

    def cut_network(self, name: str) -> None:
        """Take a node off the network, as a pulled cable does; `docker exec` still reaches it."""
        run("docker", "network", "disconnect", self.network.name, self.node(name).container)

    def mend_network(self, name: str) -> None:
        """Put it back, under the same address."""
        address = self.network.names[name]
        run("docker", "network", "connect", "--ip", address, self.network.name, self.node(name).container)

    def remove(self) -> None:
        """Remove the hosts, the network and the shared folder."""
        for host in self.hosts:
            host.remove()
        self.network.remove()


def _configure(cluster: Cluster) -> None:
    addresses = cluster.network.names
    nodes = [node.name for node in cluster.nodes]
    controller = cluster.controller
    controller.write(
        "/etc/slurm/slurm.conf",
        SLURM_CONF.format(
            controller=f"{CONTROLLER}({addresses[CONTROLLER]})",
            nodes="".join(NODE.format(name=name, address=addresses[name]) for name in nodes),
        ),
    )
    controller.write("/etc/slurm/gres.conf", "".join(GRES.format(name=name) for name in nodes))
    controller.write("/etc/slurm/cgroup.conf", "CgroupPlugin=disabled\n")
    key = secrets.token_hex(64)
    for host in cluster.hosts:
        host.write("/etc/munge/munge.key", key, "0400")
        host.shell("chown munge: /etc/munge/munge.key; systemctl enable -q --now munge")
    controller.shell("systemctl enable -q --now slurmctld")
    epilog = (ROOT / "roles/slurm_node/files/epilog").read_text()
    for node in cluster.nodes:
        node.write("/var/lib/train-classifier/slurm/epilog", epilog, "0755")
        server = f"SLURMD_OPTIONS='--conf-server {CONTROLLER}:6817'\n"
        node.write("/etc/default/slurmd", server)
        node.shell("systemctl enable -q slurmd; systemctl start --no-block slurmd")


def _nameservers() -> list[str]:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("nameserver ")]


def start_hosts(directory: Path, names: Sequence[str], image: str) -> Cluster:
    """A controller and nodes of these names on a network of their own, before anything of Slurm is set up."""
    network = Network.create([CONTROLLER, *names])
    hosts: dict[str, TestHost] = {}

    def start(name: str) -> None:
        hosts[name] = TestHost.create(name, image, directory / name, options=network.options(name))

    try:
        in_parallel(start, [CONTROLLER, *names])
    except BaseException:
        for host in hosts.values():
            host.remove()
        network.remove()
        raise
    # As on a server of files: each account makes a folder of its own.
    hosts[CONTROLLER].shell(f"chmod 1777 {SHARED}")
    return Cluster(controller=hosts[CONTROLLER], nodes=[hosts[name] for name in names], network=network)


def make_cluster(directory: Path, slim: str, nodes: int = 2) -> Cluster:
    """A cluster in which `sbatch --gres=gpu:1` runs: node1, node2 … are idle, each with the base image."""
    cluster = start_hosts(directory, [f"node{number + 1}" for number in range(nodes)], make_image("slurm"))

    def equip(node: TestHost) -> None:
        # The engine's own resolver on a private network is no address for containers in the node.
        simulate_gpus(node, dns=_nameservers())
        prepare(node, slim, gpu_check="device")

    try:
        _configure(cluster)
        in_parallel(equip, cluster.nodes)
        cluster.wait_ready()
    except BaseException:
        cluster.remove()
        raise
    return cluster
