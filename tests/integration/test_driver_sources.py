"""The package sources of the role nvidia_driver: another list never makes apt unusable, and what apt refuses is named."""

from __future__ import annotations

import re

import pytest
from hosts import archive
from hosts.drivers import SIMULATED, host_state, run_driver_role
from hosts.machine import TestHost
from hosts.play import play

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(1800)]

OLD = "/etc/apt/sources.list.d/cuda.list"
FOREIGN = "/etc/apt/sources.list.d/foreign.list"


def apt_works(host: TestHost) -> bool:
    """Whether apt reads every source without an error."""
    return host.exec("apt-get", "-qq", "update", "--error-on=any", check=False).returncode == 0


def test_old_list_of_nvidia_does_not_stop_apt(cards: TestHost) -> None:
    checksum = archive.cuda_repository(cards, "590.44.01", "590.48.01")
    variables = {
        "nvidia_driver_source": "cuda_repository", "nvidia_driver_branch": 590,
        "nvidia_driver_cuda_repository_url": f"file://{archive.CUDA}", "nvidia_driver_cuda_keyring_checksum": checksum,
    }  # fmt: skip
    folder = cards.shell(f"printf %s {archive.CUDA}/*/x86_64")
    # As an administrator wrote it years ago: without a key, in Latin-1.
    cards.shell(
        f"printf '# f\\374r CUDA\\ndeb [trusted=yes] file://{folder} /\\n' >{OLD}; md5sum {OLD} >/srv/old"
    )
    before = host_state(cards)

    # A repository that apt refuses is not added, and the old list stays.
    cards.shell(
        f"cp {folder}/InRelease /srv/good; sed -i 's/^SHA256:/Label: forged\\nSHA256:/' {folder}/InRelease"
    )
    refused = run_driver_role(cards, fails=True, **variables)
    assert "the list of packages could not be fetched from file:" in refused.output
    assert "The source was not added to the host." in refused.output
    assert re.sub(r".*train-classifier.*\n", "", host_state(cards)) == re.sub(
        r".*train-classifier.*\n", "", before
    )
    cards.shell(f"cp /srv/good {folder}/InRelease")

    # So is apt itself when another list of the host is broken: the message names it.
    cards.shell(f"echo 'deb nowhere' >{FOREIGN}")
    broken = run_driver_role(cards, fails=True, **variables)
    assert (
        f"The entry is in {FOREIGN}: correct it, or put it aside (mv {FOREIGN} {FOREIGN}.disabled)"
        in broken.output
    )
    cards.shell(f"rm {FOREIGN}")
    assert apt_works(cards)

    # The names are those from branch 590 on. In the place of needrestart stands what would see that it may run.
    hook = 'DPkg::Post-Invoke { "test $NEEDRESTART_SUSPEND || touch /srv/needrestart"; };\n'
    cards.write("/etc/apt/apt.conf.d/99needrestart", hook)
    result = run_driver_role(cards, **variables)
    assert f"{OLD} named NVIDIA's repository, too" in broken.output + result.output
    assert apt_works(cards) and cards.exec("test", "-e", OLD, check=False).returncode
    holds = set(cards.shell("apt-mark showhold").split())
    assert {"nvidia-dkms-open", "libnvidia-compute", "nvidia-utils", "nvidia-driver-pinning-590"} <= holds

    # An exact version, and what is held of it.
    variables["nvidia_driver_version"] = "590.44.01"
    run_driver_role(cards, **variables)
    versions = "dpkg-query -W -f '${Version}\\n' nvidia-dkms-open libnvidia-compute nvidia-utils"
    assert set(cards.shell(versions).split()) == {"590.44.01-1ubuntu1"}
    again = run_driver_role(cards, nvidia_driver_state="latest", **variables)
    assert again.changed == 0, again.output
    missing = run_driver_role(cards, fails=True, **{**variables, "nvidia_driver_version": "590.1.1"})
    assert "no package nvidia-dkms-open, libnvidia-compute, nvidia-utils is available" in missing.output

    play(cards, "nvidia_driver", tasks_from="uninstall", **SIMULATED)
    assert cards.exec("test", "-e", "/srv/needrestart", check=False).returncode
    cards.shell("rm /etc/apt/apt.conf.d/99needrestart")
    cards.shell("md5sum -c --status /srv/old")
    installed = cards.shell("dpkg-query -W -f '${db:Status-Status} ${Package}\\n'")
    assert "installed cuda-keyring" not in installed and "installed nvidia" not in installed
    assert not cards.shell("find /var/lib/train-classifier -mindepth 1")


def test_missing_component_of_ubuntu_is_named(cards: TestHost) -> None:
    cards.shell("sed -i 's/ restricted universe multiverse//' /etc/apt/sources.list.d/ubuntu.sources")
    refused = run_driver_role(cards, fails=True)
    assert (
        "Ubuntu has it in restricted and multiverse, not among the components of this host" in refused.output
    )
