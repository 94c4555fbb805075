"""The Molecule scenarios: in CI those that no other test of the run goes through, each on one release; all under --full.

In CI a scenario leaves out what another test of the same run proves, and goes through a chosen part of its faults.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hosts.play import load_once

ROOT = Path(__file__).parents[2]
RELEASES = ("trixie", "bookworm")
ROLES = (
    "nvidia_driver",
    "docker_engine",
    "nvidia_container_toolkit",
    "training_host",
    "host_check",
    "github_runner",
)
# Steps of CI, the longest scenario first. Check mode on a fresh host is left to test_23, a second run to test_20, test_22 and
# test_github_runner; the whole site on one host, check mode on it and its teardown to test_provisioning; docker_engine,
# training_host and github_runner to their own tests.
IN_CI = {
    # On Debian 13 the headers bring a whole kernel, for which half of the time goes.
    ("nvidia_driver", "bookworm"): ["converge", "verify", "side_effect"],
    ("nvidia_container_toolkit", "trixie"): ["converge", "verify", "side_effect"],
    # Its verify begins with what converge does.
    ("host_check", "trixie"): ["verify"],
}
WHOLE = ["check", "converge", "idempotence", "check", "verify", "side_effect"]
# Docker 20.10 of Debian 12 knows no CDI, so no simulated GPU host there.
ALL = [(name, release) for name in (*ROLES, "host") for release in RELEASES]
ALL.remove(("host_check", "bookworm"))

# The same scenario may run in another checkout beside this one.
PREFIX = f"tc-molecule-{hashlib.sha256(bytes(ROOT)).hexdigest()[:6]}"

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(3600)]


def molecule(scenario: str, release: str, steps: list[str], long: bool) -> None:
    """Run these steps of a scenario; what it prints is the failure's message."""
    steps = ["destroy", "create", "prepare", *steps, "destroy"]
    environment = {
        **os.environ,
        **load_once(),
        # Molecule calls ansible-config and its kin by name.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MOLECULE_HOST_PREFIX": PREFIX,
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
    query = ["docker", "ps", "-aq", "--filter", f"name=^{PREFIX}-{scenario.replace('_', '-')}-debian"]
    assert not subprocess.run(query, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("scenario", "release"), IN_CI)
def test_scenario(scenario: str, release: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--full"):
        pytest.skip("a part of the whole scenario")
    molecule(scenario, release, IN_CI[scenario, release], long=False)


@pytest.mark.full
@pytest.mark.parametrize(("scenario", "release"), ALL)
def test_whole_scenario(scenario: str, release: str) -> None:
    molecule(scenario, release, WHOLE, long=True)


def test_every_scenario_is_run() -> None:
    scenarios = {path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")}
    assert scenarios == {*ROLES, "host"}
