"""The roles of a Slurm cluster: set up by the playbook, grown and shrunk while jobs run, its nodes watched."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hosts import fleet
from hosts.caller import Caller, archived
from hosts.cluster import Cluster, start_hosts
from hosts.fleet import simulate_gpus
from hosts.gpu.world import UUIDS, world
from hosts.machine import TestHost, make_image, run
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment

from train_classifier.worker.slurm_node.person_half import START

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
            "slurm_node_people": "people",
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
            # Role training_host, which does not run here, installs the worker's program.
            node.shell(
                "groupadd people; usermod -aG people trainer; cd /var/lib; "
                "mkdir -p train-classifier/worker; touch train-classifier/worker/__main__.py"
            )
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
    sudoers = "/etc/sudoers.d/train-classifier"
    node1 = hosts.node("node1")
    assert (
        node1.shell(f"visudo -cq; stat -c '%a %U %G' {sudoers} {START}") == "440 root root\n755 root root\n"
    )
    rule = f"(train-classifier) NOSETENV: NOPASSWD: {START} ^[0-9]+$"
    assert rule in node1.exec("sudo", "-n", "-l", user="trainer").stdout
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

    # The node leaves, and nobody trains there without Docker rights any more; the jobs of the other one still run.
    changed, _ = site.run("node1", options=("-e", "slurm_node_people="))
    assert changed["node1"] == 1
    assert node1.exec("ls", sudoers, str(START), check=False).stdout == ""
    assert controller.shell("sinfo -hN -o %N").split() == ["node1"]
    assert {state_of(site, job) for job in running} == {"RUNNING"}
    controller.shell(f"touch {hosts.shared}/go")
    wait_until(
        lambda: {state_of(site, job) for job in running} == {"COMPLETED"}, lambda: controller.shell("squeue")
    )


#: Brings the image that a registry would have.
IMAGE = """
- hosts: slurm_nodes
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: docker_engine}
    - ansible.builtin.command: docker load -q -i /srv/slim.tar
"""


def inventory_variables(host: TestHost) -> dict[str, str]:
    """Return the variables by which Ansible reaches a test host."""
    line = host.inventory("root").read_text().splitlines()[1]
    return dict(word.split("=", 1) for word in shlex.split(line)[1:])


def example_inventory(hosts: Cluster, folder: Path) -> Path:
    """Copy inventory/cluster, with these hosts in place of its own."""
    inventory = folder / "mycluster"
    shutil.copytree(ROOT / "inventory/cluster", inventory)
    content = yaml.safe_load((inventory / "hosts.yml").read_text())
    groups = content["training"]["children"]
    for group, members in (("slurm_controller", [hosts.controller]), ("slurm_nodes", hosts.nodes)):
        groups[group]["hosts"] = {host.name: inventory_variables(host) for host in members}
    (inventory / "hosts.yml").write_text(yaml.safe_dump(content))
    return inventory


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_example_inventory_trains_from_bare_hosts_on(
    _hosts_possible: None, base_image: str, tmp_path: Path
) -> None:
    """By site.yml, with accounting: who has no right to an account is told so, and trains when they have it."""
    hosts = start_hosts(tmp_path / "hosts", ["gpu-1", "gpu-2"], make_image("trixie", "--bare"))
    try:
        inventory = example_inventory(hosts, tmp_path)
        variables = {
            **fleet.role_variables(base_image),
            "training_host_images": {"cpu": base_image, "gpu": base_image},
            "ansible_user": "root",
            "train_classifier_shared_nfs": False,
            "slurm_controller_cgroups": False,
            "slurm_controller_settings": {"AccountingStorageEnforce": "limits"},
        }

        def play(book: Path) -> str:
            command = [ANSIBLE_PLAYBOOK, "-i", inventory, "-e", json.dumps(variables), book]
            environment = ansible_environment(ANSIBLE_ROLES_PATH=str(ROOT / "roles"))
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr
            return done.stdout

        tar = run(ROOT / "tests/hosts/make-image", "--tar", "slim").stdout.split()[1]
        for host in hosts.hosts:
            fleet.place_uv(host)
        for node in hosts.nodes:
            run("docker", "cp", tar, f"{node.container}:/srv/slim.tar")
        (tmp_path / "image.yml").write_text(IMAGE)
        play(tmp_path / "image.yml")
        for node in hosts.nodes:
            simulate_gpus(node)
        assert "3 of 3 hosts ready for training" in play(ROOT / "site.yml")
        rights = "sacctmgr -i add user {} account=lab"
        hosts.controller.shell("sacctmgr -i add account lab; " + rights.format("trainer"))
        for user in ("trainer", "root"):
            (tmp_path / user).mkdir()
            caller = Caller(hosts.controller, tmp_path / user, user)
            caller.model("look", "open('artefacts/seen', 'w').write('seen')\n")
            words = caller.train("look", "--account", "lab", "--gpu-check", "device")
            done = caller.run(*words)
            if user == "root":
                # The service account submits for root.
                assert done.returncode == 2, done.stderr.decode()[-3000:]
                assert b"Slurm refused the request: Invalid account" in done.stderr
                assert b"sacctmgr show associations" in done.stderr
                hosts.controller.shell(rights.format("train-classifier"))
                done = caller.run(*words)
            assert done.returncode == 0, done.stderr.decode()[-3000:]
            manifest = json.loads(archived(caller.work / "artefacts.tar.gz", "job/manifest.json"))
            assert manifest["outcome"] == "trained" and manifest["slurm"]["account"] == "lab"
            assert len(manifest["gpus"]) == 1
    finally:
        hosts.remove()
