"""site.yml and teardown.yml killed in the middle and run again converge (faults, rows 60 and 66).

Every role has something to do: a simulated card for the toolkit, a signed repository of stand-ins for its packages,
and GitHub's stand-in for the runner. The driver itself takes minutes to build, so it is killed under --full alone.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import fleet
from hosts.machine import CA_BUNDLE, TestHost, ca_bundle, run
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(3600)]

#: Tasks of site.yml and of teardown.yml on such a host, or less; a kill that comes too late kills nothing.
TASKS, TEARDOWN_TASKS = 190, 90
IMAGE = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Load | Bring the image that a registry would have
      ansible.builtin.shell: docker image inspect tc-slim:bookworm >/dev/null 2>&1 || docker load -q -i /srv/slim.tar
      changed_when: false
      when: not ansible_check_mode
"""
ROLE = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: ROLE, tasks_from: FROM}
"""
#: A repository over TLS, as molecule/nvidia_container_toolkit has it.
MIRROR = """
import functools, http.server, ssl
http.server.SimpleHTTPRequestHandler.protocol_version = "HTTP/1.1"
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/srv/nvidia-repository")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8124), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/srv/ca.pem", "/srv/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
#: Every host that boots has udev, whose groups stay after a purge.
PREPARE = """
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends gnupg openssl udev >/dev/null
mkdir -p /srv/simulated/pci/0000:01:00.0 /srv/simulated/proc
cd /srv/simulated/pci/0000:01:00.0
echo 0x10de >vendor; echo 0x20b0 >device; echo 0x030200 >class
cd /srv
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=stand-in -addext subjectAltName=IP:127.0.0.1 \
    -keyout key.pem -out ca.pem 2>/dev/null
systemd-run -q --unit mirror python3 /srv/mirror.py
systemd-run -q --unit github-standin --working-directory=/srv python3 -m github_api.standin 8099
python3 /srv/toolkit_repository.py 1.18.2-1 | tail -n 1
"""
#: What nobody but root can read, of what the roles made for everybody to read. A copy of daemon.json may hold passwords.
CLOSED = """
find /etc/apt /etc/modprobe.d /etc/systemd/system /var/lib/train-classifier/installed /var/lib/train-classifier/bin \\
    -not -perm -o=r -not -path '*/auth.conf.d*' -not -name daemon.json -not -name before.json
find /etc/docker /var/lib/train-classifier -maxdepth 0 -not -perm -o=rx
"""
#: What teardown must bring back.
LOOK = """
dpkg-query -W -f '${db:Status-Abbrev}${Package}\\n'
cut -d: -f1 /etc/passwd /etc/group
find /etc -xdev -not -path '/etc/*-' -not -name ld.so.cache | sort
ls -A /var/lib/train-classifier /opt /usr/local/lib
echo "held $(apt-mark showhold)"
apt-mark showauto | sed 's/^/automatic /'
"""


