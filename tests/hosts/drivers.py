"""A test host that Ansible takes for Ubuntu: two simulated cards, and an archive with two drivers in conflict."""

from __future__ import annotations

from . import archive
from .machine import TestHost
from .play import PlayResult, play

KERNEL = "6.8.0-60-generic"
#: The container's system as Ansible's facts find it.
OS_RELEASE = """PRETTY_NAME="Ubuntu {version} LTS"
NAME="Ubuntu"
VERSION_ID="{version}"
VERSION="{version} LTS"
VERSION_CODENAME={suite}
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME={suite}
"""
SUITES = {"22.04": "jammy", "24.04": "noble", "26.04": "resolute"}
SIMULATED = {
    "nvidia_driver_kernel": KERNEL,
    "nvidia_driver_pci_root": "/srv/simulated/pci",
    "nvidia_driver_module_root": "/srv/simulated/modules",
    "nvidia_driver_proc_root": "/srv/simulated/proc",
    "nvidia_driver_efivars": "/srv/simulated/efivars",
    "nvidia_driver_reboot_required_file": "/srv/simulated/reboot-required",
    "nvidia_driver_disk_floor_mib": 1,
    "nvidia_driver_download_retries": 1,
    "nvidia_driver_download_delay": 1,
}
SLOTS = ("0000:01:00.0", "0000:02:00.0")
#: What an administrator chose: newer than the role's choice, and in conflict with it.
NEWER_PACKAGES = [
    *archive.ubuntu_modules("590-open", 60, "590.48.01"),
    *archive.ubuntu_driver("590", "590.48.01"),
]
NEWER_NAMES = "linux-modules-nvidia-590-open-generic nvidia-utils-590 nvidia-compute-utils-590"
ROLE_PACKAGES = [
    *archive.ubuntu_modules("580-server-open", 60, "580.95.05"),
    *archive.ubuntu_driver("580-server", "580.95.05"),
]


def run_driver_role(host: TestHost, **variables: object) -> PlayResult:
    """Run the role nvidia_driver on the simulated cards."""
    return play(host, "nvidia_driver", **{**SIMULATED, **variables})


def host_state(host: TestHost) -> str:
    """All that the role could change: packages, holds, configuration, records."""
    return host.shell(
        "dpkg-query -W -f '${db:Status-Abbrev}${Package} ${Version}\\n'; apt-mark showhold; "
        "find /etc/apt /etc/modprobe.d /etc/systemd/system /var/lib/train-classifier -ls | awk '{$1 = \"\"} 1'"
    )


def load_driver(host: TestHost, version: str, *, listed: bool = True) -> None:
    """Have a driver of this version loaded; `listed`: the kernel lists every card as the driver's."""
    host.shell("rm -rf /srv/simulated/proc; mkdir -p /srv/simulated/proc")
    line = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n"
    host.write("/srv/simulated/proc/version", line)
    if listed:
        host.shell("mkdir -p " + " ".join(f"/srv/simulated/proc/gpus/{slot}" for slot in SLOTS))


def simulate_cards(host: TestHost, *slots: str) -> None:
    """Put NVIDIA cards into slots of the simulated PCI bus."""
    for slot in slots:
        for name, value in (("vendor", "0x10de"), ("device", "0x20b0"), ("class", "0x030200")):
            host.write(f"/srv/simulated/pci/{slot}/{name}", f"{value}\n")


def become_ubuntu(host: TestHost, version: str = "24.04") -> None:
    """Have a host say that it is a release of Ubuntu."""
    text = OS_RELEASE.format(version=version, suite=SUITES[version])
    host.shell("rm -f /etc/os-release")
    host.write("/etc/os-release", text)
    host.write(
        "/etc/lsb-release",
        f"DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE={version}\nDISTRIB_CODENAME={SUITES[version]}\n",
    )


def prepare(host: TestHost) -> None:
    """Give a bare host two cards, a kernel, no driver, and the archive."""
    if "Ubuntu" not in host.shell("cat /etc/os-release"):
        become_ubuntu(host)
    archive.publish(host, [*archive.ubuntu_kernel(60), *NEWER_PACKAGES, *ROLE_PACKAGES])
    host.shell("apt-get -qq -y install linux-generic >/dev/null; mkdir -p /srv/simulated/modules")
    simulate_cards(host, *SLOTS)


def clean(host: TestHost) -> None:
    """Remove from the host what `prepare` and a test added."""
    host.shell(
        "systemctl stop user job 2>/dev/null || :; apt-mark showhold | xargs -r apt-mark unhold >/dev/null; "
        "dpkg-query -W -f '${Package}\\n' '*nvidia*' 'linux-*' 2>/dev/null | grep -v linux-libc | grep -v linux-base | "
        "xargs -r dpkg --purge --force-depends >/dev/null 2>&1; "
        "rm -rf /srv/simulated /opt/nvidia /boot/vmlinuz-* /lib/modules/6.8.0-* /etc/apt/apt.conf.d/52nvidia-driver "
        "/etc/modprobe.d/nvidia-driver-nouveau.conf /var/lib/train-classifier/installed "
        "/var/lib/train-classifier/jobs /dev/nvidia0 /etc/dgx-release"
    )
