"""Jobs of people without Docker rights on the nodes: by sudo the service account runs them, for Slurm's job alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hosts.caller import archived
from hosts.cluster import Cluster
from hosts.machine import TestHost
from hosts.play import ROOT
from loopback.world import tail, wait_until
from test_slurm import SETTINGS, SlurmCaller, set_up, settle, train_with_secret

from train_classifier.controller.worker_bundle import INSTALLER, bundle
from train_classifier.worker.slurm_node.person_half import START

pytestmark = [pytest.mark.engine, pytest.mark.host]

ROLE = ROOT / "roles/slurm_node"
SUDOERS = "/etc/sudoers.d/train-classifier"
STATE = "/var/lib/train-classifier/home/.local/state/train-classifier"
PEOPLE = ("ada", "eve")
#: Puts something out of the folders of results, too, in each place to which it can write.
LEAVE = """
import os, sys
open("artefacts/seen", "w").write("seen")
open("/checkpoints/epoch", "a").write("1")
open("elsewhere", "w").write("elsewhere")
print(open("/data/mnist/numbers").read() if os.path.exists("/data/mnist") else sorted(os.listdir("/data")) if os.path.exists("/data") else "no data")
sys.exit(int(sys.argv[1]))
"""


#: A half of a person's own making: it names another person's job, says nothing after that, and reads nothing.
OWN_HALF = """
import socket, subprocess, sys, time
sys.path.insert(0, "/var/lib/train-classifier/worker")
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.slurm_node import person_half, pipe
number, job = sys.argv[1:]
own, other = socket.socketpair()
subprocess.Popen(person_half.command(number), stdin=other, stdout=other)
there = pipe.Pipe(own.makefile("rb"), own.makefile("wb"))
spec = JobSpec(job, "look", Repository("look", "0" * 16), arguments=("hold",))
there.send({"protocol": person_half.PROTOCOL, "spec": spec.to_dict(), "secrets": {}})
model = b"import time\\nwhile True: print('a' * 1000)\\n"
there.send({"path": "look.py", "mode": 0o644})
there.send_block(model)
for _ in range(2):
    there.send({"end": True})
time.sleep(1000)
"""


def let_people_train(node: TestHost) -> None:
    """Do what role slurm_node does for `slurm_node_people` and role training_host for the worker's program."""
    name, files = bundle()
    root = "/var/lib/train-classifier"
    texts = json.dumps({path: content.decode() for path, content in files.items()})
    node.exec("python3", "-I", "-c", INSTALLER, root, name, input=texts)
    node.shell(f"ln -sfn workers/{name} {root}/worker; chgrp docker {SETTINGS}; chmod 0640 {SETTINGS}")
    node.write(str(START), (ROLE / "files/run-job").read_text(), "0755")
    template = jinja2.Template((ROLE / "templates/sudoers.j2").read_text(), keep_trailing_newline=True)
    values: dict[str, Any] = {
        "__slurm_node_run_job": START,
        "slurm_node_people": "people",
        "__slurm_node_accounts": ["train-classifier"],
    }
    node.write(SUDOERS, template.render(values), "0440")
    assert "parsed OK" in node.exec("visudo", "-c").stdout


@pytest.fixture(scope="module")
def ready(cluster: Cluster) -> Cluster:
    """The cluster, on whose nodes ada and eve have no Docker rights."""
    set_up(cluster)
    for host in cluster.hosts:
        accounts = "".join(
            f"id {name} 2>/dev/null || useradd -m -u {5000 + number} -s /bin/bash -G people {name}; "
            for number, name in enumerate(PEOPLE)
        )
        host.shell(f"groupadd -f people; {accounts}")
    controller = cluster.controller
    controller.users = (*controller.users, *PEOPLE)
    controller.authorize()
    for name in PEOPLE:
        controller.write_inventory(name)
    for node in cluster.nodes:
        node.shell("install -d /srv/offered/mnist /srv/closed; echo 42 >/srv/offered/mnist/numbers")
        settle(node, data_roots=["/srv/offered"])
        let_people_train(node)
    controller.shell("install -d /srv/offered/mnist /srv/closed")
    settle(controller, slurm_people="people")
    return cluster


@pytest.fixture
def caller(ready: Cluster, tmp_path: Path) -> Iterator[SlurmCaller]:
    caller = SlurmCaller(ready, tmp_path, "ada")
    caller.model("leave", LEAVE)
    yield caller
    ready.controller.shell("scancel -u ada", check=False)