class Site:
    """One host, and ansible-playbook on it."""

    def __init__(self, host: TestHost, folder: Path) -> None:
        self.host = host
        self.folder = folder
        host.write("/srv/mirror.py", MIRROR)
        for name in ("__init__", "standin", "archive"):
            host.write(f"/srv/github_api/{name}.py", (ROOT / f"tests/github_api/{name}.py").read_text())
        host.write("/srv/toolkit_repository.py", (ROOT / "molecule/shared/toolkit_repository.py").read_text())
        self.variables = {
            "provision_hosts": "all",
            "update_hosts": "all",
            "teardown_hosts": "all",
            "training_host_images": {"cpu": "tc-slim:bookworm", "gpu": "tc-slim:bookworm"},
            "train_classifier_ca_bundle": CA_BUNDLE if ca_bundle() else "",
            "nvidia_container_toolkit_pci_root": "/srv/simulated/pci",
            "nvidia_container_toolkit_proc_root": "/srv/simulated/proc",
            "nvidia_container_toolkit_version": "1.18.2-1",
            "nvidia_container_toolkit_repository_url": "https://127.0.0.1:8124",
            "nvidia_container_toolkit_key_url": "https://127.0.0.1:8124/gpgkey",
            "nvidia_container_toolkit_ca_bundle": "/srv/ca.pem",
            "nvidia_container_toolkit_key_fingerprint": host.shell(PREPARE).strip(),
            "github_runner_url": "http://127.0.0.1:8099",
            "github_runner_api_host": host.name,
            "github_runner_repository": "acme/widgets",
            "github_runner_pat": "pat-good",
            "github_runner_docker_group": True,
        }
        self.before = host.shell(LOOK)
        self.site = self.book("docker_engine") + IMAGE + f"- import_playbook: {ROOT / 'site.yml'}\n"
        self.teardown = f"- import_playbook: {ROOT / 'playbooks/teardown.yml'}\n"

    @staticmethod
    def book(role: str, tasks_from: str = "main") -> str:
        return ROLE.replace("ROLE", role).replace("FROM", tasks_from)

    def run(self, book: str, kill_at: int | None = None, *options: str) -> tuple[int, str]:
        """Run, or kill -9 everything of it at its n-th task; the exit status and what it printed."""
        path = self.folder / "book.yml"
        path.write_text(book)
        environment = ansible_environment(ANSIBLE_ROLES_PATH=str(ROOT / "roles"), PYTHONUNBUFFERED="1")
        command = [
            ANSIBLE_PLAYBOOK,
            "-i",
            self.host.inventory(),
            "-e",
            json.dumps(self.variables),
            path,
            *options,
        ]
        process = subprocess.Popen(
            [str(word) for word in command], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        printed, task_count = [], 0
        for line in process.stdout:
            printed.append(line)
            task_count += line.startswith("TASK [")
            if task_count == kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
        return process.wait(), "".join(printed)

    def goes(self, book: str, *options: str) -> str:
        """Run to the end; what it printed."""
        status, printed = self.run(book, None, *options)
        assert status == 0, printed[-6000:]
        return printed

    def killed_at_random_tasks(self, book: str, tasks: int, times: int) -> None:
        seed = int(os.environ.get("TRAIN_CLASSIFIER_TEST_SEED") or random.randrange(10**6))
        chosen = sorted(random.Random(seed).sample(range(1, tasks), times))
        print(f"seed {seed}: killed at tasks {chosen}")
        assert -signal.SIGKILL in [self.run(book, task)[0] for task in chosen]

    def killed_at_every_task(self, book: str) -> None:
        for task in range(1, 1000):
            status, printed = self.run(book, task)
            if status != -signal.SIGKILL:
                break
        assert status == 0, printed[-6000:]

    def is_unchanged(self, book: str) -> None:
        """Nothing is left to do, as check mode sees it."""
        printed = self.goes(book, "--check")
        changes = re.findall(r"TASK .*\nchanged.*", printed)
        assert re.search(r"changed=0 .*failed=0", printed), "\n".join(changes)

    def stands(self) -> None:
        """Everything is there, and nothing is left to do, as check mode sees it."""
        printed = self.goes(self.site)
        assert "1 of 1 hosts ready for training" in printed
        self.is_unchanged(self.site)
        self.host.shell("systemctl is-active github-runner@1 train-classifier-clean@github-runner.timer")
        assert "nvidia" in self.host.docker("info", "--format", "{{json .Runtimes}}")
        # Its umask is 077.
        assert self.host.shell(CLOSED) == ""

    def is_bare(self, stays: frozenset[str] = frozenset()) -> None:
        """The host is as it was, but for the engine's data: the image came by hand."""
        now, before = (set(text.splitlines()) for text in (self.host.shell(LOOK), self.before))
        assert sorted((now ^ before) - stays) == []
        assert self.host.shell("ls /var/lib/docker")
        ask = "import json, urllib.request as r; print(json.load(r.urlopen(r.Request(URL, headers=TOKEN)))['total_count'])"
        url = "http://127.0.0.1:8099/api/v3/repos/acme/widgets/actions/runners"
        ask = ask.replace("URL", repr(url)).replace("TOKEN", "{'Authorization': 'Bearer pat-good'}")
        assert self.host.exec("python3", "-c", ask).stdout == "0\n"


@pytest.fixture
def site(request: pytest.FixtureRequest, base_image: str, tmp_path: Path) -> Iterator[Site]:
    host = fleet.bare_host(tmp_path / "host", getattr(request, "param", "trixie"))
    try:
        tar = run(ROOT / "tests/hosts/make-image", "--tar", "slim").stdout.split()[1]
        run("docker", "cp", tar, f"{host.container}:/srv/slim.tar")
        yield Site(host, tmp_path)
    finally:
        host.remove()


@pytest.mark.parametrize("site", ["bookworm"], indirect=True)
def test_killed_at_a_random_task_it_converges_and_tears_down(site: Site) -> None:
    site.killed_at_random_tasks(site.site, TASKS, 1)
    site.stands()
    site.goes(site.teardown)
    site.is_bare()


@pytest.mark.full
def test_teardown_killed_at_random_tasks_it_converges(site: Site) -> None:
    site.killed_at_random_tasks(site.site, TASKS, 5)
    site.stands()
    site.killed_at_random_tasks(site.teardown, TEARDOWN_TASKS, 2)
    site.goes(site.teardown)
    site.is_bare()


#: A role, and what it needs on the host before it.
ROLES = {
    "docker_engine": (),
    "nvidia_driver": ("docker_engine", "nvidia_container_toolkit"),
    "nvidia_container_toolkit": ("docker_engine",),
    "training_host": ("docker_engine", "nvidia_container_toolkit"),
    "github_runner": ("docker_engine", "nvidia_container_toolkit", "training_host"),
}


def simulated_driver(host: TestHost) -> dict[str, object]:
    """The variables with which nvidia_driver has a card to build a driver for."""
    packages = "apt-cache depends linux-headers-amd64 | sed -n 's/.*Depends: linux-headers-//p' | head -n 1"
    return {
        "nvidia_driver_pci_root": "/srv/simulated/pci",
        "nvidia_driver_module_root": "/srv/simulated/modules",
        "nvidia_driver_proc_root": "/srv/simulated/proc",
        "nvidia_driver_efivars": "/srv/simulated/efivars",
        "nvidia_driver_reboot_required_file": "/srv/simulated/reboot-required",
        # The running kernel is the test machine's, for which Debian has no headers.
        "nvidia_driver_kernel": host.shell(packages).strip(),
        # A card whose module cannot be loaded here is no host that trains.
        "host_check_strict": False,
        "provision_runner_unproven": True,
    }


@pytest.mark.full
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("role", ROLES)
def test_role_killed_at_every_task_it_converges(site: Site, role: str) -> None:
    """Its installation, then its removal, each killed at every task; what comes before is not gone through each time."""
    for earlier in ROLES[role]:
        site.goes(site.book(earlier))
        if earlier == "docker_engine":
            site.goes(IMAGE)
    if role == "nvidia_driver":
        site.variables.update(simulated_driver(site.host))
    site.killed_at_every_task(site.book(role))
    if role == "docker_engine":
        site.goes(IMAGE)
    site.is_unchanged(site.book(role))
    if role == "github_runner":
        site.stands()
        updated = site.goes(f"- import_playbook: {ROOT / 'playbooks/update.yml'}\n")
        assert "TASK [github_runner : Download | Ask which version is offered] " in updated
        site.host.shell("test ! -e /var/lib/train-classifier/drain; systemctl is-active github-runner@1")
    if role == "nvidia_driver":
        # The roles that come after it, and their removal, on a host that has a driver.
        site.goes(site.site)
        site.is_unchanged(site.site)
    site.killed_at_every_task(site.book(role, "uninstall"))
    site.goes(site.teardown)
    # The account of nvidia-persistenced, which Debian's package leaves after a purge.
    site.is_bare(frozenset({"nvpd"} if role == "nvidia_driver" else ()))
