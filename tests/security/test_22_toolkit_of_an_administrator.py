"""Row 22: an administrator's newer or held container toolkit is left alone while it is new enough and works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hosts.drivers import SLOTS, simulate_cards
from hosts.machine import TestHost, make_image
from hosts.play import PlayResult, play
from hosts.toolkits import FINGERPRINT, NAMES, REPOSITORY, key, publish

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(1800)]

VERSIONS = ("1.17.7-1", "1.17.9-1", "1.18.1-1", "1.18.2-1", "1.19.0-1")


@pytest.fixture(scope="module")
def engine_host(_hosts_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHost]:
    """Debian 13 with an engine, one simulated card, and an archive that has the toolkit in every version."""
    host = TestHost.create("toolkit-host", make_image("trixie"), tmp_path_factory.mktemp("toolkit-host"))
    try:
        publish(host, *VERSIONS)
        settings = 'Acquire::AllowInsecureRepositories "true";\nAPT::Get::AllowUnauthenticated "true";\n'
        host.write("/etc/apt/apt.conf.d/99unsigned", settings)
        simulate_cards(host, SLOTS[0])
        yield host
    finally:
        host.remove()


@pytest.fixture
def host(engine_host: TestHost) -> Iterator[TestHost]:
    try:
        yield engine_host
    finally:
        engine_host.shell(
            f"apt-mark unhold {' '.join(NAMES)} >/dev/null; dpkg --purge --force-depends {' '.join(NAMES)} >/dev/null 2>&1; "
            "rm -rf /var/lib/train-classifier/installed /etc/apt/preferences.d/* /etc/docker/daemon.json "
            "/etc/apt/sources.list.d/nvidia* /usr/bin/nvidia-ctk.away"
        )


def run_toolkit_role(host: TestHost, **changes: object) -> PlayResult:
    host.write("/etc/apt/keyrings/nvidia-container-toolkit.asc", key())
    variables = {
        "nvidia_container_toolkit_repository_url": f"file:{REPOSITORY}",
        "nvidia_container_toolkit_key_fingerprint": FINGERPRINT,
        "nvidia_container_toolkit_pci_root": "/srv/simulated/pci",
        "nvidia_container_toolkit_proc_root": "/srv/simulated/proc",
        "nvidia_container_toolkit_download_retries": 1,
        "nvidia_container_toolkit_download_delay": 1,
    }
    return play(host, "nvidia_container_toolkit", **{**variables, **changes})


def install(
    host: TestHost, version: str, *, hold: tuple[str, ...] = (), names: tuple[str, ...] = NAMES
) -> None:
    """Install the toolkit as an administrator does."""
    packages = " ".join(f"{name}={version}" for name in names)
    host.shell(f"apt-get -qq -y --allow-change-held-packages install {packages} >/dev/null")
    if hold:
        host.shell(f"apt-mark hold {' '.join(hold)} >/dev/null")


def versions(host: TestHost) -> set[str]:
    return set(host.shell(f"dpkg-query -W -f '${{Version}}\\n' {' '.join(NAMES)}", check=False).split())


def holds(host: TestHost) -> set[str]:
    return set(host.shell("apt-mark showhold").split())


@pytest.mark.parametrize(
    ("version", "hold"),
    [
        pytest.param("1.19.0-1", (), id="newer", marks=pytest.mark.full),
        pytest.param("1.17.9-1", NAMES, id="older and held", marks=pytest.mark.full),
        pytest.param("1.18.1-1", NAMES[3:], id="older and held in part"),
    ],
)
def test_22_working_toolkit_of_an_administrator_is_kept(
    host: TestHost, version: str, hold: tuple[str, ...]
) -> None:
    install(host, version, hold=hold)
    result = run_toolkit_role(host)
    message = f"the container toolkit {version}, which this role did not install, works and is left as it is"
    assert message in " ".join(result.output.split()), result.output
    assert versions(host) == {version} and holds(host) == set(hold)
    # Nothing of the role makes apt change it later.
    assert "nvidia" not in host.shell("ls /etc/apt/preferences.d /etc/apt/sources.list.d")
    assert "nvidia" in host.docker("info", "--format", "{{json .Runtimes}}")
    again = run_toolkit_role(host)
    assert again.changed == 0, again.output
    run_toolkit_role(host, tasks_from="uninstall")
    assert versions(host) == {version} and holds(host) == set(hold)


def test_22_held_and_too_old_toolkit_is_refused(host: TestHost) -> None:
    install(host, "1.17.7-1", hold=NAMES[:1])
    result = run_toolkit_role(host, fails=True)
    assert "an administrator holds nvidia-container-toolkit 1.17.7-1" in result.output, result.output
    assert "apt-mark unhold nvidia-container-toolkit" in result.output
    assert versions(host) == {"1.17.7-1"} and holds(host) == {NAMES[0]}


def test_22_newer_and_broken_toolkit_is_not_downgraded(host: TestHost) -> None:
    install(host, "1.19.0-1")
    host.shell("mv /usr/bin/nvidia-ctk /usr/bin/nvidia-ctk.away")
    result = run_toolkit_role(host, fails=True)
    assert "is newer than 1.18.2-1, and the toolkit does not work" in result.output, result.output
    assert versions(host) == {"1.19.0-1"} and not holds(host)


def test_22_old_toolkit_is_upgraded(host: TestHost) -> None:
    install(host, "1.17.7-1")
    run_toolkit_role(host)
    assert versions(host) == {"1.18.2-1"} and holds(host) == set(NAMES)


def test_22_role_changes_its_own_toolkit_and_keeps_an_upgrade_by_hand(host: TestHost) -> None:
    run_toolkit_role(host)
    assert versions(host) == {"1.18.2-1"} and holds(host) == set(NAMES)
    again = run_toolkit_role(host)
    assert again.changed == 0, again.output
    # The role may also downgrade its own toolkit, and holds it again.
    run_toolkit_role(host, nvidia_container_toolkit_version="1.18.1-1")
    assert versions(host) == {"1.18.1-1"} and holds(host) == set(NAMES)
    # An upgrade by hand makes it the administrator's.
    install(host, "1.19.0-1")
    run_toolkit_role(host)
    assert versions(host) == {"1.19.0-1"}
    run_toolkit_role(host, tasks_from="uninstall")
    assert versions(host) == {"1.19.0-1"} and not holds(host)
