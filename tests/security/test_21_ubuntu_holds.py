"""Row 21: on Ubuntu the kernel metapackages and the driver's modules are held together, so no kernel comes without one."""

from __future__ import annotations

import pytest
from hosts import archive
from hosts.drivers import ROLE_PACKAGES, load_driver, run_driver_role
from hosts.machine import TestHost

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.timeout(1800)]

# A driver's next release comes with the next kernel.
NEXT_PACKAGES = [
    *archive.ubuntu_modules("580-server-open", 71, "580.105.08"),
    *archive.ubuntu_driver("580-server", "580.105.08"),
]


def kernels_without_module(host: TestHost) -> list[str]:
    """The kernels in /boot for which modinfo finds no module of the driver."""
    return host.shell(
        "for kernel in $(ls /boot | sed -n 's/^vmlinuz-//p'); do "
        'PATH=$PATH:/sbin modinfo -k "$kernel" -F version nvidia >/dev/null 2>&1 || echo "$kernel"; done'
    ).split()


def boot(host: TestHost) -> list[str]:
    """The kernels in /boot."""
    return sorted(host.shell("ls /boot | sed -n 's/^vmlinuz-//p'").split())


def held(host: TestHost) -> set[str]:
    """What is held, but the modules of single kernels."""
    return {name for name in host.shell("apt-mark showhold").split() if "6.8.0" not in name}


def test_21_upgrade_installs_no_kernel_without_driver_module(cards: TestHost) -> None:
    # The next boot takes another kernel than the one that runs: both get the module.
    archive.publish(cards, [*archive.ubuntu_kernel(61), *archive.ubuntu_kernel(60, meta=False), *ROLE_PACKAGES,
                            *archive.ubuntu_modules("580-server-open", 61, "580.95.05")])  # fmt: skip
    cards.shell("apt-get -qq -y dist-upgrade >/dev/null")
    assert boot(cards) == ["6.8.0-60-generic", "6.8.0-61-generic"]
    run_driver_role(cards)
    assert kernels_without_module(cards) == []
    packages = held(cards)
    assert {"linux-generic", "linux-image-generic", "linux-headers-generic"} <= packages
    assert {"linux-modules-nvidia-580-server-open-generic", "nvidia-utils-580-server"} <= packages
    unattended = cards.shell("apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert '"^linux-image-generic$"' in unattended or r'"^linux\-image\-generic$"' in unattended

    # apt's own solver: neither an upgrade nor a full one brings a kernel that has no module.
    archive.publish(
        cards,
        [*archive.ubuntu_kernel(71), *archive.ubuntu_kernel(60, meta=False), *ROLE_PACKAGES, *NEXT_PACKAGES],
    )
    for command in ("upgrade", "dist-upgrade", "upgrade --with-new-pkgs"):
        cards.shell(f"apt-get -qq -y {command} >/dev/null")
        assert kernels_without_module(cards) == []
    assert boot(cards) == ["6.8.0-60-generic", "6.8.0-61-generic"]

    # update.yml moves both, and holds them again.
    load_driver(cards, "580.95.05")
    # The modules of the older kernels are of the old version, so that the new one is for the next boot.
    pending = run_driver_role(cards, fails=True, nvidia_driver_state="latest")
    assert (
        "the driver 580.105.08 is installed for the kernel 6.8.0-71-generic, which the next boot takes"
        in pending.output
    )
    assert kernels_without_module(cards) == ["6.8.0-60-generic", "6.8.0-61-generic"]
    assert held(cards) == packages
    assert "6.8.0-71-generic, which the next boot takes" in run_driver_role(cards, fails=True).output

    load_driver(cards, "580.105.08")
    assert run_driver_role(cards, nvidia_driver_kernel="6.8.0-71-generic").changed == 0


def test_21_module_package_without_kernel_package_is_not_held(cards: TestHost) -> None:
    cards.shell("dpkg --purge linux-generic linux-image-generic linux-headers-generic >/dev/null")
    run_driver_role(cards)
    packages = set(cards.shell("apt-mark showhold").split())
    installed = set(cards.shell("dpkg-query -W -f '${Package}\\n' 'linux-*'").split())
    assert not {"linux-generic", "linux-image-generic", "linux-headers-generic"} & (packages | installed)
    # Nothing brings a next kernel, so nothing brings the next kernel's module.
    assert "linux-modules-nvidia-580-server-open-6.8.0-60-generic" in packages
    assert "linux-modules-nvidia-580-server-open-generic" not in installed
    assert kernels_without_module(cards) == []


@pytest.fixture
def cloud_kernel(cards: TestHost) -> TestHost:
    """The host with a cloud's kernel; the archive has newer ones, too, and those of another flavour."""
    aws = [
        *archive.ubuntu_kernel(60, "aws"),
        *archive.ubuntu_modules("580-server-open", 60, "580.95.05", "aws"),
    ]
    other = archive.Package(
        name="linux-modules-nvidia-580-server-open-other", version="1", source="linux-restricted-modules",
        fields={"Depends": "linux-image-6.8.0-60-generic"},
    )  # fmt: skip
    archive.publish(cards, [*aws, *archive.ubuntu_kernel(60), *ROLE_PACKAGES, other])
    cards.shell(
        "apt-get -qq -y install linux-aws >/dev/null; "
        "dpkg-query -W -f '${Package}\\n' 'linux-*generic' | xargs dpkg --purge >/dev/null"
    )
    return cards


def test_21_kernel_of_another_flavour_is_refused(cloud_kernel: TestHost) -> None:
    variables = {"nvidia_driver_kernel": "6.8.0-60-aws", "nvidia_driver_ubuntu_flavour": "other"}
    refused = run_driver_role(cloud_kernel, fails=True, **variables)
    assert "linux-image-6.8.0-60-generic, a kernel of another flavour than this host's" in refused.output


@pytest.mark.full
def test_21_modules_follow_the_flavour_of_the_kernel(cloud_kernel: TestHost) -> None:
    cards = cloud_kernel
    run_driver_role(cards, nvidia_driver_kernel="6.8.0-60-aws")
    assert boot(cards) == ["6.8.0-60-aws"] and kernels_without_module(cards) == []
    assert "generic" not in cards.shell("dpkg-query -W -f '${Package}\\n' 'linux-*'")
    holds = held(cards)
    assert {"linux-aws", "linux-image-aws", "linux-modules-nvidia-580-server-open-aws"} <= holds

    newer = [*archive.ubuntu_kernel(71, "aws"), *archive.ubuntu_kernel(60, "aws", meta=False)]
    archive.publish(cards, [*newer, *archive.ubuntu_modules("580-server-open", 71, "580.105.08", "aws"),
                            *archive.ubuntu_driver("580-server", "580.105.08")])  # fmt: skip
    simulated = cards.shell("apt-get -s dist-upgrade")
    assert "Inst linux-image" not in simulated and "Remv" not in simulated
    load_driver(cards, "580.95.05")
    variables = {"nvidia_driver_state": "latest", "nvidia_driver_kernel": "6.8.0-60-aws"}
    assert (
        "the kernel 6.8.0-71-aws, which the next boot takes"
        in run_driver_role(cards, fails=True, **variables).output
    )
    assert boot(cards) == ["6.8.0-60-aws", "6.8.0-71-aws"]
    assert kernels_without_module(cards) == ["6.8.0-60-aws"] and holds <= set(
        cards.shell("apt-mark showhold").split()
    )
