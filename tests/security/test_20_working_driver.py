"""Row 20: a loaded driver that serves every card is never removed, replaced or held, whoever installed it."""

from __future__ import annotations

import re

import pytest
from hosts.drivers import NEWER_NAMES, SIMULATED, host_state, load_driver, run_driver_role
from hosts.machine import TestHost
from hosts.play import play

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(1800)]


def test_20_working_driver_from_packages_is_kept(cards: TestHost) -> None:
    cards.shell(f"apt-get -qq -y install {NEWER_NAMES} >/dev/null")
    load_driver(cards, "590.48.01")
    before = host_state(cards)
    for variables in ({"nvidia_driver_state": "latest"}, {"check": True}):
        result = run_driver_role(cards, **variables)
        assert host_state(cards) == before
        assert result.changed == 0, result.output
        message = (
            "the loaded driver 590.48.01 (from the package linux-modules-nvidia-590-open-6.8.0-60-generic and 5 more) "
            "serves all 2 cards and is left as it is. To replace it: ansible-playbook site.yml --limit bare-host "
            "-e nvidia_driver_replace=true"
        )
        assert message in re.sub(r"\s+", " ", result.output), result.output
    play(cards, "nvidia_driver", tasks_from="uninstall", **SIMULATED)
    assert host_state(cards) == before


def test_20_working_driver_without_packages_is_kept(cards: TestHost) -> None:
    load_driver(cards, "590.48.01", listed=False)
    program = '#!/bin/sh\n[ "$*" != -L ] || printf "GPU 0: A (UUID: x)\\nGPU 1: A (UUID: y)\\n"\n'
    cards.write("/opt/nvidia/bin/nvidia-smi", program, "0755")
    before = host_state(cards)
    result = run_driver_role(cards)
    assert host_state(cards) == before and result.changed == 0
    assert (
        "590.48.01 (not installed by packages we know) serves all 2 cards and is left as it is"
        in result.output
    )

    # A system that brings its own driver keeps it, or its absence.
    cards.shell("rm -r /srv/simulated/proc /opt/nvidia; touch /etc/dgx-release")
    before = host_state(cards)
    result = run_driver_role(cards)
    assert host_state(cards) == before and result.changed == 0
    assert (
        "runs DGX OS, which brings its own driver, and has no driver now: nothing is changed" in result.output
    )


def test_20_holds_of_an_earlier_release_on_a_foreign_driver_are_released(cards: TestHost) -> None:
    cards.shell(f"apt-get -qq -y install {NEWER_NAMES} >/dev/null; apt-mark hold nvidia-utils-590")
    packages = "linux-modules-nvidia-590-open-generic\n"
    cards.write("/var/lib/train-classifier/installed/nvidia_driver.holds", packages)
    cards.shell(f"apt-mark hold {packages}")
    load_driver(cards, "590.48.01")
    run_driver_role(cards)
    assert cards.shell("apt-mark showhold").split() == ["nvidia-utils-590"]


def test_20_driver_is_replaced_only_with_consent_and_never_in_use(cards: TestHost) -> None:
    cards.shell(f"apt-get -qq -y install {NEWER_NAMES} >/dev/null")
    # Installed, but not loaded yet: nothing serves the cards, and there is no consent for another driver.
    before = host_state(cards)
    result = run_driver_role(cards, fails=True)
    assert "replacing it was not asked for" in result.output and "it is not loaded" in result.output, (
        result.output
    )
    assert host_state(cards) == before

    load_driver(cards, "590.48.01")
    variables = {"nvidia_driver_replace": True}
    announced = re.sub(r"\s+", " ", run_driver_role(cards, check=True, **variables).output)
    assert re.search(r"would change: remove [^;]*nvidia-utils-590\b[^;]*; replace nothing; install [^;]*nvidia-utils-580-server", announced), announced  # fmt: skip
    assert host_state(cards) == before

    cards.shell(
        "mknod -m 666 /dev/nvidia0 c 1 3; systemd-run -q --unit user sh -c 'exec sleep 3600 </dev/nvidia0'"
    )
    cards.shell("until ls -l /proc/$(systemctl show -P MainPID user)/fd | grep -q nvidia0; do :; done")
    job = "20260102-030405-0123abcd"
    folder = f"/var/lib/train-classifier/jobs/{job}"
    cards.shell(f"mkdir -p {folder}; systemd-run -q --unit job flock {folder}/lock sleep 3600")
    cards.shell(f"until [ -e {folder}/lock ]; do :; done")
    refused = run_driver_role(cards, fails=True, **variables)
    in_use = (
        rf"the driver is in use \(the job {job}, sleep \(process \d+, /dev/nvidia0\)\): nothing was touched"
    )
    assert re.search(in_use, re.sub(r"\s+", " ", refused.output)), refused.output
    cards.shell("systemctl stop user job; rm -r /var/lib/train-classifier/jobs")
    assert re.sub(r".*train-classifier.*\n", "", host_state(cards)) == re.sub(
        r".*train-classifier.*\n", "", before
    )

    # The old module stays loaded until the next boot, which was not allowed: the play ends with that.
    result = run_driver_role(cards, fails=True, **variables)
    assert (
        "needs a reboot: the loaded kernel module is 590.48.01, the installed driver 580.95.05"
        in result.output
    )
    packages = cards.shell("dpkg-query -W -f '${Package}\\n' '*nvidia*'").split()
    assert "nvidia-utils-580-server" in packages and not [name for name in packages if "590" in name]

    # From now on the driver is the role's: it is held, kept on the next run, and removed by the teardown.
    load_driver(cards, "580.95.05")
    again = run_driver_role(cards)
    assert again.changed == 0, again.output
    assert "nvidia-utils-580-server" in cards.shell("apt-mark showhold").split()
    cards.shell("systemd-run -q --unit user sh -c 'exec sleep 3600 </dev/nvidia0'")
    cards.shell("until ls -l /proc/$(systemctl show -P MainPID user)/fd | grep -q nvidia0; do :; done")
    variables = {"tasks_from": "uninstall", **SIMULATED}
    refused = play(cards, "nvidia_driver", fails=True, **variables)
    assert "the driver is in use (sleep" in refused.output, refused.output
    cards.shell("systemctl stop user")
    play(cards, "nvidia_driver", **variables)
    assert "nvidia-utils-580-server" not in cards.shell("dpkg-query -W -f '${Package}\\n'").split()
