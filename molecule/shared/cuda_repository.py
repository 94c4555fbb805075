"""Make a signed repository of stand-ins for NVIDIA's CUDA repository, in /srv/nvidia-repository.

Real: the repository's format and signature, apt, DKMS, which compiles a module for each kernel. Stand-ins:
what is in the packages; the module does nothing but have a version. As from branch 580 on, the package of the
fabric manager does not carry the branch in its name.
Runs on the test host, as root, beside toolkit_repository.py: `cuda_repository.py debian13 580.95.05 …`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import toolkit_repository

URL = "https://127.0.0.1:8124"
KEYRING = "usr/share/keyrings/cuda-archive-keyring.asc"
MODULE = """#include <linux/module.h>
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("stand-in for tests");
MODULE_VERSION("{version}");
"""
DKMS = """PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates"
AUTOINSTALL="yes"
"""
SERVICE = """[Unit]
Description={name} (stand-in)
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""


def files(name: str, version: str) -> dict[str, str]:
    """What is in a package, by path."""
    source = f"usr/src/nvidia-{version}"
    return {
        "nvidia-kernel-open-dkms": {
            f"{source}/nvidia.c": MODULE.format(version=version),
            f"{source}/Makefile": "obj-m := nvidia.o\n",
            f"{source}/dkms.conf": DKMS.format(version=version),
            "DEBIAN/postinst": f"#!/bin/sh\nset -e\ndkms add -m nvidia -v {version}\n",
            "DEBIAN/prerm": f"#!/bin/sh\nset -e\ndkms remove -m nvidia -v {version} --all\n",
        },
        "nvidia-driver-cuda": {"usr/bin/nvidia-smi": "#!/bin/sh\necho stand-in\n"},
        "nvidia-persistenced": {
            "usr/lib/systemd/system/nvidia-persistenced.service": SERVICE.format(name=name)
        },
        "nvidia-fabricmanager": {
            "usr/lib/systemd/system/nvidia-fabricmanager.service": SERVICE.format(name=name)
        },
    }.get(name, {})


def build(root: Path, name: str, version: str, contents: dict[str, str], depends: str = "") -> None:
    """Build one stand-in package."""
    tree = root.parent / f"{name}.tree"
    contents = {
        "DEBIAN/control": f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
        "Maintainer: tests <tests@example.org>\n"
        + ("" if name == "cuda-keyring" else "Source: nvidia-driver\n")
        + (f"Depends: {depends}\n" if depends else "")
        + "Description: stand-in for tests\n",
        **contents,
    }
    for path, text in contents.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if text.startswith("#!") else 0o644)
    # Packages that are made again are the same files: the role knows one of them by its checksum.
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, root],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
    )  # fmt: skip
    shutil.rmtree(tree)


def main(release: str, versions: list[str]) -> None:
    """Make the repository with every package in each of `versions`."""
    root = Path("/srv/nvidia-repository") / release / "x86_64"
    root.mkdir(parents=True, exist_ok=True)
    for version in versions:
        for name in ("nvidia-driver-cuda", "nvidia-persistenced", "nvidia-fabricmanager"):
            build(root, name, f"{version}-1", files(name, version))
        build(
            root, "nvidia-kernel-open-dkms", f"{version}-1", files("nvidia-kernel-open-dkms", version), "dkms"
        )
        build(root, "nvidia-driver-pinning-580", f"{version}-1", {})
    toolkit_repository.index(root)
    toolkit_repository.sign(root)
    line = f"deb [signed-by=/{KEYRING}] {URL}/{release}/x86_64/ /\n"
    build(
        root,
        "cuda-keyring",
        "1.1-1",
        {KEYRING: (root / "gpgkey").read_text(), f"etc/apt/sources.list.d/cuda-{release}-x86_64.list": line},
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
