"""Role docker_engine on a bare Debian 13 host, and beside an engine that others installed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hosts import fleet
from hosts.machine import TestHost
from hosts.play import play

pytestmark = [pytest.mark.engine, pytest.mark.host]

CONFIG = "/etc/docker/daemon.json"
MARKER = "/run/train-classifier/engine-restart-pending"


@pytest.fixture(scope="module")
def host(_hosts_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHost]:
    """A Debian 13 host that has the role's engine; `facts["check"]` and `facts["first"]` are the first two runs."""
    made = fleet.bare_host(tmp_path_factory.mktemp("bare-host"))
    try:
        made.facts["check"] = play(made, "docker_engine", check=True)
        made.facts["bare"] = made.exec("sh", "-c", "command -v dockerd; ls /etc/docker", check=False).stdout
        made.facts["first"] = play(made, "docker_engine")
        yield made
    finally:
        made.remove()


def config(host: TestHost) -> dict[str, object]:
    found = json.loads(host.shell(f"cat {CONFIG}"))
    assert isinstance(found, dict)
    return found


def edit(host: TestHost, **changes: object) -> None:
    host.write(CONFIG, json.dumps({**config(host), **changes}))


def started(host: TestHost) -> str:
    return host.shell("systemctl show -p ActiveEnterTimestampMonotonic docker")


def test_check_mode_on_a_bare_host_changes_nothing(host: TestHost) -> None:
    assert host.facts["check"].changed > 0
    assert host.facts["bare"] == ""


def test_engine_runs_a_container_with_our_settings(host: TestHost, base_image: str) -> None:
    host.load_image(base_image)
    assert host.docker("run", "--rm", "--network", "none", base_image, "echo", "trained") == "trained\n"
    info = json.loads(host.docker("info", "--format", "{{json .}}"))
    assert info["LiveRestoreEnabled"] is True
    assert "docker.io" in host.shell("apt-mark showhold").split()


def test_second_run_changes_nothing(host: TestHost) -> None:
    assert play(host, "docker_engine").changed == 0
    assert play(host, "docker_engine", check=True).changed == 0


def test_what_was_edited_by_hand_stays(host: TestHost) -> None:
    edit(host, **{"dns": ["192.0.2.53"], "live-restore": False})
    done = play(host, "docker_engine", docker_engine_daemon_options={"max-concurrent-downloads": 5})
    assert "live-restore as edited by hand" in done.output
    found = config(host)
    assert (found["dns"], found["live-restore"], found["max-concurrent-downloads"]) == (
        ["192.0.2.53"],
        False,
        5,
    )
    # What the role wrote and nobody wants any longer goes again.
    edit(host, **{"live-restore": True})
    play(host, "docker_engine")
    assert "max-concurrent-downloads" not in config(host)
    assert config(host)["dns"] == ["192.0.2.53"]


def test_invalid_configuration_is_refused_and_untouched(host: TestHost) -> None:
    good = host.shell(f"cat {CONFIG}")
    host.write(CONFIG, '{"live-restore": tru')
    before = started(host)
    try:
        done = play(host, "docker_engine", fails=True)
        assert "is not a JSON object and was left untouched" in done.output
        assert host.shell(f"cat {CONFIG}") == '{"live-restore": tru'
        assert started(host) == before
    finally:
        host.write(CONFIG, good)


def test_restart_waits_for_a_running_job(host: TestHost, base_image: str) -> None:
    host.load_image(base_image)
    labels = ("--label", "train-classifier=1", "--label", "train-classifier.kind=job")
    host.docker("run", "-d", "--name", "job", *labels, base_image, "sleep", "infinity")
    before = started(host)
    done = play(host, "docker_engine", docker_engine_daemon_options={"max-concurrent-uploads": 2})
    assert "waits for its restart, since 1 job(s)" in done.output
    assert started(host) == before
    assert host.docker("ps", "-q", "--filter", "name=job").strip()
    refused = play(host, "docker_engine", tasks_from="uninstall", fails=True)
    assert "1 training job(s) run on this engine" in refused.output
    host.docker("rm", "-f", "job")
    play(host, "docker_engine", docker_engine_daemon_options={"max-concurrent-uploads": 2})
    assert started(host) != before
    assert host.exec("test", "-e", MARKER, check=False).returncode == 1


def test_uninstall_leaves_the_host_as_it_was(host: TestHost) -> None:
    edit(host, dns=["192.0.2.53"])
    play(host, "docker_engine", tasks_from="uninstall")
    assert host.exec("sh", "-c", "command -v dockerd", check=False).returncode != 0
    assert host.shell("apt-mark showhold") == ""
    # The key that somebody else wrote is not ours to remove.
    assert config(host) == {"dns": ["192.0.2.53"]}
    assert play(host, "docker_engine", tasks_from="uninstall").changed == 0


def test_a_working_engine_is_left_as_it_is(ssh_host: TestHost) -> None:
    look = "systemctl show -p ActiveEnterTimestampMonotonic docker; ls -l /etc/docker 2>&1; apt-mark showhold"
    before = ssh_host.exec("sh", "-c", look).stdout
    assert play(ssh_host, "docker_engine").changed == 0
    assert ssh_host.exec("sh", "-c", look).stdout == before


def test_engine_without_systemd(plain_host: TestHost) -> None:
    plain_host.shell(
        "kill $(cat /var/run/docker.pid); while pgrep -x dockerd >/dev/null; do sleep 0.2; done", timeout=60
    )
    play(plain_host, "docker_engine")
    assert json.loads(plain_host.docker("info", "--format", "{{json .}}"))["LiveRestoreEnabled"] is True
    assert play(plain_host, "docker_engine").changed == 0


@pytest.mark.parametrize("role", ["docker_engine", "training_host"])
def test_other_systems_are_refused_in_a_sentence(ssh_host: TestHost, role: str) -> None:
    facts = {
        "distribution": "Debian", "distribution_version": "11", "distribution_major_version": "11",
        "service_mgr": "systemd", "effective_user_id": 0,
    }  # fmt: skip
    done = play(ssh_host, role, fails=True, ansible_facts=facts)
    assert (
        f"ssh-host runs Debian 11: {role} supports Debian 12 and 13, Ubuntu 22.04 and 24.04." in done.output
    )


def test_without_sudo_it_says_so(ssh_host: TestHost) -> None:
    done = play(ssh_host, "docker_engine", user="trainer", become=False, fails=True)
    assert "docker_engine needs root" in done.output
