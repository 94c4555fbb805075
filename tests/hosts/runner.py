"""A systemd host in a container with the role github_runner, against the API stand-in that remembers."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from github_api.archive import make_archive
from github_api.standin import StandIn

from hosts.machine import LABEL, SYSTEMD_OPTIONS, make_image, process_start, run
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment

REPO = "repos/acme/widgets"
ARCHIVE = "actions-runner-linux-x64-2.336.0.tar.gz"


class Run:
    """One ansible-playbook: its status, its output, and how many tasks changed something."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.rc = done.returncode
        self.out = done.stdout + done.stderr

    @property
    def changed(self) -> int:
        recap = [line for line in self.out.splitlines() if line.startswith("gpu1 ")]
        return int(recap[-1].split("changed=")[1].split()[0])

    def good(self) -> Run:
        assert self.rc == 0, self.out
        return self

    def refused(self, *says: str) -> Run:
        assert self.rc != 0, self.out
        output = " ".join(self.out.replace("\\n", " ").split())
        for words in says:
            assert words in output, self.out
        assert "Traceback" not in self.out, self.out
        return self


class Host:
    """A systemd container, and the role run on it."""

    def __init__(self, name: str, folder: Path, standin: StandIn, gateway: str) -> None:
        self.name, self.folder, self.standin = name, folder, standin
        self.url = f"http://{gateway}:{standin.port}"

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    def authorize(self) -> None:
        """Let our key in, once sshd has its own."""
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        public = self.key.with_suffix(".pub").read_text().strip()
        self.sh(f"umask 77; mkdir -p /root/.ssh; echo '{public}' >/root/.ssh/authorized_keys")
        self.wait("sshd runs", lambda: self.sh("systemctl is-active ssh", check=False) == "active")

    def sh(self, script: str, check: bool = True) -> str:
        done = subprocess.run(
            ["docker", "exec", "-i", self.name, "bash", "-c", script],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def role(self, tasks: str = "main", *options: str, role: str = "github_runner", **variables: Any) -> Run:
        """Run the role with these variables (beside those that name the stand-in)."""
        arguments = {
            "github_runner_url": self.url,
            "github_runner_repository": "acme/widgets",
            "github_runner_pat": "pat-good",
            "github_runner_name": "gpu",
            "github_runner_restart_delay": 1,
            **variables,
        }
        values = self.folder / "vars.json"
        values.write_text(json.dumps(arguments))
        include = {"name": role, "tasks_from": tasks}
        task = {"name": "Run the role", "ansible.builtin.include_role": include}
        playbook = self.folder / "play.yml"
        # A file of tasks that is run alone has no block around it that says how to ask GitHub.
        defaults = {"incuvers.train_classifier.github_runner_request": "{{ __github_runner_api }}"}
        play = {"hosts": "gpu1", "gather_facts": False, "module_defaults": defaults, "tasks": [task]}
        playbook.write_text(json.dumps([play]))
        # By ssh, as the engine takes longer for each task and each file; without PAM, which would start a user manager of root's.
        host = {
            "ansible_host": self.name,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-F /dev/null -o ProxyCommand='docker exec -i {self.name} /usr/sbin/sshd -i -o UsePAM=no' "
            "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        inventory = self.folder / "hosts.json"
        inventory.write_text(json.dumps({"all": {"hosts": {"gpu1": host}}}))
        environment = ansible_environment(ANSIBLE_LOCAL_TEMP=str(self.folder / "tmp"))
        command = [ANSIBLE_PLAYBOOK, "-i", inventory, playbook, "-e", f"@{values}", *options]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500
        )
        if done.returncode:
            done.stdout += self.sh("journalctl --no-pager -n 40", check=False)
        return Run(done)

    def runners(self, scope: str = REPO) -> dict[str, dict[str, Any]]:
        with self.standin.state.lock:
            return {r["name"]: dict(r) for r in self.standin.state.runners.get(scope, {}).values()}

    def labels(self, name: str) -> set[str]:
        return {label["name"] for label in self.runners()[name]["labels"]}

    def wait(self, event: str, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 240
        while not holds():
            assert time.monotonic() < end, (
                f"never: {event}\n{self.sh('journalctl --no-pager -n 40', check=False)}"
            )
            time.sleep(0.5)

    def online(self, *names: str) -> None:
        self.wait(
            f"{names} online", lambda: all(self.runners().get(n, {}).get("status") == "online" for n in names)
        )

    def start_job(self, script: str, number: int = 1) -> None:
        """Hand a job to an instance and wait until it runs."""
        folder = f"/var/lib/github-runner/{number}"
        self.sh(
            f"rm -f {folder}/.job-done; cat > /tmp/job <<'E'\n{script}\nE\n"
            f"chown github-runner: /tmp/job; mv /tmp/job {folder}/.job"
        )
        self.wait("job runs", lambda: not self.sh(f"ls -d {folder}/.job", check=False))

    def job_done(self, number: int = 1) -> str:
        """A job's log once it is done."""
        folder = f"/var/lib/github-runner/{number}"
        self.wait("job done", lambda: self.sh(f"ls -d {folder}/.job-done", check=False) != "")
        return self.sh(f"cat {folder}/_diag/job.log")


def make_app_key(folder: Path) -> tuple[str, Path]:
    """Make a key for a GitHub App; returns the private key and the file of the public key."""
    run("openssl", "genrsa", "-out", folder / "app.pem", "2048")
    run("openssl", "rsa", "-in", folder / "app.pem", "-pubout", "-out", folder / "public.pem")
    return (folder / "app.pem").read_text(), folder / "public.pem"


def start_host(release: str, folder: Path, standin: StandIn) -> Host:
    name = f"tc-ghrunner-{uuid.uuid4().hex[:8]}"
    owner = f"{LABEL}.owner={os.getpid()}:{process_start(os.getpid())}"
    labels = ("--label", LABEL, "--label", owner)
    image = make_image(release, "--bare")
    run("docker", "run", "-d", "--name", name, "--hostname", "gpu1", *labels, "--cpu-shares", "256",
        *SYSTEMD_OPTIONS, image, "/sbin/init")  # fmt: skip
    gateway = run(
        "docker", "inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", name
    ).stdout.strip()
    return Host(name, folder, standin, gateway)


def start(folder: Path) -> Iterator[Host]:
    """One host for many tests, with the packages that the role needs; each test starts from no runner."""
    with StandIn() as standin:
        host = start_host("trixie", folder, standin)
        try:
            host.wait("systemd is up", lambda: host.sh("systemctl is-active dbus", check=False) == "active")
            host.authorize()
            # test_provisioning goes through their installation; here each removal of the role would take them away again.
            packages = yaml.safe_load((ROOT / "roles/github_runner/vars/debian_13.yml").read_text())
            names = " ".join(packages["__github_runner_packages"])
            host.sh(f"apt-get -qq update && apt-get -qq -y --no-install-recommends install {names}")
            yield host
        finally:
            subprocess.run(["docker", "rm", "-fv", host.name], check=True, capture_output=True)


def emptied(machine: Host) -> Iterator[Host]:
    """The host without runners; what the test leaves is removed after it."""
    machine.standin.state.__init__()  # type: ignore[misc]
    machine.standin.state.serve_archive(ARCHIVE, make_archive("2.336.0"))
    yield machine
    machine.sh(
        "systemctl disable --now 'github-runner@*' github-runner-update.timer github-runner-update.service 2>/dev/null;"
        "for n in /etc/github-runner/instances/*.json; do systemctl disable --now github-runner@$(basename $n .json); done 2>/dev/null;"
        "systemctl reset-failed 2>/dev/null; rm -rf /var/lib/github-runner /etc/github-runner /var/cache/github-runner /usr/local/lib/github-runner"
        " /run/github-runner /etc/systemd/system/github-runner@.service /etc/systemd/system/github-runner-update.*"
        " /var/lib/github-runner-offline.json /usr/bin/nvidia-smi; systemctl daemon-reload",
        check=False,
    )
    machine.sh(
        "pkill -KILL -u github-runner; userdel github-runner; userdel github-runner-setup; groupdel github-runner 2>/dev/null",
        check=False,
    )
