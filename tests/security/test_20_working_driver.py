"""Row 20: a loaded driver that serves every card is never removed, replaced or held, whoever brought it."""

from __future__ import annotations

import re

import pytest
from hosts.drivers import NEWER_NAMES, SIMULATED, UBUNTU, drive, load, state
from hosts.machine import TestHost
from hosts.play import play

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(1800)]


def test_20_working_driver_from_packages_is_kept(cards: TestHost) -> None:
    cards.shell(f"apt-get -qq -y install {NEWER_NAMES} >/dev/null")
    load(cards, "590.48.01")
    before = state(cards)
    for variables in ({}, {"nvidia_driver_state": "latest"}, {"check": True}):
        played = drive(cards, **variables)
        assert state(cards) == before
        assert played.changed == 0, played.output
        message = (
            "the loaded driver 590.48.01 (from the package linux-modules-nvidia-590-open-6.8.0-60-generic and 5 more) "
            "serves all 2 cards and is left as it is. To replace it: ansible-playbook site.yml --limit bare-host "
            "-e nvidia_driver_replace=true"
        )
        assert message in re.sub(r"\s+", " ", played.output), played.output
    play(cards, "nvidia_driver", tasks_from="uninstall", ansible_facts=UBUNTU, **SIMULATED)
    assert state(cards) == before


def test_20_working_driver_without_packages_is_kept(cards: TestHost) -> None:
    load(cards, "590.48.01", listed=False)
    program = '#!/bin/sh\n[ "$*" != -L ] || printf "GPU 0: A (UUID: x)\\nGPU 1: A (UUID: y)\\n"\n'
    cards.write("/opt/nvidia/bin/nvidia-smi", program, "0755")
    before = state(cards)
    played = drive(cards)
    assert state(cards) == before and played.changed == 0
    assert "590.48.01 (from no package) serves all 2 cards and is left as it is" in played.output


def test_20_holds_of_an_earlier_release_on_a_foreign_driver_are_released(cards: TestHost) -> None:
    cards.shell(f"apt-get -qq -y install {NEWER_NAMES} >/dev/null; apt-mark hold nvidia-utils-590")
    held = "linux-modules-nvidia-590-open-generic\n"
    cards.write("/var/lib/train-classifier/installed/nvidia_driver.holds", held)
    cards.shell(f"apt-mark hold {held}")
    load(cards, "590.48.01")
    drive(cards)
    assert cards.shell("apt-mark showhold").split() == ["nvidia-utils-590"]
    again = drive(cards)
    assert again.changed == 0, again.output


def test_20_driver_is_replaced_only_with_consent_and_never_in_use(cards: TestHost) -> None:
    cards.shell(f"apt-get -qq -y install {NEWER_NAMES} >/dev/null")
    # Installed, but not loaded yet: nothing serves the cards, and still nobody asked for another driver.
    before = state(cards)
    played = drive(cards, fails=True)
    assert "replacing it was not asked for" in played.output and "it is not loaded" in played.output, (
        played.output
    )
    assert state(cards) == before

    load(cards, "590.48.01")
    variables = {"nvidia_driver_replace": True}
    announced = re.sub(r"\s+", " ", drive(cards, check=True, **variables).output)
    assert re.search(r"would change: remove [^;]*nvidia-utils-590\b[^;]*; replace nothing; install [^;]*nvidia-utils-580-server", announced), announced  # fmt: skip
    assert state(cards) == before

    cards.shell(
        "mknod -m 666 /dev/nvidia0 c 1 3; systemd-run -q --unit user sh -c 'exec sleep 3600 </dev/nvidia0'"
    )
    cards.shell("until ls -l /proc/$(systemctl show -P MainPID user)/fd | grep -q nvidia0; do :; done")
    refused = drive(cards, fails=True, **variables)
    assert re.search(r"the driver is in use \(sleep \(process \d+, /dev/nvidia0\)\): nothing was touched", re.sub(r"\s+", " ", refused.output)), refused.output  # fmt: skip
    cards.shell("systemctl stop user")

    job = "20260102-030405-0123abcd"
    folder = f"/var/lib/train-classifier/jobs/{job}"
    cards.shell(f"mkdir -p {folder}; systemd-run -q --unit job flock {folder}/lock sleep 3600")
    cards.shell(f"until [ -e {folder}/lock ]; do :; done")
    refused = drive(cards, fails=True, **variables)
    assert f"the driver is in use (the job {job})" in refused.output, refused.output
    cards.shell("systemctl stop job; rm -r /var/lib/train-classifier/jobs")
    assert re.sub(r".*train-classifier.*\n", "", state(cards)) == re.sub(
        r".*train-classifier.*\n", "", before
    )

    # The old module stays loaded until the next boot, which nobody allowed: the play ends with that.
    played = drive(cards, fails=True, **variables)
    assert (
        "needs a reboot: the loaded kernel module is 590.48.01, the installed driver 580.95.05"
        in played.output
    )
    packages = cards.shell("dpkg-query -W -f '${Package}\\n' '*nvidia*'").split()
    assert "nvidia-utils-580-server" in packages and not [name for name in packages if "590" in name]

    # From now on the driver is the role's: it is held, kept on the next run, and goes with the teardown.
    load(cards, "580.95.05")
    again = drive(cards)
    assert again.changed == 0, again.output
    assert "nvidia-utils-580-server" in cards.shell("apt-mark showhold").split()
    cards.shell("systemd-run -q --unit user sh -c 'exec sleep 3600 </dev/nvidia0'")
    cards.shell("until ls -l /proc/$(systemctl show -P MainPID user)/fd | grep -q nvidia0; do :; done")
    variables = {"tasks_from": "uninstall", "ansible_facts": UBUNTU, **SIMULATED}
    refused = play(cards, "nvidia_driver", fails=True, **variables)
    assert "the driver is in use (sleep" in refused.output, refused.output
    cards.shell("systemctl stop user")
    play(cards, "nvidia_driver", **variables)
    assert "nvidia-utils-580-server" not in cards.shell("dpkg-query -W -f '${Package}\\n'").split()
