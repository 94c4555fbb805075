"""Fixtures that every test may use: the engine, the base image, the test hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from pytest import TempPathFactory

sys.path.insert(0, str(Path(__file__).parent))

from hosts import drivers, fleet, runner
from hosts.cluster import Cluster, make_cluster
from hosts.machine import TestHost, make_image, sweep


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the long tests (marked full)")


def pytest_configure(config: pytest.Config) -> None:
    # SIGTERM removes the test hosts, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # A shell starts background processes with SIGINT ignored, nohup with SIGHUP ignored; tests send both.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_AtOnce(terminal))


#: Expensive fixtures: tests that share one of them run in one process of `-n`.
SHARED = ("ssh_host", "gpu_host", "systemd_host", "plain_host", "driver_host", "runner_host", "cluster")
#: Tests that share nothing but the engine run wherever there is room.
ALONE = (
    "unit",
    "lint",
    "integration/test_molecule",
    "integration/test_queue",
    "integration/test_random_kills",
    "integration/test_train_",
    "integration/test_worker_",
)
#: What takes long begins first, the longest before the others, so that no process waits for another at the end: groups, or
#: the beginnings of tests that have none.
FIRST = (
    "integration/test_molecule.py::test_scenario[nvidia_driver",
    "ssh_host",
    "integration/test_provisioning.py",
    "driver_host",
    "runner_host",
    "integration/test_molecule.py",
    "integration/test_docker_engine.py",
    "integration/test_cluster.py",
    "gpu_host",
    "e2e",
    "plain_host",
    "systemd_host",
    "lint/test_lint.py",
)
LAST = ("unit",)


#: In CI these go through the jobs of a person, and of root only what is named here; `--full` goes through all as both.
ROOT_TOO = {
    "integration/test_worker_deaths.py": ("in_phase_training", "in_phase_artefacts", "clean_removes"),
    "integration/test_worker_disks.py": ("read_only_before",),
    "integration/test_worker_jobs.py": (
        "end_to_end", "confinement", "limits", "secrets", "resume", "cannot_reach", "jobs_of_others",
    ),
    "integration/test_pythons.py": (),
    "integration/test_worker_push.py": ("has_already", "odd_names", "changes", "fifos", "archive", "door"),
    # Root's jobs are packed by a process of their account.
    "security/test_09_packing.py": ("09_cancel_stops", "sigterm", "kill_while", "disconnects", "fifos", "more_than_the_limit"),
}  # fmt: skip


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


def _group(item: pytest.Item) -> str:
    """The group of a test for pytest-xdist; empty when it may run anywhere."""
    file = _file(item)
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if file == "integration/test_kills.py" and "case" in parameters:
        case = parameters["case"]
        if case.phase in ("queue", "gpu-check"):
            return "gpu_host"
        return {"systemd": "systemd_host", "none": "plain_host"}[case.init]
    for name in SHARED:
        if name in getattr(item, "fixturenames", ()):
            return name
    # The action's environment is prepared once for each account.
    group = "e2e" if file.startswith("e2e/") else file
    return "" if file.startswith(ALONE) else group


def _rank(item: pytest.Item) -> int:
    name = _group(item) or item.nodeid.removeprefix("tests/")
    ranks = (number for number, beginning in enumerate(FIRST) if name.startswith(beginning))
    return next(ranks, len(FIRST) + name.startswith(LAST))


def _long(item: pytest.Item) -> bool:
    if "full" in item.keywords:
        return True
    named = ROOT_TOO.get(_file(item))
    as_root = getattr(getattr(item, "callspec", None), "params", {}).get("host") == "root"
    return named is not None and as_root and not any(name in item.name for name in named)


class _AtOnce:
    """Reports a failure at once, because a time limit may end the long run before its summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            words = [line for line in report.longreprtext.splitlines() if line.startswith("E  ")]
            self.terminal.ensure_newline()
            for line in (f"FAILED {report.nodeid} ({report.when})", *(words or [report.longreprtext])[-6:]):
                self.terminal.write_line(line[:300])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        items.sort(key=_rank)
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="long: runs under --full")
    for item in items:
        if _long(item):
            item.add_marker(skip)


def _ping() -> str:
    """Why the engine does not answer; empty when it does."""
    try:
        docker.from_env(timeout=20).ping()
    except (docker.errors.DockerException, OSError) as error:
        return str(error)
    return ""


