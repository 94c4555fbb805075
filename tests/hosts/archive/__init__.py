"""A stand-in for a distribution's archive on a test host: tiny packages, the distribution's names, apt's own solver."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..machine import TestHost

MAKE = Path(__file__).with_name("make.py")
FOLDER = "/srv/archive"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package: its control fields, and its files by path (text, or bytes of a kernel module)."""

    name: str
    version: str
    source: str
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    kernel: str = ""
    module: str = ""


def kernel_module(version: str) -> bytes:
    """An ELF file with nothing but a .modinfo section: modinfo reads its version, no kernel would load it."""
    info = f"version={version}\0license=simulated\0name=nvidia\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    header = 64
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, header, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, header + len(info), len(names), 0, 0, 1, 0),
    ]
    start = header + len(info) + len(names)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, len(sections), 2)
    return elf + info + names + b"".join(sections)


def publish(host: TestHost, packages: Iterable[Package]) -> None:
    """Make the archive of these packages the host's only package source."""
    table = []
    for package in packages:
        row = asdict(package)
        row["module"] = (
            base64.b64encode(kernel_module(package.module)).decode("ascii") if package.module else ""
        )
        table.append(row)
    host.write("/srv/make-archive", MAKE.read_text())
    host.exec("python3", "/srv/make-archive", FOLDER, input=json.dumps(table))


def ubuntu_kernel(abi: int, flavour: str = "generic", *, meta: bool = True) -> list[Package]:
    """Ubuntu's packages of a kernel; `meta` adds the packages that bring it: linux-generic and its parts."""
    name, version = f"6.8.0-{abi}-{flavour}", f"6.8.0-{abi}.{abi}"
    packages = [
        Package(
            name=f"linux-image-{name}", version=version, source="linux-signed",
            fields={"Depends": f"linux-modules-{name}"}, files={f"boot/vmlinuz-{name}": name},
        ),
        Package(name=f"linux-modules-{name}", version=version, source="linux"),
        Package(name=f"linux-headers-{name}", version=version, source="linux"),
    ]  # fmt: skip
    if meta:
        both = f"linux-image-{flavour} (= {version}), linux-headers-{flavour} (= {version})"
        packages += [
            Package(name=f"linux-image-{flavour}", version=version, source="linux-meta", fields={"Depends": f"linux-image-{name}"}),
            Package(name=f"linux-headers-{flavour}", version=version, source="linux-meta", fields={"Depends": f"linux-headers-{name}"}),
            Package(name=f"linux-{flavour}", version=version, source="linux-meta", fields={"Depends": both}),
        ]  # fmt: skip
    return packages


def ubuntu_modules(
    branch: str, abi: int, driver: str, flavour: str = "generic", *, meta: bool = True
) -> list[Package]:
    """Ubuntu's signed modules of a driver for one kernel; `branch` is such as `580-server-open`."""
    kernel, version = f"6.8.0-{abi}-{flavour}", f"6.8.0-{abi}.{abi}+1"
    common = f"nvidia-kernel-common-{branch.removesuffix('-open')} (>= {driver})"
    packages = [
        Package(
            name=f"linux-modules-nvidia-{branch}-{kernel}", version=version, source="linux-restricted-modules",
            fields={"Depends": f"linux-image-{kernel}, {common}"}, kernel=kernel, module=driver,
        )
    ]  # fmt: skip
    if meta:
        depends = f"linux-modules-nvidia-{branch}-{kernel} (= {version})"
        packages.append(
            Package(
                name=f"linux-modules-nvidia-{branch}-{flavour}", version=version,
                source="linux-restricted-modules", fields={"Depends": depends},
            )
        )  # fmt: skip
    return packages


def ubuntu_driver(branch: str, driver: str) -> list[Package]:
    """The rest of a driver of Ubuntu: `branch` is such as `580-server`. No two branches go together."""
    source, version = f"nvidia-graphics-drivers-{branch}", f"{driver}-0ubuntu1"
    packages = []
    for part in ("nvidia-kernel-common", "libnvidia-compute", "nvidia-utils", "nvidia-compute-utils"):
        fields = {"Provides": part, "Conflicts": part, "Replaces": part}
        if part != "libnvidia-compute":
            fields["Depends"] = f"libnvidia-compute-{branch}"
        packages.append(Package(name=f"{part}-{branch}", version=version, source=source, fields=fields))
    return packages
