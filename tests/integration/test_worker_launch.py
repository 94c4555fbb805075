"""Launchers on a systemd host: system unit for root, user unit with linger, setsid without; and an engine that restarts."""

import base64
import io
import json
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hosts.machine import TestHost, state_dir
from loopback.world import wait_until
from worker_support import IMAGE

from train_classifier.controller.worker_bundle import bundle
from train_classifier.core.job import SCHEMA, new_job_id

pytestmark = [pytest.mark.engine, pytest.mark.host]
#: Runs inside the host: prepares a job, pushes one file by rsync, submits. Prints the answer.
START = r"""
import base64, json, os, subprocess, sys, tempfile, zlib
program, spec, text, secrets = json.load(sys.stdin)
entry = ["/usr/bin/python3", "-I", program]
def call(**request):
    answer = json.loads(subprocess.run(entry, input=json.dumps(request).encode(), stdout=subprocess.PIPE, check=True).stdout)
    if "error" in answer:
        sys.exit(json.dumps(answer))
    return answer
with tempfile.TemporaryDirectory() as folder:
    os.mkdir(folder + "/model")
    open(folder + "/model/__main__.py", "w").write(text)
    open(folder + "/rsh", "w").write('shift\nexec sh -c "$*"\n')
    job = call(verb="prepare", spec=spec, files=base64.b64encode(zlib.compress(b"model/__main__.py\0")).decode())["job"]
    receive = " ".join([*entry, "receive", job, "--", "rsync"])
    subprocess.run(["rsync", "-lptS", "--files-from=-", "--from0", "-e", "sh " + folder + "/rsh", "--rsync-path", receive,
                    folder + "/", "host:."], input=b"model/__main__.py\0", check=True)
print(json.dumps(call(verb="submit", id=spec["id"], secrets=secrets)))
"""
LONG = "open('artefacts/partial','w').write('x')\nprint('up', flush=True)\nimport time\ntime.sleep(600)\n"