def _start_engine() -> None:
    """Start an engine that is installed and not running, as a machine without systemd leaves it."""
    command = ["service", "docker", "start"]
    if os.getuid():
        command = ["sudo", "-n", *command]
    subprocess.run(command, capture_output=True, check=False)
    for _ in range(60):
        if not _ping():
            return
        time.sleep(0.5)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """This machine's engine; skips with the reason when there is none."""
    if _ping() and shutil.which("dockerd"):
        _start_engine()
    problem = _ping()
    if problem:
        pytest.skip(f"no container engine answers on this machine: {problem}")
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def base_image(engine: docker.DockerClient) -> str:
    """Tag of the smallest image a job runs in: Debian 12 with Python, made from the package mirror."""
    return make_image("slim")


@pytest.fixture(autouse=True)
def _engine_where_marked(request: pytest.FixtureRequest) -> None:
    """Tests marked `engine` skip where there is none, and find the base image made, in whatever order they run."""
    if request.node.get_closest_marker("engine"):
        request.getfixturevalue("base_image")


@pytest.fixture(scope="session")
def _hosts_possible(engine: docker.DockerClient) -> None:
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh client on this machine: apt-get install openssh-client")
    sweep()


def _session(host: TestHost) -> Iterator[TestHost]:
    try:
        yield host
    finally:
        host.remove()


@pytest.fixture(scope="session")
def ssh_host(_hosts_possible: None, base_image: str, tmp_path_factory: TempPathFactory) -> Iterator[TestHost]:
    """Debian 12 test host reached by ssh as root or trainer, ready for training."""
    yield from _session(fleet.ssh_host(tmp_path_factory.mktemp("ssh-host"), base_image))


@pytest.fixture(scope="session")
def gpu_host(_hosts_possible: None, base_image: str, tmp_path_factory: TempPathFactory) -> Iterator[TestHost]:
    """Debian 13 test host with two simulated GPUs (gpu_check = device)."""
    yield from _session(fleet.gpu_host(tmp_path_factory.mktemp("gpu-host"), base_image))


@pytest.fixture(scope="session")
def systemd_host(
    _hosts_possible: None, base_image: str, tmp_path_factory: TempPathFactory
) -> Iterator[TestHost]:
    """Debian 12 test host with systemd, prepared without Ansible."""
    yield from _session(fleet.systemd_host(tmp_path_factory.mktemp("systemd-host"), base_image))


@pytest.fixture(scope="session")
def plain_host(
    _hosts_possible: None, base_image: str, tmp_path_factory: TempPathFactory
) -> Iterator[TestHost]:
    """Debian 12 test host without systemd."""
    yield from _session(fleet.plain_host(tmp_path_factory.mktemp("plain-host"), base_image))


@pytest.fixture(scope="session")
def cluster(_hosts_possible: None, base_image: str, tmp_path_factory: TempPathFactory) -> Iterator[Cluster]:
    """Slurm's controller, which is the submit host, and two nodes with two simulated GPUs each."""
    made = make_cluster(tmp_path_factory.mktemp("cluster"), base_image)
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture(
    scope="session",
    params=["stand-in", *(pytest.param(name, marks=pytest.mark.full) for name in drivers.SUITES.values())],
)
def driver_host(
    request: pytest.FixtureRequest, _hosts_possible: None, tmp_path_factory: TempPathFactory
) -> Iterator[TestHost]:
    """Bare test host for what installs drivers: Debian 12 that says it is Ubuntu, or a real root of Ubuntu."""
    release = "bookworm" if request.param == "stand-in" else request.param
    if release != "bookworm" and not os.environ.get("MOLECULE_UBUNTU_MIRROR"):
        pytest.skip(f"MOLECULE_UBUNTU_MIRROR names no mirror of Ubuntu: not run on a real root of {release}")
    yield from _session(fleet.bare_host(tmp_path_factory.mktemp("driver-host"), release))


@pytest.fixture
def cards(driver_host: TestHost) -> Iterator[TestHost]:
    """`driver_host` with two simulated cards, Ubuntu's kernel, no driver, and an archive with two drivers."""
    drivers.prepare(driver_host)
    try:
        yield driver_host
    finally:
        drivers.clean(driver_host)


@pytest.fixture(scope="session")
def _runner_machine(engine: docker.DockerClient, tmp_path_factory: TempPathFactory) -> Iterator[runner.Host]:
    """Debian 13 test host for the role github_runner, with a stand-in for GitHub."""
    yield from runner.start(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def runner_host(_runner_machine: runner.Host) -> Iterator[runner.Host]:
    """That host without runners, and a stand-in that knows of none."""
    yield from runner.emptied(_runner_machine)
