"""Jobs through Slurm: from the submit host to a node and back, by the real command line over ssh and a real Slurm.

The shared folder is a volume of this machine: what a network file system does to caches and locks is not seen here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import json_output
import pytest
from documented import documented
from hosts.caller import Caller, archived
from hosts.cluster import SHARED, Cluster
from hosts.fleet import uv_binary
from hosts.gpu.world import world
from hosts.machine import LABEL, TestHost, owner_label, run
from loopback.world import tail, wait_until
from test_inside import free_port, typed

pytestmark = [pytest.mark.engine, pytest.mark.host]

SETTINGS = "/var/lib/train-classifier/host.json"
#: Prints what it sees; with `hold` it goes on when the test lets it.
LOOK = """
import glob, json, os, sys, time
print(json.dumps({"nodes": sorted(glob.glob("/dev/nvidia*")), "secret": os.environ.get("TOKEN")}), flush=True)
open("/checkpoints/epoch", "a").write("1")
open("artefacts/seen", "w").write("seen")
end = time.monotonic() + 300
while "hold" in sys.argv and not os.path.exists("/checkpoints/go") and time.monotonic() < end:
    time.sleep(0.1)
print("end")
"""
#: Two of them average a number, as frameworks average gradients; `fail`: the second one fails, and the first notices; `hold`: both wait.
MEET = """
import glob, json, os, socket, sys, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
cards = len([path for path in glob.glob("/dev/nvidia*") if path[11:].isdigit()])
print(json.dumps({"rank": rank, "cards": cards, "secret": os.environ["TOKEN"]}), flush=True)
address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    peer = socket.create_server(address).accept()[0]
    mean = (float(peer.recv(100)) + 1) / size
    peer.sendall(str(mean).encode())
else:
    while True:
        try:
            peer = socket.create_connection(address)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    peer.sendall(b"2.0")
    mean = float(peer.recv(100))
print("mean", mean, flush=True)
open("artefacts/mean", "w").write(str(mean))
if "fail" in sys.argv and rank == 1:
    sys.exit("no gradient")
if sys.argv[1:] and not peer.recv(1):
    sys.exit("the other one is gone")
"""


def settle(host: TestHost, **settings: object) -> None:
    values = json.loads(host.shell(f"cat {SETTINGS} 2>/dev/null || echo {{}}"))
    host.write(SETTINGS, json.dumps({**values, **settings, "slurm_shared_dir": SHARED}))


def set_up(cluster: Cluster) -> Cluster:
    """Give a cluster the settings and the service account that the roles give it."""
    account = "train-classifier"
    for node in cluster.nodes:
        settle(node, slurm_node=True, slurm_host_network=True)
        node.shell(f"usermod -aG docker {account}")
    uid, gid = cluster.nodes[0].shell(f"id -u {account}; id -g {account}").split()
    controller = cluster.controller
    controller.shell(
        f"getent group {account} || groupadd --gid {gid} {account}; id {account} || useradd --uid {uid} --gid {gid} "
        f"--no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin {account}; install -d /var/lib/train-classifier"
    )
    settle(controller, engine="slurm", slurm_host_network=True)
    # As where the shared folder comes by NFS with root_squash: root may do there what everybody may.
    limits = "[Service]\nCapabilityBoundingSet=~CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH\n"
    controller.write("/etc/systemd/system/ssh.service.d/squash.conf", limits)
    controller.shell("systemctl daemon-reload; systemctl restart ssh")
    return cluster


@pytest.fixture(scope="module")
def ready(cluster: Cluster) -> Cluster:
    """The cluster as `set_up` makes it."""
    return set_up(cluster)


class SlurmCaller(Caller):
    """A caller whose host is the submit host of a cluster."""

    def __init__(self, cluster: Cluster, folder: Path, user: str) -> None:
        super().__init__(cluster.controller, folder, user)
        self.cluster = cluster
        account = "train-classifier" if user == "root" else user
        self.state = f"{SHARED}/{account}"
        (self.repo / "artefacts").mkdir()
        self.model("look", LOOK)
        self.model("meet", MEET)

    def submit(self, *words: str, model: str = "look") -> str:
        """Submit the model and return the job's id."""
        done = self.run(*self.train(model, "--detach", *words))
        assert done.returncode == 0, tail(done.stderr)
        return done.stdout.decode().strip()

    def status(self, job: str) -> dict[str, Any]:
        """Return the status as the command shows it."""
        done = self.run("status", job, "--json")
        assert done.returncode == 0, tail(done.stderr)
        status: dict[str, Any] = json.loads(done.stdout)["status"]
        return status

    def training(self, job: str) -> TestHost:
        """Wait until the model has printed its line; return its node."""
        folder = f"{self.state}/jobs/{job}"
        wait_until(lambda: self.host.shell(f"cat {folder}/log.txt 2>/dev/null || :").strip(), 120)
        name = json.loads(self.host.shell(f"cat {folder}/status.json"))["node"]
        return self.cluster.node(name)

    def let_go(self, job: str) -> None:
        """Let a model that holds go on."""
        self.host.shell(f"touch {self.state}/jobs/{job}/checkpoints/go")


