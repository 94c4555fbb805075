"""A test host restarts while a job runs: no job is reported as running that is not, and nothing is lost.

The host loses power (every process dies at once), or it shuts down in order. It is a restart of its
container with a boot id of its own; see test_hosts.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.caller import Caller
from hosts.machine import TestHost
from loopback.world import tail, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.host]

LONG = """
import os, time
os.makedirs("artefacts", exist_ok=True)
open("artefacts/partial", "w").write("x")
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lingering(ssh_host: TestHost, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether trainer's user manager outlives his last session."""
    ssh_host.shell(f"loginctl {'enable' if request.param else 'disable'}-linger trainer")
    if request.param:
        ready = '[ -S "/run/user/$(id -u trainer)/bus" ]'
        ssh_host.shell(f"for n in $(seq 2000); do {ready} && exit 0; sleep 0.1; done; exit 1")
    yield request.param
    ssh_host.shell("loginctl enable-linger trainer")


def start(caller: Caller) -> str:
    """Start a job in the background and wait until it trains."""
    caller.model("probe", LONG)
    done = caller.run(*caller.train("probe", "--gpus", "0", "--detach"))
    assert done.returncode == 0, tail(done.stderr)
    job = done.stdout.decode().strip()
    wait_until(lambda: b"up\n" in caller.run("logs", job).stdout, 60)
    return job


def assert_ended(caller: Caller, job: str, outcome: str) -> None:
    """Every command reports this outcome; the log and the artefacts are kept, and nothing else is left."""
    result = caller.result(job)
    assert result["outcome"] == outcome, result
    listed = {row["id"]: row for row in json.loads(caller.run("list", "--all", "--json").stdout)}
    assert (listed[job]["state"], listed[job]["outcome"]) == ("finished", outcome)
    assert caller.run("logs", job).stdout == b"up\n"
    with tarfile.open(caller.work / f"artefacts-{job}.tar.gz") as archive:
        assert {"artefacts/partial", "job/log.txt"} <= set(archive.getnames())
    host = caller.host
    assert host.containers() == []
    assert host.shell("find /var/lib/train-classifier/queue -name '*.json'") == ""
    assert host.exec("pgrep", "-f", f"{caller.state}/workers/", check=False).stdout == ""
    leftovers = host.shell(
        f"cd {caller.state}/jobs/{job}; find . '(' -name workspace -o -name run -o -name '.?*' ')'"
    )
    assert leftovers == ""


def assert_trains_again(caller: Caller) -> None:
    caller.model("again", "open('artefacts/x', 'w').write('x')\nprint('again')\n")
    (caller.repo / "artefacts").mkdir()
    done = caller.run(*caller.train("again", "--gpus", "0"))
    assert (done.returncode, done.stdout) == (0, b"again\n"), tail(done.stderr)


@pytest.mark.parametrize(
    "lingering",
    [pytest.param(True, id="linger", marks=pytest.mark.full), pytest.param(False, id="no-linger")],
    indirect=True,
)
def test_power_loss_ends_job_as_lost(ssh_host: TestHost, lingering: bool, tmp_path: Path) -> None:
    caller = Caller(ssh_host, tmp_path)
    job = start(caller)
    status = json.loads(ssh_host.shell(f"cat {caller.state}/jobs/{job}/status.json"))
    assert status["launcher"] == ("user" if lingering else "setsid")
    ssh_host.reboot(hard=True)
    # The first command that looks at the job finishes it: here `list`.
    (listed,) = [row for row in json.loads(caller.run("list", "--all", "--json").stdout) if row["id"] == job]
    assert (listed["state"], listed["outcome"], listed["exit_code"]) == ("finished", "lost", 10)
    assert "rebooted" in listed["message"]
    attached = caller.run("attach", job)
    assert (attached.returncode, attached.stdout) == (10, b"up\n"), tail(attached.stderr)
    assert b"rebooted" in attached.stderr and b"Traceback" not in attached.stderr
    assert_ended(caller, job, "lost")
    assert_trains_again(caller)


def test_follower_survives_power_loss(ssh_host: TestHost, tmp_path: Path) -> None:
    caller = Caller(ssh_host, tmp_path)
    caller.model("probe", LONG)
    errors = caller.folder / "errors"
    process = caller.start(*caller.train("probe", "--gpus", "0"), errors=errors)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    ssh_host.kill_container()
    wait_until(lambda: b"was cut" in errors.read_bytes(), 120)
    ssh_host.start()
    output, _ = process.communicate(timeout=240)
    messages = errors.read_bytes()
    assert (process.returncode, output) == (10, b""), tail(messages)
    assert b"Connected to" in messages and b"rebooted" in messages and b"Traceback" not in messages
    (job,) = {line.split()[1] for line in messages.decode().splitlines() if line.startswith("job ")}
    assert_ended(caller, job, "lost")


def test_orderly_shutdown_cancels_job(ssh_host: TestHost, tmp_path: Path) -> None:
    caller = Caller(ssh_host, tmp_path, "root")
    job = start(caller)
    assert json.loads(ssh_host.shell(f"cat {caller.state}/jobs/{job}/status.json"))["launcher"] == "system"
    ssh_host.reboot()
    attached = caller.run("attach", job)
    # The unit is stopped before the engine: its worker ends the job in order.
    assert (attached.returncode, attached.stdout) == (6, b"up\n"), tail(attached.stderr)
    assert_ended(caller, job, "cancelled")
    assert_trains_again(caller)


def test_timer_finishes_dead_job(ssh_host: TestHost, tmp_path: Path) -> None:
    """No command looks at the job, and its unit ended with the session: the host's timer finishes it."""
    ssh_host.shell("loginctl disable-linger trainer")
    try:
        caller = Caller(ssh_host, tmp_path)
        job = start(caller)
        pid = json.loads(ssh_host.shell(f"cat {caller.state}/jobs/{job}/status.json"))["pid"]
        ssh_host.exec("kill", "-9", str(pid))
        assert ssh_host.containers(f"label=train-classifier.job={job}")
        ssh_host.shell("systemctl start train-classifier-clean@trainer.service")
        result = json.loads(ssh_host.shell(f"cat {caller.state}/jobs/{job}/result.json"))
        assert (result["outcome"], result["exit_code"]) == ("lost", 10)
        assert caller.run("fetch", job).returncode == 0
        assert_ended(caller, job, "lost")
    finally:
        ssh_host.shell("loginctl enable-linger trainer")
