"""The playbooks update, verify and teardown on a host that trains: a running job is waited for, never cut."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import fleet
from hosts.caller import Caller
from hosts.machine import TestHost
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment
from loopback.installed import build_collection, install_collection
from loopback.world import tail, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.host]

LONG = """
import os, time
while not os.path.exists("/checkpoints/end"):
    time.sleep(0.1)
os.makedirs("artefacts", exist_ok=True)
open("artefacts/weights", "w").write("trained")
"""


def start(playbook: str, inventory: Path, *options: str, **variables: object) -> subprocess.Popen[str]:
    """Start one of our playbooks for all hosts of an inventory; its standard output has everything."""
    variables = {f"{playbook}_hosts": "all", **variables}
    return subprocess.Popen(
        [ANSIBLE_PLAYBOOK, "-i", inventory, "-e", json.dumps(variables), ROOT / "playbooks" / f"{playbook}.yml", *options],
        env=ansible_environment(PYTHONUNBUFFERED="1"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(playbook: str, inventory: Path, *options: str, **variables: object) -> tuple[int, str]:
    process = start(playbook, inventory, *options, **variables)
    printed, _ = process.communicate(timeout=600)
    return process.returncode, printed


@pytest.fixture
def job(ssh_host: TestHost, tmp_path: Path) -> Iterator[tuple[Caller, subprocess.Popen[bytes], str]]:
    """The caller, the training that runs on the host, and its container."""
    caller = Caller(ssh_host, tmp_path)
    caller.model("long", LONG)
    training = caller.start(*caller.train("long", "--gpus", "0"), errors=tmp_path / "errors")
    try:
        running = ("ps", "-q", "--filter", "label=train-classifier.kind=job")
        yield caller, training, wait_until(lambda: ssh_host.docker(*running).strip(), 120)
    finally:
        ssh_host.shell("docker ps -q --filter label=train-classifier.kind=job | xargs -r docker rm -f")
        training.kill()
        training.wait()
        ssh_host.shell("rm -f /var/lib/train-classifier/drain")


def test_update_waits_for_a_running_job_and_teardown_refuses(
    ssh_host: TestHost, base_image: str, tmp_path: Path, job: tuple[Caller, subprocess.Popen[bytes], str]
) -> None:
    caller, training, container = job

    # The job is found without its container, too: it has none while it builds and packs.
    script = (ROOT / "roles/host_check/files/jobs.py").read_text().replace("/var/run/docker.sock", "/nowhere")
    jobs = json.loads(ssh_host.exec("python3", "-I", "-", input=script).stdout)["jobs"]
    name = '{{index .Config.Labels "train-classifier.job"}}'
    assert jobs == [ssh_host.docker("inspect", "-f", name, container).strip()]

    status, printed = run("teardown", ssh_host.inventory())
    assert status != 0 and "1 job(s) run (" in printed and "nothing was touched" in printed, printed
    assert re.search(r"changed=0 .*failed=1", printed), printed

    settings = {**fleet.role_variables(base_image), "host_check_drain_poll_s": 1}
    update = start("update", ssh_host.inventory(), **settings)
    assert update.stdout is not None
    lines: list[str] = []
    for line in update.stdout:
        lines.append(line)
        if "RETRYING" in line and "Wait for running jobs" in line:
            break
    assert update.poll() is None and not [line for line in lines if "docker_engine" in line], "".join(lines)

    # A draining host accepts no other job.
    (tmp_path / "other").mkdir()
    other = Caller(ssh_host, tmp_path / "other")
    other.model("long", LONG)
    refused = other.run(*other.train("long", "--gpus", "0"))
    assert refused.returncode != 0 and b"drained by playbooks/update.yml" in refused.stderr, tail(
        refused.stderr
    )

    query = '{{range .Mounts}}{{if eq .Destination "/checkpoints"}}{{.Source}}{{end}}{{end}}'
    ssh_host.write(f"{ssh_host.docker('inspect', '-f', query, container).strip()}/end", "")
    lines += update.stdout.readlines()
    assert update.wait(timeout=600) == 0, "".join(lines)[-6000:]
    assert training.wait(timeout=240) == 0, (tmp_path / "errors").read_text()
    assert (caller.work / "artefacts.tar.gz").exists()
    assert ssh_host.exec("test", "-e", "/var/lib/train-classifier/drain", check=False).returncode == 1

    report = tmp_path / "report.json"
    status, printed = run("verify", ssh_host.inventory(), host_check_json=str(report))
    assert status == 0, printed
    assert json.loads(report.read_text())


def test_failed_host_ends_the_update(ssh_host: TestHost, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.ini"
    others = ssh_host.inventory().read_text()
    inventory.write_text(
        others.replace("[training]\n", "[training]\nbroken ansible_host=127.0.0.1 ansible_port=1\n")
    )
    status, printed = run("update", inventory)
    assert status != 0
    assert "broken" in printed and ssh_host.name not in printed, printed
    assert ssh_host.exec("test", "-e", "/var/lib/train-classifier/drain", check=False).returncode == 1


@pytest.fixture(scope="module")
def other_project(
    ssh_host: TestHost, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, dict[str, object]], tuple[int, str]]:
    """Runs a playbook in a folder that has the collection, with an Ansible that has not our Python package."""
    folder = tmp_path_factory.mktemp("project")
    program = install_collection(build_collection(folder), folder)

    def run_there(playbook: str, variables: dict[str, object]) -> tuple[int, str]:
        command = [program, "-i", ssh_host.inventory(), "-e", json.dumps(variables), playbook]
        settings = {
            "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
        }
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "VIRTUAL_ENV") and not name.startswith("ANSIBLE_")
        }
        done = subprocess.run(
            command, cwd=folder, env={**environment, **settings}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    return run_there


def test_unproven_host_gets_no_runner(
    ssh_host: TestHost, base_image: str, other_project: Callable[[str, dict[str, object]], tuple[int, str]]
) -> None:
    """Also: the collection alone is enough for site.yml."""
    settings = {
        **fleet.role_variables(base_image), "host_check_strict": False, "host_check_deep": False, "provision_hosts": "all",
        "github_runner_repository": "acme/widgets", "github_runner_pat": "x", "github_runner_url": "http://127.0.0.1:9",
    }  # fmt: skip
    ssh_host.write("/var/lib/train-classifier/drain", "new power supply\n")
    try:
        status, printed = other_project("incuvers.train_classifier.site", settings)
    finally:
        ssh_host.shell("rm -f /var/lib/train-classifier/drain")
    assert status == 0, printed[-6000:]
    assert "0 of 1 hosts ready" in printed and "gets no runner, since it is not proven to train" in printed
    assert "Ask GitHub" not in re.sub(r"^TASK .*\nskipping: .*$", "", printed, flags=re.M), printed[-6000:]
    # The facts were gathered once for all roles.
    gathered = re.findall(r"^TASK \[.*?[Gg]ather.* [Ff]acts?.*\n(?:ok|changed): ", printed, re.M)
    assert len(gathered) == 1, gathered


def test_roles_of_the_collection_by_their_full_names(
    ssh_host: TestHost, tmp_path: Path, other_project: Callable[[str, dict[str, object]], tuple[int, str]]
) -> None:
    """In a playbook of somebody else: filters, modules, action plugins and the package are the collection's."""
    names = ("host_check", "training_job")
    (tmp_path / "checkout").mkdir()
    caller = Caller(ssh_host, tmp_path / "checkout")
    caller.model("small", "open('artefacts/weights', 'w').write('x')")
    plays = [
        {"hosts": "all", "gather_facts": False, "roles": [f"incuvers.train_classifier.{name}"]}
        for name in names
    ]
    (tmp_path / "mine.yml").write_text(json.dumps(plays))
    variables = {
        "host_check_deep": False, "host_check_strict": False, "training_job_repository": str(caller.repo),
        "training_job_model": "small", "training_job_gpus": "0", "training_job_output": str(caller.work / "artefacts.tar.gz"),
    }  # fmt: skip
    status, printed = other_project(str(tmp_path / "mine.yml"), variables)
    assert status == 0, printed[-6000:]
    assert "hosts ready for training" in printed and (caller.work / "artefacts.tar.gz").exists()