def as_service(node: TestHost, user: str, *words: str) -> tuple[int, str]:
    """Start the one program by sudo, as a person who says nothing to it; return exit status and answer."""
    # The answer is framed by bytes that are no text.
    script = 'set -o pipefail; "$@" 2>&1 </dev/null | tr -cd "[:print:]"'
    command = ("sudo", "-n", "-u", "train-classifier", "--", str(START), *words)
    done = node.exec("bash", "-c", script, "bash", *command, user=user, check=False)
    return done.returncode, done.stdout


def assert_nothing_left(node: TestHost) -> None:
    wait_until(lambda: not node.containers("label=train-classifier.kind=job"), 60)
    left = f"ls -A {STATE}/people/5000/jobs /var/tmp | grep -v systemd; pgrep -fl 'worker.* [p]erson' || :"
    wait_until(lambda: set(node.shell(left).split()) <= {f"{STATE}/people/5000/jobs:", "/var/tmp:"}, 60)


def test_job_comes_back_as_with_docker_rights(
    caller: SlurmCaller, ready: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = train_with_secret(caller, monkeypatch)
    shown = json.loads(caller.run("status", "last", "--json").stdout)
    assert manifest["job"] == shown["id"] and manifest["slurm"]["job"] == shown["status"]["slurm_job"]
    entry = manifest["slurm"]
    assert (entry["partition"], entry["cluster"], entry["tres"]["mem"]) == ("gpu", "test", 300 << 20)
    folder = f"{caller.state}/jobs/{shown['id']}"
    assert caller.host.shell(f"cat {folder}/checkpoints/epoch") == "1"
    assert caller.host.shell(f"find {folder} ! -user ada; find {folder} -name '*secrets*'") == ""
    assert_nothing_left(ready.node(shown["status"]["node"]))

    # Its end, data, what it leaves elsewhere, and its checkpoints for the next one.
    words = ("--resume", shown["id"], "--data", "/srv/offered/mnist:mnist", "--gpus", "0")
    done = caller.run(*caller.train("leave", *words, "--", "3"))
    assert done.returncode == 4 and done.stdout == b"42\n\n", tail(done.stderr)
    job = json.loads(caller.run("status", "last", "--json").stdout)["id"]
    assert caller.host.shell(f"cat {caller.state}/jobs/{job}/checkpoints/epoch") == "11"
    done = caller.run(*caller.train("leave", "--gpus", "0", "--", "0"))
    assert done.returncode == 0 and b"outside artefacts/" in done.stderr, tail(done.stderr)
    assert caller.run("fetch", "last", "--output", caller.work / "all.tar.gz").returncode == 0
    assert archived(caller.work / "all.tar.gz", "workspace/elsewhere") == b"elsewhere"


def test_what_needs_docker_rights_is_refused_in_words(caller: SlurmCaller) -> None:
    done = caller.run(*caller.train("leave", "--data", "/srv/closed:mnist", "--gpus", "0", "--", "0"))
    assert done.returncode == 2, tail(done.stderr)
    assert b"offers only what lies below /srv/offered to accounts without Docker rights" in done.stderr
    done = caller.run(*caller.train("look", "--requeue", "--gpus", "0"))
    assert done.returncode == 2 and b"--requeue needs Docker rights" in done.stderr, tail(done.stderr)


def test_sudo_starts_the_callers_own_job_and_nothing_else(caller: SlurmCaller, ready: Cluster) -> None:
    job = caller.submit("--", "hold")
    node = caller.training(job)
    number = caller.status(job)["slurm_job"]
    # By the id containers are found and removed: hers, which others know, is none of the node's.
    assert not node.containers(f"label=train-classifier.job={job}")
    # Another person, and a second start.
    assert "is not yours" in as_service(node, "eve", number)[1]
    assert "is being run already" in as_service(node, "ada", number)[1]
    other = next(other for other in ready.nodes if other is not node)
    assert "does not run on" in as_service(other, "ada", number)[1]
    # Somebody who is not of the group, other arguments, programs, accounts and variables.
    for user, words in (
        ("trainer", (number,)),
        ("ada", ()),
        ("ada", (number, number)),
        ("ada", (f"{number} {number}",)),
        ("ada", (f"{number}_1",)),
        ("ada", (f"-{number}",)),
        ("ada", (f"{number}\n",)),
    ):
        status, answer = as_service(node, user, *words)
        assert status == 1 and "sudo:" in answer, (user, words, answer)
    for command in (
        f"sudo -n -u train-classifier /bin/sh -c {START}",
        f"sudo -n -u train-classifier -s {START} {number}",
        f"sudo -n -u root {START} {number}",
        f"sudo -n -g docker {START} {number}",
        f"sudo -n -E -u train-classifier {START} {number}",
        f"sudo -n -u train-classifier TRAIN_CLASSIFIER_HOST_JSON=/tmp/x {START} {number}",
        f"cd /tmp && sudo -n -u train-classifier ./run-job {number}",
    ):
        done = node.exec("sh", "-c", f"{command} </dev/null", user="eve", check=False)
        assert done.returncode == 1 and "sudo:" in done.stdout + done.stderr, (command, done)
    listed = node.exec("sudo", "-n", "-l", user="eve").stdout.partition("may run the following")[2]
    lines = [line.strip() for line in listed.splitlines()[1:] if line.strip()]
    assert lines == [rf"(train-classifier) NOSETENV: NOPASSWD: {START} ^[0-9]+$"], lines
    # Neither state nor settings nor the engine are open to people.
    for path in (f"{STATE}/people", f"{STATE}/people/5000/jobs", SETTINGS, "/run/docker.sock"):
        for user in PEOPLE:
            assert node.exec("head", "-c1", path, user=user, check=False).returncode == 1
            assert node.exec("ls", path + "/", user=user, check=False).returncode != 0
    entered = caller.run("exec", job, "--", "true")
    assert b"needs Docker rights on the node" in entered.stderr and entered.returncode != 0, entered
    # Her own job ends by her own cancel.
    assert caller.run("cancel", job).returncode == 0
    result = caller.result(job)
    assert result["exit_code"] == 6 and result["reason"].startswith("cancelled by ")
    output = caller.folder / "cancelled.tar.gz"
    caller.run("fetch", job, "--output", output)
    assert archived(output, "artefacts/seen") == b"seen"
    assert_nothing_left(node)
    assert "does not run" in as_service(node, "ada", number)[1]


def test_half_from_elsewhere_ends_with_slurms_job_and_disturbs_no_other(
    caller: SlurmCaller, ready: Cluster
) -> None:
    """Its process is none of Slurm's job, which alone gives it a card."""
    job = caller.submit("--", "hold")
    node = caller.training(job)
    (hers,) = node.containers("label=train-classifier.kind=job")
    options = ("--job-name=tc-20260101-000000-00000000", "--gres=gpu:1", f"--nodelist={node.name}")
    script = "#!/bin/sh\nexec sleep 1000\n"
    number = ready.sbatch(*options, "--output=/dev/null", user="eve", script=script)
    wait_until(lambda: ready.job(number)["JobState"] == "RUNNING", 60)
    node.write("/tmp/own-half.py", OWN_HALF)
    node.shell(f"setsid -f python3 /tmp/own-half.py {number} {job} >/dev/null 2>&1 </dev/null", user="eve")
    label = f"label=train-classifier.slurm={number}"
    wait_until(lambda: node.containers("label=train-classifier.kind=job", label), 120)
    ready.controller.exec("scancel", number, user="eve")
    wait_until(lambda: not node.containers(label), 60)
    pattern = f"workers/.* person {number}$"
    wait_until(lambda: node.exec("pgrep", "-f", pattern, check=False).returncode == 1, 60)
    assert node.containers("label=train-classifier.kind=job") == [hers]
    assert caller.run("cancel", job).returncode == 0
    assert caller.result(job)["exit_code"] == 6


@pytest.mark.parametrize("victim", ["person", "service"])
def test_half_that_is_killed_leaves_nothing_in_use(caller: SlurmCaller, ready: Cluster, victim: str) -> None:
    job = caller.submit("--gpus", "2", "--", "hold")
    node = caller.training(job)
    number = caller.status(job)["slurm_job"]
    pattern = f"run {caller.state}/jobs/{job}" if victim == "person" else f"workers/.* person {number}$"
    node.exec("pkill", "-9", "-f", pattern)
    done = caller.run("attach", job)
    assert done.returncode == 10, tail(done.stderr)
    wait_until(lambda: not node.containers("label=train-classifier.kind=job"), 60)
    wait_until(lambda: node.exec("pgrep", "-f", " person ", check=False).returncode == 1, 60)
    # The cards are free, and the next job of hers removes what is left of this one.
    done = caller.run(*caller.train("leave", "--gpus", "2", "--", "0"))
    assert done.returncode == 0, tail(done.stderr)
