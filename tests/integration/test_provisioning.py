"""site.yml killed in the middle and run again converges (faults, row 60)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import fleet
from hosts.machine import CA_BUNDLE, TestHost, ca_bundle, run
from hosts.play import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(3600)]

#: Tasks that site.yml runs on a host without a card, or more; a kill that comes too late kills nothing.
TASKS = 110
BOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: docker_engine}
- hosts: all
  gather_facts: false
  tasks:
    - name: Load | Bring the image that a registry would have
      ansible.builtin.shell: docker image inspect tc-slim:bookworm >/dev/null 2>&1 || docker load -q -i /srv/slim.tar
      changed_when: false
- import_playbook: {site}
"""


class Site:
    """One host, and ansible-playbook on it."""

    def __init__(self, host: TestHost, folder: Path) -> None:
        self.host = host
        self.book = folder / "book.yml"
        self.book.write_text(BOOK.replace("{site}", str(ROOT / "site.yml")))
        variables = {
            "provision_hosts": "all",
            "training_host_images": {"cpu": "tc-slim:bookworm", "gpu": "tc-slim:bookworm"},
            "train_classifier_ca_bundle": CA_BUNDLE if ca_bundle() else "",
        }
        program = Path(sys.executable).with_name("ansible-playbook")
        self.command = [program, "-i", host.inventory("root"), "-e", json.dumps(variables), self.book]
        self.environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_NOCOLOR": "1",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, kill_at: int | None = None) -> tuple[int, str]:
        """Run, or kill -9 everything of it at its n-th task; the exit status and what it printed."""
        process = subprocess.Popen(
            [str(word) for word in self.command], env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        printed, seen = [], 0
        for line in process.stdout:
            printed.append(line)
            seen += line.startswith("TASK [")
            if seen == kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
        return process.wait(), "".join(printed)

    def converges(self) -> None:
        """Run to the end, then once more: nothing is left to do."""
        status, printed = self.run()
        assert status == 0, printed[-6000:]
        status, printed = self.run()
        assert status == 0, printed[-6000:]
        assert re.search(r"changed=0 .*failed=0", printed), printed[-6000:]


@pytest.fixture
def site(base_image: str, tmp_path: Path) -> Iterator[Site]:
    host = fleet.bare_host(tmp_path / "host")
    try:
        tar = run(ROOT / "tests/hosts/make-image", "--tar", "slim").stdout.split()[1]
        run("docker", "cp", tar, f"{host.container}:/srv/slim.tar")
        made = Site(host, tmp_path)
        yield made
    finally:
        host.remove()


def test_killed_at_random_tasks_it_converges(site: Site) -> None:
    seed = int(os.environ.get("TRAIN_CLASSIFIER_TEST_SEED") or random.randrange(10**6))
    tasks = sorted(random.Random(seed).sample(range(1, TASKS), 5))
    print(f"seed {seed}: killed at tasks {tasks}")
    killed = [site.run(task)[0] for task in tasks]
    assert -signal.SIGKILL in killed
    site.converges()


@pytest.mark.full
def test_killed_at_every_task_it_converges(site: Site) -> None:
    for task in range(1, 1000):
        status, printed = site.run(task)
        if status != -signal.SIGKILL:
            break
    assert status == 0, printed[-6000:]
    assert task > 40
    site.converges()