#: For each tag of site.yml the roles of which it runs tasks, and a text of the last task.
TAGS = {
    "docker_engine": ({"docker_engine"}, "Verify | "),
    "nvidia_driver": ({"nvidia_driver"}, "Report that there is no card"),
    "nvidia_container_toolkit": ({"nvidia_container_toolkit"}, "Report that there is no card"),
    "training_host": ({"training_host"}, "Verify | "),
    "github_runner": ({"github_runner", "host_check"}, "gets no runner, since it is not proven to train"),
}


@pytest.mark.parametrize(
    "tag", [pytest.param(tag, marks=() if tag == "github_runner" else pytest.mark.full) for tag in TAGS]
)
def test_tag_of_a_role_runs_that_role_alone(ssh_host: TestHost, base_image: str, tag: str) -> None:
    settings = {
        **fleet.role_variables(base_image), "host_check_strict": False, "host_check_deep": False,
        "github_runner_repository": "acme/widgets", "github_runner_pat": "x", "github_runner_url": "http://127.0.0.1:9",
    }  # fmt: skip
    ssh_host.write("/var/lib/train-classifier/drain", "new power supply\n")
    try:
        status, printed = run("provision", ssh_host.inventory(), "--tags", tag, **settings)
    finally:
        ssh_host.shell("rm -f /var/lib/train-classifier/drain")
    assert status == 0, printed[-6000:]
    tasks = re.findall(r"^TASK \[(\w+) : (.*?)\] \**$", printed, re.M)
    roles = {role for role, name in tasks if not name.startswith("Validating arguments")}
    # Roles include parts of others: the driver's inspection is one of the checks.
    expected, last = TAGS[tag]
    assert expected <= roles and not (roles & set(TAGS) - expected - {"nvidia_driver"}), printed[-6000:]
    assert last in printed, printed[-6000:]


@pytest.mark.full
def test_unchecked_host_gets_no_runner(ssh_host: TestHost, base_image: str) -> None:
    settings = {
        **fleet.role_variables(base_image), "provision_check": False, "github_runner_repository": "acme/widgets",
        "github_runner_pat": "x", "github_runner_url": "http://127.0.0.1:9",
    }  # fmt: skip
    status, printed = run("provision", ssh_host.inventory(), **settings)
    assert status == 0 and "gets no runner, since it is not proven to train" in printed, printed[-6000:]
    status, printed = run("provision", ssh_host.inventory(), provision_runner_unproven=True, **settings)
    assert status != 0 and "http://127.0.0.1:9" in printed, printed[-6000:]


def test_update_skips_host_drained_by_hand(ssh_host: TestHost) -> None:
    ssh_host.write("/var/lib/train-classifier/drain", "new power supply\n")
    try:
        status, printed = run("update", ssh_host.inventory())
        assert ssh_host.shell("cat /var/lib/train-classifier/drain") == "new power supply\n"
    finally:
        ssh_host.shell("rm -f /var/lib/train-classifier/drain")
    assert status != 0 and "was taken out of service by somebody else (new power supply)" in printed, printed
    assert re.search(r"changed=0 .*failed=1", printed), printed
