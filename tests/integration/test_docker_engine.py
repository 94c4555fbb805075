"""Role docker_engine where its Molecule scenario does not go: faults, running jobs, engines of others, no systemd."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import archive, fleet
from hosts.machine import TestHost
from hosts.play import play

pytestmark = [pytest.mark.engine, pytest.mark.host]

CONFIG = "/etc/docker/daemon.json"
JOB = "20260101-000000-0000000a"
MARKER = "/run/train-classifier/engine-restart-pending"
PROXIES = "/etc/docker/train-classifier.environment"


#: The host's own mirror, that refuses the first two requests and sends each later one to the real mirror.
MIRROR = """
import http.server, sys
class Mirror(http.server.BaseHTTPRequestHandler):
    refused = 0
    def do_GET(self):
        if Mirror.refused < 2:
            Mirror.refused += 1
            return self.send_error(503)
        self.send_response(302)
        self.send_header("Location", sys.argv[1] + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, text, *values):
        print("answered", text % values, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", 8503), Mirror).serve_forever()
"""
#: Another package manager: it holds the lock until three attempts to get it were made.
LOCK = """
import ctypes, fcntl, os
lock = open("/var/lib/dpkg/lock-frontend", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
libc = ctypes.CDLL(None)
opened = libc.inotify_init()
IN_OPEN = 0x20
libc.inotify_add_watch(opened, b"/var/lib/dpkg/lock-frontend", IN_OPEN)
print("held", flush=True)
tries = 0
while tries < 3:
    # An event without a name has 16 bytes.
    tries += len(os.read(opened, 4096)) // 16
print("released after", tries, "tries", flush=True)
"""


def start_unit(host: TestHost, unit: str, program: str, *words: str, until: str) -> None:
    """Run a Python program as a unit of the host, and wait until it is ready."""
    host.write(f"/srv/{unit}.py", program)
    host.shell(f"systemd-run -q --unit {unit} python3 /srv/{unit}.py {' '.join(words)}")
    host.shell(f"for _ in $(seq 2000); do {until} && exit 0; sleep 0.1; done; exit 1")


@pytest.fixture(scope="module")
def host(_hosts_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHost]:
    """A Debian 13 host that got the role's engine while apt was locked and its mirror failed."""
    new_host = fleet.bare_host(tmp_path_factory.mktemp("bare-host"))
    try:
        sources = "/etc/apt/sources.list /etc/apt/sources.list.d/*"
        listed = new_host.shell(f"cat {sources} 2>/dev/null || true")
        mirror = re.search(r"https?://[^/\s]+", listed)
        assert mirror, listed
        new_host.shell(f"sed -i 's#{mirror[0]}#http://127.0.0.1:8503#' $(ls {sources} 2>/dev/null)")
        new_host.write("/etc/apt/apt.conf.d/99mirror", 'Acquire::http::Proxy::127.0.0.1 "DIRECT";\n')
        start_unit(new_host, "mirror", MIRROR, mirror[0], until="ss -ltn | grep -q 8503")
        # What a killed dpkg leaves: a journal that was not merged.
        new_host.shell("dpkg -s base-files >/var/lib/dpkg/updates/0001")
        refused = new_host.exec("apt-get", "install", "-y", "base-files", check=False)
        assert refused.returncode == 100 and "dpkg was interrupted" in refused.stderr
        start_unit(new_host, "lock", LOCK, until="journalctl -u lock | grep -q held")
        new_host.facts["first"] = play(new_host, "docker_engine")
        yield new_host
    finally:
        new_host.remove()


def config(host: TestHost) -> dict[str, object]:
    settings = json.loads(host.shell(f"cat {CONFIG}"))
    assert isinstance(settings, dict)
    return settings


def edit(host: TestHost, **changes: object) -> None:
    host.write(CONFIG, json.dumps({**config(host), **changes}))


def started(host: TestHost) -> str:
    return host.shell("systemctl show -p ActiveEnterTimestampMonotonic docker")


def test_role_waits_for_apt_lock_retries_mirror_and_repairs_dpkg(host: TestHost) -> None:
    answers = host.shell("journalctl -o cat -u mirror | grep answered")
    assert answers.count(" 503 ") == 2 and " 302 " in answers
    assert "released" in host.shell("journalctl -o cat -u lock")
    assert "docker.io" in host.shell("apt-mark showhold").split()


def test_edits_by_hand_are_kept_and_restart_waits_for_a_running_job(host: TestHost, base_image: str) -> None:
    edit(host, **{"dns": ["192.0.2.53"], "live-restore": False})
    done = play(
        host, "docker_engine", docker_engine_daemon_options={"max-concurrent-downloads": 5},
        docker_engine_environment={"HTTPS_PROXY": "http://somebody:planted@127.0.0.1:9"},
    )  # fmt: skip
    assert "live-restore as edited by hand" in done.output
    settings = config(host)
    assert (settings["dns"], settings["live-restore"], settings["max-concurrent-downloads"]) == (
        ["192.0.2.53"],
        False,
        5,
    )
    # The role has restarted the engine, and no other account reads the proxy's password.
    assert host.docker("info", "--format", "{{.HTTPSProxy}}").strip().endswith("@127.0.0.1:9")
    assert host.shell(f"stat -c '%a %U' {PROXIES}").strip() == "600 root"
    edit(host, **{"live-restore": True})
    host.shell("systemctl restart docker")
    host.load_image(base_image)
    labels = ("--label", "train-classifier=1", "--label", "train-classifier.kind=job")
    host.docker("run", "-d", "--name", "job", *labels, base_image, "sleep", "infinity")
    before = started(host)
    done = play(host, "docker_engine")
    # An option that the role wrote is removed with its variable.
    assert "max-concurrent-downloads" not in config(host)
    assert host.exec("test", "-e", PROXIES, check=False).returncode == 1
    assert config(host)["dns"] == ["192.0.2.53"]
    assert "waits for its restart, since 1 job(s) run on it (the container job)" in done.output
    assert started(host) == before
    assert host.docker("ps", "-q", "--filter", "name=job").strip()
    # Without an answer of the engine the role cannot see which jobs run.
    host.shell("systemctl stop docker.socket docker.service")
    refused = play(host, "docker_engine", tasks_from="uninstall", fails=True)
    assert "the engine does not answer, so it is unknown which jobs run in its containers" in refused.output
    host.shell("systemctl start docker")
    refused = play(host, "docker_engine", tasks_from="uninstall", fails=True)
    assert "1 job(s) run (the container job): nothing was touched" in refused.output
    before = started(host)
    host.docker("rm", "-f", "job")

    # A job that builds or packs has no container, one without a GPU no ticket; its state is not root's.
    worker = ("python3", "-Ic", "import time; time.sleep(1e6)", "run", f"/home/trainer/elsewhere/jobs/{JOB}")
    host.exec("systemd-run", "-q", "--unit", "worker", "--uid", "trainer", *worker)
    # tests/unit/roles/test_roles.py holds that every role asks.
    refused = play(host, "training_host", tasks_from="uninstall", fails=True)
    assert f"1 job(s) run ({JOB}): nothing was touched" in refused.output
    host.shell("systemctl stop worker")
    play(host, "docker_engine")
    assert started(host) != before
    assert host.exec("test", "-e", MARKER, check=False).returncode == 1


#: A newer runc, in a repository of Debian's security updates: the installed one under another version.
NEWER = """
mkdir -p /srv/security && cd /srv/security
version=$(dpkg-query -W -f '${Version}' runc)+security1
apt-get -qq update
apt-get -qq download runc
dpkg-deb -R runc_*.deb tree
rm runc_*.deb
sed -i "s/^Version: .*/Version: $version/" tree/DEBIAN/control
dpkg-deb -Znone -b tree . >/dev/null
{ dpkg-deb -f runc_*.deb; echo "Filename: ./$(ls runc_*.deb)"; echo "Size: $(stat -c %s runc_*.deb)"
  echo "SHA256: $(sha256sum runc_*.deb | cut -d' ' -f1)"; } >Packages
{ echo 'Label: Debian-Security'; echo 'Suite: stable-security'; echo 'SHA256:'
  echo " $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) Packages"; } >Release
echo 'deb [trusted=yes] file:/srv/security ./' >/etc/apt/sources.list.d/security.list
apt-get -qq update
echo $version
"""


def test_update_reaches_held_packages_and_holds_them_again(host: TestHost) -> None:
    newer = host.shell(NEWER).split()[-1]
    version = "dpkg-query -W -f '${Version}' runc"
    holds = host.shell("apt-mark showhold")
    assert host.shell(version) != newer
    checked = play(host, "host_check", host_check_strict=False, host_check_deep=False)
    assert f"held packages have security updates: runc {newer}" in " ".join(checked.output.split())
    play(host, "docker_engine", docker_engine_state="latest")
    assert (host.shell(version), host.shell("apt-mark showhold")) == (newer, holds)
    assert play(host, "docker_engine", docker_engine_state="latest").changed == 0


def test_engine_of_the_role_is_not_replaced_by_dockers_own(host: TestHost) -> None:
    refused = play(host, "docker_engine", docker_engine_source="docker", fails=True)
    assert "the engine is docker.io, which this role installed" in refused.output
    assert not host.shell("find /etc/apt -name '*docker*'")


#: What a teardown must bring back.
STATE = """
dpkg-query -W -f '${db:Status-Abbrev}${Package}\\n'
cut -d: -f1 /etc/group
find /etc -xdev -not -path '/etc/*-' -not -name ld.so.cache -printf '%p %m\\n' | sort
ls -A /var/lib /opt
md5sum /etc/apt/sources.list.d/*
apt-mark showhold
apt-mark showauto
"""
OWN = ["containerd.io", "docker-buildx-plugin", "docker-ce", "docker-ce-cli"]


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_dockers_own_engine_comes_is_updated_and_goes(
    _hosts_possible: None, base_image: str, tmp_path: Path
) -> None:
    """On a stand-in for Docker's repository: its names, relations and key, and the engine of Debian 13."""
    bare = fleet.bare_host(tmp_path)
    try:
        variables: dict[str, object] = {
            **archive.docker_repository(bare),
            "docker_engine_download_retries": 1,
        }
        # As Docker's own instructions leave it, with a key of another name: apt refuses both beside each other.
        line = f"deb [trusted=yes] file://{archive.DOCKER}/debian trixie stable\n"
        bare.write("/etc/apt/sources.list.d/docker.list", line)
        before = bare.shell(STATE)
        checked = play(bare, "docker_engine", check=True, **variables)
        assert "Would install docker-ce, docker-ce-cli" in checked.output and bare.shell(STATE) == before

        # Neither a key that nobody knows, nor a repository that apt refuses.
        wrong = {**variables, "docker_engine_key_checksum": f"sha256:{'0' * 64}"}
        refused = play(bare, "docker_engine", fails=True, **wrong)
        assert re.search(r"Docker's repository could not be added from .*did not match", refused.output)
        release = f"{archive.DOCKER}/debian/dists/trixie/InRelease"
        bare.shell(f"cp {release} /srv/good; sed -i 's/^Origin: .*/Origin: forged/' {release}")
        refused = play(bare, "docker_engine", fails=True, **variables)
        assert "The source was not added to the host." in refused.output
        bare.shell(f"mv /srv/good {release}; apt-get -qq update --error-on=any")

        # What something else may use is not replaced.
        bare.shell("DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends runc")
        refused = play(bare, "docker_engine", fails=True, **variables)
        assert "would replace runc: no package was changed" in refused.output
        bare.shell("apt-get -qq purge --auto-remove runc")
        # Its repository is there now, and goes with the setting.
        assert "docker.list" not in bare.shell("ls /etc/apt/sources.list.d")
        checked = play(bare, "docker_engine", check=True)
        assert re.search(r"Repository \| Remove the source\] \*+\nchanged", checked.output)
        play(bare, "docker_engine", tasks_from="uninstall")
        assert bare.shell(STATE) == before
        bare.shell("apt-get -qq update --error-on=any")

        play(bare, "docker_engine", **variables)
        assert bare.shell("apt-mark showhold").split() == OWN
        bare.load_image(base_image)
        assert bare.docker("run", "--rm", "--network", "none", base_image, "echo", "runs") == "runs\n"
        assert play(bare, "docker_engine", **variables).changed == 0
        refused = play(bare, "docker_engine", fails=True)
        assert "Set docker_engine_source: docker, or change the engine" in refused.output

        # Neither the repository nor the key is replaced by one that does not work.
        bare.shell(
            f"cp -r {archive.DOCKER} /srv/other; echo >>/srv/other/debian/gpg; "
            "sed -i 's/^Origin: .*/Origin: forged/' /srv/other/debian/dists/trixie/InRelease"
        )
        other = {
            "docker_engine_repository_url": "file:///srv/other",
            "docker_engine_key_checksum": f"sha256:{bare.shell('sha256sum /srv/other/debian/gpg').split()[0]}",
        }
        refused = play(bare, "docker_engine", fails=True, **{**variables, **other})
        assert "could not be added from file:///srv/other/debian" in refused.output
        bare.shell("apt-get -qq update --error-on=any")

        newer = "5:28.5.3-1~debian.13~trixie"
        archive.docker_repository(bare, newer)
        bare.shell("apt-get -qq update --error-on=any")
        checked = play(bare, "host_check", host_check_strict=False, host_check_deep=False)
        assert f"newer versions: docker-buildx-plugin {newer}" in " ".join(checked.output.split())
        play(bare, "docker_engine", docker_engine_state="latest", **variables)
        assert bare.shell("dpkg-query -W -f '${Version}' docker-ce") == newer
        assert bare.shell("apt-mark showhold").split() == OWN
        assert play(bare, "docker_engine", docker_engine_state="latest", **variables).changed == 0

        bare.docker("run", "-d", "--name", "web", base_image, "sleep", "infinity")
        refused = play(bare, "docker_engine", tasks_from="uninstall", fails=True)
        assert "web: these containers run on the engine and are not train-classifier's" in refused.output
        assert bare.docker("ps", "-q", "--filter", "name=web").strip()
        bare.shell("docker rm -f web; docker image rm -f $(docker image ls -aq)")
        play(bare, "docker_engine", tasks_from="uninstall")
        assert bare.shell(STATE) == before

        # Somebody replaces the role's engine by the other one, by hand.
        play(bare, "docker_engine", **variables)
        bare.shell(
            f"apt-mark unhold {' '.join(OWN)}; "
            "DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends docker.io docker-cli"
        )
        play(bare, "docker_engine")
        play(bare, "docker_engine", tasks_from="uninstall")
        assert bare.shell("systemctl is-enabled docker; systemctl is-active docker") == "enabled\nactive\n"

        # An engine that was there, and did not start at boot, does so only while the role is there.
        bare.shell("systemctl disable --now docker.service docker.socket")
        play(bare, "docker_engine")
        assert bare.shell("systemctl is-enabled docker; systemctl is-active docker") == "enabled\nactive\n"
        play(bare, "docker_engine", tasks_from="uninstall")
        for question, answer in (("is-enabled", "disabled"), ("is-active", "inactive")):
            assert bare.exec("systemctl", question, "docker", check=False).stdout.strip() == answer
        assert bare.shell("dpkg-query -W -f '${db:Status-Abbrev}' docker.io") == "ii "
    finally:
        bare.remove()


def test_working_engine_is_not_changed(ssh_host: TestHost) -> None:
    before, after = ssh_host.facts["engine"]
    assert before == after


@pytest.mark.full
def test_second_run_changes_nothing(ssh_host: TestHost, plain_host: TestHost) -> None:
    assert play(ssh_host, "docker_engine").changed == 0
    play(plain_host, "docker_engine")
    assert play(plain_host, "docker_engine").changed == 0


def test_engine_runs_without_systemd(plain_host: TestHost) -> None:
    plain_host.shell(
        "kill $(cat /var/run/docker.pid); while pgrep -x dockerd >/dev/null; do sleep 0.2; done", timeout=60
    )
    play(plain_host, "docker_engine")
    assert json.loads(plain_host.docker("info", "--format", "{{json .}}"))["LiveRestoreEnabled"] is True


#: A stand-in for the package docker-ce: its daemon is installed and does not run.
FOREIGN = """
mkdir -p /srv/deb/DEBIAN /srv/deb/usr/bin
printf 'Package: docker-ce\\nVersion: 1\\nArchitecture: all\\nMaintainer: t <t@example.org>\\n' >/srv/deb/DEBIAN/control
printf 'Conflicts: docker.io\\nDescription: stand-in\\n' >>/srv/deb/DEBIAN/control
printf '#!/bin/sh\\n' >/srv/deb/usr/bin/dockerd
chmod 755 /srv/deb/usr/bin/dockerd
dpkg-deb -b /srv/deb /srv/docker-ce.deb
dpkg -i /srv/docker-ce.deb
"""


def test_nothing_is_installed_without_network_or_beside_docker_ce(
    _hosts_possible: None, tmp_path: Path
) -> None:
    bare = fleet.bare_host(tmp_path)
    try:
        # A mirror that cannot be reached, also not by a proxy of the host.
        sources = "/etc/apt/sources.list /etc/apt/sources.list.d/*"
        bare.shell(f"sed -i -E 's#https?://[^/ ]+#http://127.0.0.1:9#' $(ls {sources} 2>/dev/null)")
        settings = 'Acquire::http::Proxy::127.0.0.1 "DIRECT";\nAcquire::Retries "0";\n'
        bare.write("/etc/apt/apt.conf.d/99mirror", settings)
        variables = {"docker_engine_download_retries": 1, "docker_engine_download_delay": 1}
        done = play(bare, "docker_engine", fails=True, **variables)
        assert "docker.io and docker-cli could not be installed" in done.output
        assert re.search(
            r"could not be installed from the host's package sources: .*127\.0\.0\.1.*set it in train_classifier_environment",
            done.output,
        )
        assert "Traceback" not in done.output

        own = {
            **variables,
            "docker_engine_source": "docker",
            "docker_engine_repository_url": "http://127.0.0.1:9",
        }
        done = play(bare, "docker_engine", fails=True, **own)
        assert "Docker's repository could not be added from http://127.0.0.1:9/debian" in done.output
        assert "docker_engine_repository_url" in done.output and "The source was not added" in done.output
        assert not bare.shell("find /etc/apt -name '*docker-engine*'")

        bare.write("/etc/docker/train-classifier.json", "{")
        done = play(bare, "docker_engine", fails=True)
        assert "train-classifier.json, the record of what the role did, is not a JSON object (" in done.output

        bare.shell(FOREIGN)
        # A record says that the engine is the role's.
        record = {"foreign": False, "settings": {}, "packages": ["docker.io"], "created_config": True}
        bare.write("/etc/docker/train-classifier.json", json.dumps(record))
        done = play(bare, "docker_engine", fails=True)
        assert (
            "dockerd is installed from docker-ce, which the distribution's docker.io would replace"
            in done.output
        )
        assert bare.shell("dpkg-query -W -f '${db:Status-Status}' docker-ce") == "installed"
    finally:
        bare.remove()


@pytest.mark.parametrize("role", ["docker_engine", pytest.param("training_host", marks=pytest.mark.full)])
def test_unsupported_systems_are_refused(ssh_host: TestHost, role: str) -> None:
    facts = {
        "distribution": "Debian", "distribution_version": "11", "distribution_major_version": "11",
        "service_mgr": "systemd", "kernel": "5.10.0", "architecture": "x86_64",
    }  # fmt: skip
    done = play(ssh_host, role, fails=True, ansible_facts=facts)
    assert (
        f"ssh-host runs Debian 11: {role} supports Debian 12 and 13, Ubuntu 22.04, 24.04 and 26.04."
        in done.output
    )


def test_missing_sudo_is_reported(ssh_host: TestHost) -> None:
    done = play(ssh_host, "docker_engine", user="trainer", become=False, fails=True)
    assert "docker_engine needs root" in done.output
