"""The Molecule scenarios: every role on Debian 13, the whole host on Debian 12; both releases of all under --full.

In CI a scenario leaves out what another test of the same run proves, and goes through a chosen part of its faults.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The longest first.
ROLES = [
    "nvidia_driver",
    "docker_engine",
    "nvidia_container_toolkit",
    "training_host",
    "host_check",
    "github_runner",
]
USUAL = [*((role, "trixie") for role in ROLES), ("host", "bookworm")]
# Docker 20.10 of Debian 12 knows no CDI, so no simulated GPU host there.
REST = [
    *((role, "bookworm") for role in ROLES if role != "host_check"),
    ("host", "trixie"),
]

# The scenario host goes through check mode, a second run and the teardown of these.
WITHIN_HOST = ("docker_engine", "training_host", "host_check")
# test_provisioning goes through check mode after these.
WITHIN_PROVISIONING = ("nvidia_container_toolkit", "github_runner", "host")

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(3600)]


def sequence(scenario: str, long: bool) -> list[str]:
    """The steps of a scenario."""
    whole = ["check", "converge", "idempotence", "check", "verify", "side_effect"]
    if not long and scenario in WITHIN_HOST:
        whole = ["converge", "verify"]
    if not long and scenario in WITHIN_PROVISIONING:
        whole = ["check", "converge", "idempotence", "verify", "side_effect"]
    return ["destroy", "create", "prepare", *whole, "destroy"]


def molecule(scenario: str, release: str, long: bool) -> None:
    """Run a scenario's whole sequence; what it prints is the failure's message."""
    steps = sequence(scenario, long)
    environment = {
        **os.environ,
        # Molecule calls ansible-config and its kin by name.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MOLECULE_RELEASES": release,
        "MOLECULE_LONG": "1" if long else "",
        "MOLECULE_SEQUENCE": f"[{', '.join(steps)}]",
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        ["molecule", "test", "-s", scenario],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        wrong = [line for line in done.stdout.splitlines() if line.startswith(("fatal: ", "[ERROR]: "))]
        pytest.fail(f"{done.stdout[-12000:]}\n{os.linesep.join(wrong[-4:])}", pytrace=False)
    if steps.count("check") == 2:
        # Molecule itself compares nothing in check mode.
        checked = done.stdout.rpartition(f"[{scenario} > check] Executing")[2]
        checked = checked.partition(f"[{scenario} > check] Executed")[0]
        recap = re.findall(r"^\S+ .*changed=(\d+) .*failed=(\d+)", checked, re.M)
        assert recap and set(recap) == {("0", "0")}, "\n".join(re.findall(r"TASK .*\nchanged: .*", checked))
    prefix = os.environ.get("MOLECULE_HOST_PREFIX", "tc-molecule")
    left = ["docker", "ps", "-aq", "--filter", f"name=^{prefix}-{scenario.replace('_', '-')}-debian"]
    assert not subprocess.run(left, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("scenario", "release"), USUAL)
def test_scenario(scenario: str, release: str, request: pytest.FixtureRequest) -> None:
    molecule(scenario, release, bool(request.config.getoption("--full")))


@pytest.mark.full
@pytest.mark.parametrize(("scenario", "release"), REST)
def test_scenario_on_the_other_release(scenario: str, release: str) -> None:
    molecule(scenario, release, long=True)


def test_every_scenario_is_run() -> None:
    scenarios = {path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")}
    assert scenarios == {*ROLES, "host"}