class Account:
    """One account of a test host."""

    def __init__(self, host: TestHost, user: str) -> None:
        self.host = host
        self.user = user
        self.state = state_dir(user)
        self.program = f"{self.state}/workers/{bundle()[0]}"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in bundle()[1].items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))
        unpack = 'mkdir -p "$1"; base64 -d | tar -x --no-same-owner -C "$1"'
        text = base64.b64encode(packed.getvalue()).decode()
        host.exec("sh", "-ec", unpack, "sh", self.program, user=user, input=text)

    def call(self, **request: Any) -> dict[str, Any]:
        done = self.host.exec(
            "/usr/bin/python3", "-I", self.program, user=self.user, input=json.dumps(request)
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert "error" not in answer, answer
        return answer

    def start(self, text: str, secrets: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        spec = {
            "schema": SCHEMA, "id": new_job_id(), "model": "model", "gpus": 0, "image": IMAGE, "grace_s": 2.0,
            "repository": {"name": "repo", "key": "0123456789abcdef", "commit": None, "dirty": None},
            "secrets": sorted(secrets or {}), **changes,
        }  # fmt: skip
        done = self.host.exec(
            "/usr/bin/python3", "-c", START, user=self.user,
            input=json.dumps([self.program, spec, text, secrets or {}]),
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def file(self, job: str, name: str) -> str:
        return self.host.exec("cat", f"{self.state}/jobs/{job}/{name}", check=False).stdout

    def until(self, job: str, condition: str) -> None:
        """Wait, inside the host, for a condition of the shell in the job's folder."""
        script = f"for n in $(seq 2400); do {condition} && exit 0; sleep 0.1; done; exit 1"
        done = self.host.exec("sh", "-c", f"cd {self.state}/jobs/{job}; {script}", check=False)
        assert done.returncode == 0, self.file(job, "status.json")

    def until_log(self, job: str, line: str) -> dict[str, Any]:
        self.until(job, f"grep -qsx '{line}' log.txt")
        status: dict[str, Any] = json.loads(self.file(job, "status.json"))
        return status

    def result(self, job: str, ask_worker: bool = True) -> dict[str, Any]:
        """Wait for the result; the worker, if it is asked, would finish a dead job."""
        end = time.monotonic() + 240
        while ask_worker and not self.file(job, "result.json"):
            assert time.monotonic() < end, self.file(job, "status.json")
            self.call(verb="read", id=job, wait=2, offset=1 << 40)
        self.until(job, "test -s result.json")
        stored: dict[str, Any] = json.loads(self.file(job, "result.json"))
        return stored


@pytest.fixture(scope="module")
def prepared(systemd_host: TestHost) -> Iterator[TestHost]:
    systemd_host.load_image(IMAGE)
    before = systemd_host.exec("cat", "/var/lib/train-classifier/host.json", check=False).stdout
    systemd_host.shell("install -d -m 2770 -o root -g docker /var/lib/train-classifier/queue")
    systemd_host.write(
        "/var/lib/train-classifier/host.json",
        json.dumps({"schema": 1, "images": {"cpu": IMAGE, "gpu": IMAGE}, "service_user": "nobody",
                    "disk_floor_bytes": 1 << 20}),
    )  # fmt: skip
    yield systemd_host
    systemd_host.shell("loginctl enable-linger trainer")
    if before:
        systemd_host.write("/var/lib/train-classifier/host.json", before)
    else:
        systemd_host.shell("rm -f /var/lib/train-classifier/host.json")


@pytest.fixture(params=["system", "user", "setsid"])
def account(request: pytest.FixtureRequest, prepared: TestHost) -> Iterator[tuple[Account, str]]:
    user = "root" if request.param == "system" else "trainer"
    prepared.shell("usermod -aG docker trainer")
    if user == "trainer":
        prepared.shell(f"loginctl {'enable' if request.param == 'user' else 'disable'}-linger trainer")
        if request.param == "user":
            prepared.shell(
                'for n in $(seq 2000); do [ -S "/run/user/$(id -u trainer)/bus" ] && exit 0; sleep 0.1; done; exit 1'
            )
    yield Account(prepared, user), request.param
    if request.param == "user":
        prepared.shell("loginctl disable-linger trainer")


def test_job_runs_with_each_launcher(account: tuple[Account, str]) -> None:
    user, launcher = account
    answer = user.start(
        "import os\nprint(os.environ['TOKEN'])\nopen('artefacts/x','w').write('x')", {"TOKEN": "hunter2"}
    )
    assert answer["launcher"] == launcher
    assert answer.get("unit") == (None if launcher == "setsid" else f"tc-job-{answer['id']}.service")
    result = user.result(answer["id"])
    assert result["outcome"] == "trained", result
    assert user.file(answer["id"], "log.txt") == "***\n"
    assert user.host.containers(f"label=train-classifier.job={answer['id']}") == []
    # The journal and the units never saw the secret.
    assert "hunter2" not in user.host.shell("journalctl --no-pager -o cat")
    # The result is written before the unit's stop hook has run.
    units = "systemctl list-units --all --no-legend 'tc-job-*'"
    wait_until(lambda: user.host.shell(units).strip() == "", 30)


def test_unit_finishes_job_of_killed_worker(account: tuple[Account, str]) -> None:
    user, launcher = account
    job = user.start(LONG)["id"]
    status = user.until_log(job, "up")
    user.host.exec("kill", "-9", str(status["pid"]))
    result = user.result(job, ask_worker=launcher == "setsid")
    assert (result["outcome"], result["exit_code"]) == ("lost", 10)
    if launcher != "setsid":
        assert "signal" in result["reason"], result["reason"]
    assert user.file(job, "log.txt") == "up\n" and result["unpacked"]["why"] == "lost"
    # Its unit has packed nothing: that may take longer than systemd waits.
    assert user.call(verb="pack", id=job)["result"]["archive"]
    assert user.host.containers(f"label=train-classifier.job={job}") == []


def test_stopped_unit_cancels_job(account: tuple[Account, str]) -> None:
    user, launcher = account
    job = user.start(LONG)["id"]
    status = user.until_log(job, "up")
    if launcher == "system":
        user.host.exec("systemctl", "stop", status["unit"])
    elif launcher == "user":
        user.host.shell(
            f"XDG_RUNTIME_DIR=/run/user/$(id -u) systemctl --user stop {status['unit']}", user="trainer"
        )
    else:
        user.host.exec("kill", str(status["pid"]))
    result = user.result(job)
    assert (result["outcome"], result["exit_code"]) == ("cancelled", 6) and "SIGTERM" in result["reason"]
    assert result["archive"] and user.host.containers(f"label=train-classifier.job={job}") == []


@pytest.mark.parametrize("live_restore", [True, False])
def test_job_survives_engine_restart_only_with_live_restore(prepared: TestHost, live_restore: bool) -> None:
    user = Account(prepared, "root")
    before = prepared.exec("cat", "/etc/docker/daemon.json", check=False).stdout
    settings = {**(json.loads(before) if before else {}), "live-restore": live_restore}
    prepared.write("/etc/docker/daemon.json", json.dumps(settings))
    prepared.shell("systemctl restart docker; systemctl reset-failed docker")
    try:
        text = (
            "import os, time\nfor n in range(80):\n    print('line', n, flush=True)\n    time.sleep(0.1)\n"
            "while not os.path.exists('/checkpoints/go'):\n    time.sleep(0.1)\n"
            "open('artefacts/x','w').write('x')\n"
        )
        job = user.start(text)["id"]
        user.until_log(job, "line 5")
        prepared.shell("systemctl restart docker; systemctl reset-failed docker")
        prepared.shell(f"touch $(find {user.state}/jobs/{job} -name checkpoints)/go")
        result = user.result(job)
        log = user.file(job, "log.txt")
        if live_restore:
            assert result["outcome"] == "trained", result
            assert log == "".join(f"line {n}\n" for n in range(80))
        else:
            assert (result["outcome"], result["exit_code"]) == ("lost", 10), (result["reason"], result)
            assert "engine was restarted" in result["reason"] and log.startswith("line 0\n")
        assert result["archive"] and prepared.containers(f"label=train-classifier.job={job}") == []
    finally:
        if before:
            prepared.write("/etc/docker/daemon.json", before)
        else:
            prepared.shell("rm /etc/docker/daemon.json")
        prepared.shell("systemctl restart docker; systemctl reset-failed docker")
