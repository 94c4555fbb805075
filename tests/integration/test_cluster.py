"""The roles of a Slurm cluster: set up by the playbook, grown and shrunk while jobs run, its nodes watched."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts.cluster import Cluster, start_hosts
from hosts.fleet import simulate_gpus
from hosts.gpu.world import UUIDS, world
from hosts.machine import make_image
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment

pytestmark = [pytest.mark.engine, pytest.mark.host]

LIMIT_S = 240
HEALTH_CHECK = "/var/lib/train-classifier/slurm/health-check"


class Site:
    """A cluster whose nodes are those of its inventory, and the playbook run on it."""

    def __init__(self, hosts: Cluster, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder

    def run(
        self, *nodes: str, options: tuple[str, ...] = (), fails: bool = False
    ) -> tuple[dict[str, int], str]:
        """Run the playbook with these nodes in the inventory; tasks that changed something, by host, and the output."""
        lines = {host.name: host.inventory("root").read_text().splitlines()[1] for host in self.hosts.hosts}
        variables = {
            # The nodes share one small machine, and have no control groups of their own.
            "slurm_controller_cgroups": False,
            "slurm_controller_settings": {"SlurmdParameters": "config_overrides"},
            "slurm_node_cpus": 8,
        }
        groups = {
            "training": [lines[name] for name in ("controller", *nodes)],
            "slurm_controller": ["controller"],
            "slurm_nodes": list(nodes),
        }
        inventory = self.folder / "hosts.ini"
        inventory.write_text(
            "".join(f"[{group}]\n" + "\n".join(rows) + "\n" for group, rows in groups.items())
        )
        command = [
            ANSIBLE_PLAYBOOK,
            "-i",
            inventory,
            "-e",
            json.dumps(variables),
            ROOT / "playbooks/cluster.yml",
        ]
        done = subprocess.run(
            [*command, *options],
            cwd=ROOT,
            env=ansible_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        changed = re.findall(r"^(\w+)\s+: ok=\d+\s+changed=(\d+)", output, re.M)
        return {host: int(count) for host, count in changed}, output


@pytest.fixture(scope="module")
def site(_hosts_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm-roles")
    hosts = start_hosts(folder, ["node1", "node2"], make_image("slurm"))
    try:
        for node in hosts.nodes:
            simulate_gpus(node)
        yield Site(hosts, folder)
    finally:
        hosts.remove()


def wait_until(question: Callable[[], bool], problem: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not question():
        assert time.monotonic() < deadline, problem()
        time.sleep(0.3)


def state_of(site: Site, job: str) -> str:
    return site.hosts.job(job)["JobState"]


def test_cluster_grows_and_shrinks_while_jobs_run(site: Site, base_image: str) -> None:
    hosts, controller = site.hosts, site.hosts.controller
    node2 = hosts.node("node2")
    _, output = site.run("node1")
    assert controller.shell("base64 -w 20 /etc/munge/munge.key").split()[0] not in output
    card = f"#!/bin/sh\necho \"$SLURM_JOB_GPUS\" >>{hosts.shared}/card; exec sh -c 'while [ ! -e {hosts.shared}/go ]; do sleep 0.5; done'\n"
    running = [hosts.sbatch("--gres=gpu:rtx_4090:1", "--output=/dev/null", script=card) for _ in range(2)]
    waiting = hosts.sbatch("--gres=gpu:1", "--output=/dev/null", script=card)
    cards = f"if [ -e {hosts.shared}/card ]; then cat {hosts.shared}/card; fi"
    wait_until(
        lambda: len(controller.shell(cards).split()) == 2, lambda: controller.shell("squeue; sinfo -R")
    )
    assert sorted(controller.shell(cards).split()) == ["0", "1"]
    assert {state_of(site, job) for job in running} == {"RUNNING"}
    assert state_of(site, waiting) == "PENDING"

    # A further node of the inventory: the job that waited runs there, and nothing of the first node changes.
    changed, _ = site.run("node1", "node2")
    assert changed["node1"] == 0 and changed["node2"] > 0
    wait_until(lambda: state_of(site, waiting) == "RUNNING", lambda: controller.shell("squeue; sinfo -R"))
    assert hosts.job(waiting)["NodeList"] == "node2"
    assert {state_of(site, job) for job in running} == {"RUNNING"}

    # What the job's worker left running holds the cards no longer than the job.
    node2.load_image(base_image)
    for job in (waiting, "999"):
        label = f"train-classifier.slurm={job}"
        node2.docker("run", "-d", "--name", f"left-{job}", "--label", label, base_image, "sleep", "1000")
    _, output = site.run("node1", options=("--limit", "controller"), fails=True)
    assert "node2 is no longer in the group slurm_nodes, and runs" in " ".join(output.split())
    controller.exec("scancel", "--signal=KILL", "--full", waiting)
    wait_until(
        lambda: node2.docker("ps", "-a", "--format", "{{.Names}}").split() == ["left-999"],
        lambda: node2.shell("docker ps -a; tail -n 20 /var/log/slurm/slurmd.log"),
    )

    # A card that fails: its node takes no new job, and says why; the reason of an administrator stays.
    wait_until(lambda: hosts.node_state("node2") == "idle", lambda: controller.shell("sinfo -N"))
    node2.shell(HEALTH_CHECK)
    assert hosts.node_state("node2") == "idle"
    gpus = json.loads(world())["gpus"]
    node2.write("/etc/simulated-gpus.json", world(gpus=gpus[:1]))
    node2.shell(HEALTH_CHECK)
    reason = controller.shell("sinfo -hN -n node2 -o '%T %E'")
    assert reason == f"drained train-classifier: the card of /dev/nvidia1 ({UUIDS[1]}) does not answer\n"
    node2.write("/etc/simulated-gpus.json", world(fail={"message": "Failed to initialize NVML", "exit": 9}))
    node2.shell(HEALTH_CHECK)
    assert "nvidia-smi fails: Failed to initialize NVML" in controller.shell("sinfo -hN -n node2 -o %E")
    node2.write("/etc/simulated-gpus.json", world())
    node2.shell(HEALTH_CHECK)
    # Slurm asks a node that is resumed whether it is there.
    wait_until(lambda: hosts.node_state("node2") == "idle", lambda: controller.shell("sinfo -N; sinfo -R"))
    # Without the shared folder it would fail one job after the other.
    folder = HEALTH_CHECK.replace("health-check", "shared-folder")
    node2.shell(
        f"cp {folder} /root/; echo /nowhere >{folder}; {HEALTH_CHECK}; cp /root/shared-folder {folder}"
    )
    assert "shares is not at /nowhere" in controller.shell("sinfo -hN -n node2 -o %E")
    node2.shell(HEALTH_CHECK)
    wait_until(lambda: hosts.node_state("node2") == "idle", lambda: controller.shell("sinfo -N; sinfo -R"))
    controller.exec("scontrol", "update", "nodename=node2", "state=drain", "reason=dust")
    node2.shell(HEALTH_CHECK)
    assert controller.shell("sinfo -hN -n node2 -o '%T %E'") == "drained dust\n"

    # The node leaves; the jobs of the other one still run.
    changed, _ = site.run("node1")
    assert changed["node1"] == 0
    assert controller.shell("sinfo -hN -o %N").split() == ["node1"]
    assert {state_of(site, job) for job in running} == {"RUNNING"}
    controller.shell(f"touch {hosts.shared}/go")
    wait_until(
        lambda: {state_of(site, job) for job in running} == {"COMPLETED"}, lambda: controller.shell("squeue")
    )