@pytest.fixture
def caller(ready: Cluster, tmp_path: Path) -> Iterator[SlurmCaller]:
    caller = SlurmCaller(ready, tmp_path, "trainer")
    yield caller
    ready.controller.shell("systemctl start munge slurmctld; scancel -u trainer", check=False)


def assert_nothing_left(node: TestHost, job: str) -> None:
    wait_until(lambda: not node.containers(f"label=train-classifier.job={job}"), 60)
    folder = f"/home/*/.local/state/train-classifier/jobs/{job}"
    wait_until(lambda: not node.shell(f"ls -d {folder} 2>/dev/null || :"), 60)


def train_with_secret(caller: SlurmCaller, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Train with a secret, a limit and a card; return the manifest, when log and archive are as on any host."""
    monkeypatch.setenv("TOKEN", "s3cretvalue")
    done = caller.run(*caller.train("look", "--secret", "TOKEN", "--memory", "300MiB"))
    assert done.returncode == 0, tail(done.stderr)
    assert b"s3cretvalue" not in done.stdout + done.stderr
    first, end = done.stdout.decode().splitlines()
    assert len(json.loads(first)["nodes"]) == 1 and json.loads(first)["secret"] == "***" and end == "end"
    archive = caller.work / "artefacts.tar.gz"
    assert archived(archive, "job/log.txt") == done.stdout and archived(archive, "artefacts/seen") == b"seen"
    manifest: dict[str, Any] = json.loads(archived(archive, "job/manifest.json"))
    assert manifest["limits"]["memory_bytes"] == 300 << 20 and len(manifest["gpus"]) == 1
    return manifest


@pytest.mark.parametrize("user", ["trainer", "root"])
def test_job_of_a_node_comes_back_as_from_a_plain_host(
    ready: Cluster, tmp_path: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = SlurmCaller(ready, tmp_path, user)
    manifest = train_with_secret(caller, monkeypatch)
    json_output.validate("manifest", manifest)
    entry = manifest["slurm"]
    assert {f"slurm.{name}" for name in entry} == {
        key.removesuffix(".NAME") for key in documented("manifest.json") if key.startswith("slurm.")
    }
    number = json.loads(caller.run("status", "last", "--json").stdout)["status"]["slurm_job"]
    assert (entry["job"], entry["partition"], entry["restarts"]) == (number, "gpu", 0)
    assert entry["account"] is None and entry["tres"]["mem"] == 300 << 20
    assert entry["cpu_time_s"] > 0 and entry["queued_s"] >= 0
    job = json.loads(caller.run("status", "last", "--json").stdout)["id"]
    assert {entry["id"]: entry["exit_code"] for entry in json.loads(caller.run("list", "--json").stdout)}[
        job
    ] == 0
    folder = f"{caller.state}/jobs/{job}"
    status = json.loads(caller.host.shell(f"cat {folder}/status.json"))
    assert (status["launcher"], status["state"]) == ("slurm", "finished") and entry["nodes"] == [
        status["node"]
    ]
    assert_nothing_left(ready.node(status["node"]), job)
    assert caller.host.shell(f"ls {folder}/checkpoints").split() == ["epoch"]
    # Root writes nothing there, and the node removes the secrets that it takes.
    assert caller.host.shell(f"find {SHARED} -mindepth 1 -user root; find {folder} -name '*secrets*'") == ""
    # What a model leaves there, perhaps with a setuid bit, is out of the reach of other accounts.
    assert caller.host.shell(f"stat -c %a {caller.state}").strip() == "700"
    # Again, with the same files, which the submit host still has, and the image that the node had.
    repeated = caller.run("rerun", job, "--secret", "TOKEN")
    assert repeated.returncode == 0, tail(repeated.stderr)
    again = json.loads(archived(caller.work / "artefacts.tar.gz", "job/manifest.json"))
    assert (again["rerun_of"], again["image"]) == (job, manifest["image"])
    assert caller.run("fetch", job, "artefacts/seen").returncode == 0
    assert (caller.work / "artefacts/seen").read_bytes() == b"seen"


def test_waiting_job_is_explained_and_cancelled(caller: SlurmCaller, ready: Cluster) -> None:
    blocker = ready.sbatch("--nodes=2", "--exclusive", "--output=/dev/null", script="#!/bin/sh\nsleep 600\n")
    wait_until(lambda: ready.job(blocker)["JobState"] == "RUNNING", 60)
    job = caller.submit()
    shown = wait_until(lambda: (s := caller.status(job))["message"].startswith("waiting") and s, 60)
    assert "place 1" in shown["message"] and shown["state"] == "submitted"
    assert ready.job(shown["slurm_job"])["JobName"] == f"tc-{job}"
    assert caller.run("cancel", job).returncode == 0
    result = caller.result(job)
    assert result["exit_code"] == 6 and result["reason"].startswith("cancelled by ")
    assert ready.job(shown["slurm_job"])["JobState"] == "CANCELLED"
    done = caller.run("attach", job)
    assert done.returncode == 6, tail(done.stderr)


def test_running_job_is_cancelled_without_a_controller(caller: SlurmCaller, ready: Cluster) -> None:
    job = caller.submit("--", "hold")
    node = caller.training(job)
    number = caller.status(job)["slurm_job"]
    # Into its container, whose command gets bytes as they are, and whose exit status is returned; Slurm says it, too.
    command = ("sh", "-c", "ls /dev/nvidia?; cat; echo error >&2; exit 7")
    process = subprocess.run(
        [*caller.command("exec", job), "--", *command], input=b"\0no line", capture_output=True, timeout=120,
        env=caller.environment(),
    )  # fmt: skip
    assert process.returncode == 7, tail(process.stderr)
    of_srun = f"srun: error: {node.name}: task 0: Exited with exit code 7".encode()
    assert sorted(process.stderr.splitlines()) == [b"error", of_srun]
    card, _, rest = process.stdout.partition(b"\n")
    assert [card.decode()] == json.loads(caller.run("logs", job).stdout.splitlines()[0])["nodes"][:1]
    assert rest == b"\0no line"
    ready.controller.shell("systemctl stop slurmctld")
    assert "Slurm does not answer" in caller.status(job)["message"]
    assert json.loads(caller.run("logs", job).stdout.splitlines()[0])["nodes"]
    assert caller.run("cancel", job).returncode == 0
    result = caller.result(job)
    assert result["exit_code"] == 6 and result["reason"].startswith("cancelled by ")
    assert archived_of(caller, job, "artefacts/seen") == b"seen"
    ready.controller.shell("systemctl start slurmctld")
    assert_nothing_left(node, job)
    # What depends on the job sees how it ended.
    wait_until(lambda: ready.job(number)["ExitCode"] == "6:0", 90)


def archived_of(caller: SlurmCaller, job: str, name: str) -> bytes:
    output = caller.folder / f"{job}.tar.gz"
    caller.run("fetch", job, "--output", output)
    return archived(output, name)


@pytest.mark.full
@pytest.mark.parametrize("user", ["trainer", "root"])
def test_terminal_and_port_of_a_job_on_a_node(ready: Cluster, tmp_path: Path, user: str) -> None:
    caller = SlurmCaller(ready, tmp_path, user)
    job = caller.submit("--network", "none", "--", "hold")
    caller.training(job)
    status, shown = typed(caller.command("shell", job), caller.environment(), b"tty; hostname; exit 3\n")
    assert status == 3 and b"/dev/pts/" in shown, shown
    serve = "echo 42 >answer; python3 -m http.server 6006 --bind 127.0.0.1 >/dev/null 2>&1 &"
    assert caller.run("exec", job, "--", "sh", "-c", serve).returncode == 0
    errors = tmp_path / "errors"
    forward = caller.start("forward", job, f"{free_port()}:6006", errors=errors)
    address = wait_until(lambda: errors.read_text().partition(" ")[0], 60)
    for _ in range(2):
        with urllib.request.urlopen(f"{address}/answer", timeout=120) as answer:
            assert answer.read() == b"42\n"
    forward.send_signal(signal.SIGINT)
    assert forward.wait(60) == 0
    # A shell that nobody leaves does not keep the job.
    left = caller.start("exec", job, "--", "sh", "-c", "echo there; exec sleep 600", errors=errors)
    assert left.stdout is not None and left.stdout.readline() == b"there\n"
    caller.let_go(job)
    assert caller.result(job)["exit_code"] == 0
    number = caller.status(job)["slurm_job"]
    wait_until(lambda: ready.job(number)["JobState"] == "COMPLETED", 90)
    assert left.wait(120) != 0


@pytest.mark.full
def test_controller_is_restarted_while_a_job_runs(caller: SlurmCaller, ready: Cluster) -> None:
    job = caller.submit("--", "hold")
    errors = caller.folder / "errors"
    process = caller.start("attach", job, errors=errors)
    caller.training(job)
    ready.controller.shell("systemctl restart munge slurmctld")
    other = caller.folder / "elsewhere"
    other.mkdir()
    elsewhere = SlurmCaller(ready, other, "trainer")
    second = elsewhere.start("attach", job, errors=other / "errors")
    caller.let_go(job)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, tail(errors.read_bytes())
    assert out.splitlines()[-1] == b"end"
    out_elsewhere, _ = second.communicate(timeout=240)
    assert out_elsewhere == out == archived(elsewhere.work / "artefacts.tar.gz", "job/log.txt")
    archives = [where.work / "artefacts.tar.gz" for where in (caller, elsewhere)]
    assert archives[0].read_bytes() == archives[1].read_bytes()


@pytest.mark.full
def test_controller_that_is_killed_just_after_a_start_runs_no_job_twice(
    caller: SlurmCaller, ready: Cluster
) -> None:
    """It has forgotten the start, unless it was killed late: then it ends the job, and launches it again.

    Where it launches the job on a node that still runs it, it cancels the job and drains the node.
    """
    job = caller.submit("--", "hold")
    folder = f"{caller.state}/jobs/{job}"
    wait_until(lambda: "attempt-" in caller.host.shell(f"ls {folder}"), 120)
    number = json.loads(caller.host.shell(f"cat {folder}/slurm.json"))["number"]
    ready.controller.shell("systemctl kill --signal=KILL slurmctld; systemctl start slurmctld")
    wait_until(lambda: ready.job(number)["JobState"] in ("RUNNING", "CANCELLED"), 120)
    node = caller.training(job)
    label = f"label=train-classifier.job={job}"
    assert sum(len(node.containers(label)) for node in ready.nodes) <= 1
    caller.let_go(job)
    done = caller.run("attach", job)
    if done.returncode == 6:
        assert ready.job(number)["JobState"] == "CANCELLED", tail(done.stderr)
        assert "Duplicate jobid" in ready.controller.shell("sinfo -h -N -o %E")
        ready.controller.shell(f"scontrol update nodename={node.name} state=resume")
    else:
        assert done.returncode == 0, tail(done.stderr)
        lines = done.stdout.decode().splitlines()
        assert lines[-1] == "end" and sum("started again by Slurm" in line for line in lines) <= 1
        wait_until(lambda: ready.job(number)["ExitCode"] == "0:0", 60)
    wait_until(lambda: not any(node.containers(label) for node in ready.nodes), 60)


def test_job_whose_worker_is_killed_is_lost_and_its_container_is_gone(caller: SlurmCaller) -> None:
    job = caller.submit("--", "hold")
    node = caller.training(job)
    node.exec("pkill", "-9", "-f", f"run {caller.state}/jobs/{job}")
    done = caller.run("attach", job)
    assert done.returncode == 10, tail(done.stderr)
    assert b"was killed or could not start on its node" in done.stderr
    wait_until(lambda: not node.containers(f"label=train-classifier.job={job}"), 60)


@pytest.mark.full
def test_job_of_a_node_that_lost_its_network_is_lost(caller: SlurmCaller, ready: Cluster) -> None:
    """Slurm gives the node up after SlurmdTimeout; the worker sees that in the shared folder, and ends."""
    job = caller.submit("--", "hold")
    node = caller.training(job)
    ready.cut_network(node.name)
    try:
        wait_until(lambda: caller.status(job)["state"] == "finished", 400)
        result = caller.result(job)
        assert result["exit_code"] == 10 and "the node of the job failed" in result["reason"]
        assert_nothing_left(node, job)
    finally:
        ready.mend_network(node.name)
        # Otherwise the controller looks for the node every few minutes only.
        node.shell("systemctl restart slurmd")
    wait_until(lambda: ready.node_state(node.name) == "idle")


#: A back end that builds until it is killed.
ENDLESS = """
import time
def build_wheel(folder, settings=None, metadata=None):
    while True:
        time.sleep(0.1)
"""


@pytest.mark.full
def test_job_is_cancelled_while_its_environment_is_built(caller: SlurmCaller, ready: Cluster) -> None:
    package = caller.repo / "endless"
    package.mkdir()
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (package / "pyproject.toml").write_text(project + '[project]\nname = "endless"\nversion = "1"\n')
    (package / "backend.py").write_text(ENDLESS)
    (caller.repo / "requirements.txt").write_text("./endless\n")
    job = caller.submit()
    wait_until(lambda: caller.status(job).get("phase") == "environment", 120)
    node = caller.cluster.node(caller.status(job)["node"])
    wait_until(lambda: node.containers("label=train-classifier.kind=build"), 120)
    assert caller.run("cancel", job).returncode == 0
    assert caller.result(job)["exit_code"] == 6
    assert_nothing_left(node, job)
    wait_until(lambda: ready.job(caller.status(job)["slurm_job"])["ExitCode"] == "6:0", 60)


@pytest.mark.full
@pytest.mark.parametrize("how", ["requeue", "node failure"])
def test_job_that_slurm_starts_again_goes_on_from_its_checkpoints(
    caller: SlurmCaller, ready: Cluster, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "s3cretvalue")
    job = caller.submit("--requeue", "--secret", "TOKEN", "--", "hold")
    node = caller.training(job)
    checkpoint = f"{caller.state}/jobs/{job}/checkpoints/epoch"
    wait_until(lambda: caller.host.shell(f"cat {checkpoint} 2>/dev/null || :") == "1", 60)
    number = caller.status(job)["slurm_job"]
    if how == "requeue":
        ready.controller.shell(f"scontrol requeue {number}")
    else:
        # At once, in place of SlurmdTimeout.
        node.kill_container()
        ready.controller.shell(f"scontrol update nodename={node.name} state=down reason=test")
    try:
        if how == "requeue":
            wait_until(lambda: not node.containers(f"label=train-classifier.job={job}"), 60)
        # Slurm waits two minutes before it starts a job again.
        ready.controller.shell(f"scontrol update jobid={number} starttime=now", check=False)
        wait_until(lambda: caller.host.shell(f"cat {checkpoint}") == "11", 240)
    finally:
        if how != "requeue":
            node.start()
    caller.let_go(job)
    done = caller.run("attach", job)
    assert done.returncode == 0, tail(done.stderr)
    lines = done.stdout.decode().splitlines()
    assert [json.loads(line)["secret"] for line in lines if line.startswith("{")] == ["***", "***"]
    assert (
        len([line for line in lines if "started again by Slurm, on node" in line]) == 1 and lines[-1] == "end"
    )
    assert caller.host.shell(f"find {caller.state}/jobs/{job} -name '*secrets*'") == ""


def members(caller: SlurmCaller, ready: Cluster, job: str) -> list[TestHost]:
    """The nodes on which a container of the job runs."""
    return [node for node in ready.nodes if node.containers(f"label=train-classifier.job={job}")]


def test_models_of_two_nodes_meet(
    caller: SlurmCaller, ready: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "s3cretvalue")
    done = caller.run(*caller.train("meet", "--nodes", "2", "--gpus", "2", "--secret", "TOKEN"))
    assert done.returncode == 0, tail(done.stderr)
    archive = caller.work / "artefacts.tar.gz"
    logs = [done.stdout, archived(archive, "job/log-rank1.txt")]
    for rank, log in enumerate(logs):
        first, last = log.decode().splitlines()
        assert json.loads(first) == {"rank": rank, "cards": 2, "secret": "***"} and last == "mean 1.5"
    assert archived(archive, "job/log.txt") == logs[0] and archived(archive, "artefacts/mean") == b"1.5"
    assert archived(archive, "job/usage-rank1.csv").startswith(b"time_s,")
    manifest = json.loads(archived(archive, "job/manifest.json"))
    assert len(manifest["slurm"]["nodes"]) == 2 and {"MASTER_ADDR", "TF_CONFIG"} <= set(
        manifest["environment_variables"]
    )
    for node in ready.nodes:
        assert_nothing_left(node, manifest["job"])
    folder = f"{caller.state}/jobs/{manifest['job']}"
    assert caller.host.shell(f"find {folder} -name '*secrets*' -o -name ranks") == ""


def test_node_that_fails_ends_the_other_and_is_named(
    caller: SlurmCaller, ready: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "s3cretvalue")
    done = caller.run(*caller.train("meet", "--nodes", "2", "--secret", "TOKEN", "--", "fail"))
    assert done.returncode == 4, tail(done.stderr)
    job = json.loads(caller.run("status", "last", "--json").stdout)["id"]
    result = caller.result(job)
    assert "rank 1 on node2: the model ended with exit status 1" in result["reason"]
    assert b"no gradient" in archived_of(caller, job, "job/log-rank1.txt")
    for node in ready.nodes:
        assert_nothing_left(node, job)


@pytest.mark.full
@pytest.mark.parametrize("how", ["cancel", "worker killed", "requeue"])
def test_both_nodes_end(
    caller: SlurmCaller, ready: Cluster, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("TOKEN", "s3cretvalue")
    words = ("--requeue",) if how == "requeue" else ()
    job = caller.submit("--nodes", "2", "--secret", "TOKEN", *words, "--", "hold", model="meet")
    folder = f"{caller.state}/jobs/{job}"
    wait_until(lambda: "mean 1.5" in caller.host.shell(f"cat {folder}/log.txt 2>/dev/null || :"), 240)
    assert members(caller, ready, job) == ready.nodes
    if how == "worker killed":
        ready.nodes[1].exec("pkill", "-9", "-f", f"run {folder} 1")
        result = caller.result(job)
        assert result["exit_code"] == 10
        assert result["reason"] == "the worker of rank 1 on node2 was killed or could not start"
    else:
        if how == "requeue":
            number = caller.status(job)["slurm_job"]
            ready.controller.shell(f"scontrol requeue {number}")
            wait_until(lambda: not members(caller, ready, job), 60)
            # Slurm waits two minutes before it starts a job again.
            ready.controller.shell(f"scontrol update jobid={number} starttime=now", check=False)
            log = f"cat {folder}/log.txt"
            wait_until(lambda: caller.host.shell(log).count("mean 1.5") == 2, 240)
        assert caller.run("cancel", job).returncode == 0
        assert caller.result(job)["exit_code"] == 6
        for node in ready.nodes:
            assert_nothing_left(node, job)
    # What a killed worker leaves on its disk is removed by the next job of the account there.
    wait_until(lambda: not members(caller, ready, job), 60)


#: Computes the gradient on the numbers of its rank, and what the mean of all ranks must be.
GRADIENTS = """
import copy, torch
import torch.distributed as dist
dist.init_process_group("gloo")
torch.manual_seed(0)
plain = torch.nn.Linear(4, 1)
def gradient(model, rank):
    model(torch.full((8, 4), rank + 1.0)).pow(2).mean().backward()
    return list(model.parameters())[0].grad
expected = sum(gradient(copy.deepcopy(plain), rank) for rank in range(dist.get_world_size())) / dist.get_world_size()
own = gradient(copy.deepcopy(plain), dist.get_rank())
averaged = gradient(torch.nn.parallel.DistributedDataParallel(plain), dist.get_rank())
assert torch.allclose(averaged, expected) and not torch.allclose(own, expected)
open("artefacts/averaged", "w").write("averaged")
print("averaged over", dist.get_world_size(), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.full
def test_torch_averages_gradients_over_two_nodes(
    caller: SlurmCaller, ready: Cluster, base_image: str
) -> None:
    """With the wheels that this machine's pip finds, which may be those without CUDA; the image's Python is 3.11."""
    wheels, image = caller.folder / "wheels", "train-classifier-test-torch"
    pip = [uv_binary(), "tool", "run", "--python", "3.11", "pip", "download", "-q", "-d", str(wheels)]
    run(*pip, "torch==2.13.0", "numpy")
    unpack = "cd /w && python3 - <<'E'\nimport glob, zipfile\nfor name in glob.glob('*.whl'):\n"
    unpack += "    zipfile.ZipFile(name).extractall('/usr/local/lib/python3.11/dist-packages')\nE\n"
    container = run(
        "docker", "run", "-d", "--label", LABEL, "--label", owner_label(), base_image, "sleep", "3600"
    ).stdout.strip()
    try:
        run("docker", "cp", str(wheels), f"{container}:/w")
        run("docker", "exec", container, "sh", "-ec", unpack + "rm -r /w")
        run("docker", "commit", container, image)
    finally:
        run("docker", "rm", "-f", container)
    try:
        for node in ready.nodes:
            node.load_image(image)
    finally:
        run("docker", "rmi", image)
    caller.model("gradients", GRADIENTS)
    done = caller.run(*caller.train("gradients", "--nodes", "2", "--image", image, "--gpu-check", "off"))
    assert done.returncode == 0, tail(done.stderr)
    assert done.stdout.splitlines()[-1] == b"averaged over 2"
    assert b"averaged over 2" in archived(caller.work / "artefacts.tar.gz", "job/log-rank1.txt")


def test_node_refuses_jobs_that_do_not_come_from_slurm(ready: Cluster, tmp_path: Path) -> None:
    caller = Caller(ready.nodes[0], tmp_path)
    caller.model("look", LOOK)
    done = caller.run(*caller.train("look"))
    assert done.returncode == 3 and b"only Slurm starts jobs" in done.stderr, tail(done.stderr)


def test_impossible_request_is_refused_in_words(caller: SlurmCaller) -> None:
    done = caller.run(*caller.train("look", "--gpus", "9"))
    assert done.returncode in (2, 3, 8) and b"no node of this cluster has more than 2" in done.stderr
    done = caller.run(*caller.train("look", "--partition", "nowhere"))
    assert done.returncode == 2 and b"refused the request: Invalid partition" in done.stderr, tail(
        done.stderr
    )
    done = caller.run(*caller.train("look", "--memory", "1TiB"))
    assert done.returncode == 2 and b"no node of this cluster has what the job asks for" in done.stderr


@pytest.mark.full
def test_card_that_its_node_has_no_longer_is_named(caller: SlurmCaller, ready: Cluster) -> None:
    """Slurm gives out what gres.conf says, here until the health check of the roles looks."""
    node, other = ready.nodes
    node.write("/etc/simulated-gpus.json", world(gpus=json.loads(world())["gpus"][:1]))
    ready.controller.shell(f"scontrol update nodename={other.name} state=drain reason=test")
    try:
        done = caller.run(*caller.train("look", "--gpus", "2"))
        assert done.returncode == 8, tail(done.stderr)
        assert (
            b"Slurm gave this job GPU 1 of gres.conf (/dev/nvidia1), and nvidia-smi lists no" in done.stderr
        )
        # The other card still works.
        done = caller.run(*caller.train("look"))
        assert done.returncode == 0, tail(done.stderr)
    finally:
        node.write("/etc/simulated-gpus.json", world())
        ready.controller.shell(f"scontrol update nodename={other.name} state=resume")
    ready.wait_ready()


#: Holds as LOOK does; the first of a sweep fails.
SWEPT = LOOK.replace('"hold" in sys.argv', "True") + 'sys.exit(3 * ("1" in sys.argv))\n'


def test_group_of_jobs_runs_as_many_at_a_time_as_it_may(caller: SlurmCaller, ready: Cluster) -> None:
    """The third starts after the first, although that fails; a cancel of the group ends the others."""
    caller.model("swept", SWEPT)
    words = caller.train("swept", "--gpus", "0", "--sweep", "seed=1,2,3", "--max-parallel", "2", "--detach")
    done = caller.run(*words)
    assert done.returncode == 0, tail(done.stderr)
    group = done.stdout.decode().strip()
    first, second, third = (f"{group}0{number}" for number in (1, 2, 3))
    for job in (first, second):
        caller.training(job)
    answer = json.loads(caller.run("status", group, "--json").stdout)
    shown = [job["status"] for job in answer["jobs"]]
    assert [job["state"] for job in shown] == ["running", "running", "submitted"]
    assert f"afterany:{shown[0]['slurm_job']}" in str(ready.job(shown[2]["slurm_job"])["Dependency"])
    caller.let_go(first)
    assert caller.result(first)["exit_code"] == 4
    caller.training(third)
    assert caller.run("cancel", group).returncode == 0
    attached = caller.run("attach", group, "--json")
    assert attached.returncode == 4, tail(attached.stderr)
    jobs = json.loads(attached.stdout)["jobs"]
    assert [job["exit_code"] for job in jobs] == [4, 6, 6]
    assert all(archived(Path(job["artefacts"]["path"]), "artefacts/seen") == b"seen" for job in jobs)
