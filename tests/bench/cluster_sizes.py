"""How long the commands take that ask a cluster of 1, 4 and 16 nodes, all slurmd of one host (`slurmd -N`).

Each node has two waiting jobs of another account. Jobs of several nodes cannot run so: their workers share a host.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from hosts.cluster import Cluster, make_cluster
from hosts.machine import make_image
from test_slurm import SlurmCaller, set_up

SIZES = (1, 4, 16)
FIRST_PORT = 17000


def grow(cluster: Cluster, earlier: int, size: int) -> None:
    """Add nodes on the host of the first one until the cluster has `size`."""
    host, numbers = cluster.nodes[0], range(earlier + 1, size + 1)
    if not numbers:
        return
    address = cluster.network.names[host.name]
    lines = "".join(
        f"NodeName=node{number} NodeHostname={host.name} NodeAddr={address} Port={FIRST_PORT + number} CPUs=8 "
        f"RealMemory=8000 Gres=gpu:2 State=UNKNOWN\\n"
        for number in numbers
    )
    files = "".join(f"NodeName=node{number} Name=gpu File=/dev/nvidia[0-1]\\n" for number in numbers)
    cluster.controller.shell(
        f"printf '{lines}' >>/etc/slurm/slurm.conf; printf '{files}' >>/etc/slurm/gres.conf; systemctl restart slurmctld"
    )
    for number in numbers:
        host.shell(
            f"mkdir -p /var/lib/slurm/slurmd.node{number}; slurmd -N node{number} --conf-server controller:6817"
        )
    deadline = time.monotonic() + 120
    while len(cluster.controller.shell("sinfo -h -N -t idle -o %N").split()) < size:
        assert time.monotonic() < deadline, cluster.controller.shell(
            "sinfo -N -l; tail /var/log/slurm/slurmctld.log"
        )
        time.sleep(0.5)


def measure(caller: SlurmCaller, rounds: int) -> dict[str, float]:
    """Median seconds of each command, after a round that does not count."""
    times: dict[str, list[float]] = {}
    lines = {
        "train --detach": caller.train("look", "--detach", "--dependency", "afterok:1"),
        "status": ("status", "last"),
        "list": ("list",),
        "doctor": ("doctor",),
        "cancel": ("cancel", "last"),
    }
    for number in range(rounds + 1):
        for label, line in lines.items():
            began = time.monotonic()
            done = caller.run(*line)
            wall = time.monotonic() - began
            assert done.returncode == 0, done.stderr.decode()
            if number:
                times.setdefault(label, []).append(wall)
    return {label: statistics.median(values) for label, values in times.items()}


def bench(rounds: int) -> dict[int, dict[str, float]]:
    """Measure at each size, print and return the medians."""
    load = os.getloadavg()[0]
    figures = {}
    with tempfile.TemporaryDirectory(prefix="train-classifier-bench-") as folder:
        cluster = make_cluster(Path(folder) / "cluster", make_image("slim"), nodes=1)
        try:
            spool = "s#^SlurmdSpoolDir=.*#SlurmdSpoolDir=/var/lib/slurm/slurmd.%n#; s#^\\(SlurmdPidFile=.*\\)slurmd.pid#\\1slurmd.%n.pid#"
            cluster.controller.shell(f"sed -i '{spool}' /etc/slurm/slurm.conf")
            set_up(cluster)
            (Path(folder) / "caller").mkdir()
            caller = SlurmCaller(cluster, Path(folder) / "caller", "trainer")
            # What the measured jobs wait for.
            cluster.sbatch("--hold", "--output=/dev/null")
            size = 0
            for wanted in SIZES:
                grow(cluster, max(size, 1), wanted)
                for _ in range(2 * (wanted - size)):
                    cluster.sbatch("--hold", "--output=/dev/null", user="root")
                size = wanted
                figures[size] = measure(caller, rounds)
        finally:
            cluster.remove()
    print(
        "| median seconds | "
        + " | ".join(f"{size} nodes" for size in SIZES)
        + " |\n|---|"
        + "--:|" * len(SIZES)
    )
    for label in figures[SIZES[0]]:
        print(f"| `{label}` | " + " | ".join(f"{figures[size][label]:.2f}" for size in SIZES) + " |")
    print(f"load {load:.1f} to {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return figures
