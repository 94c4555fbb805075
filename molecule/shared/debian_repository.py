"""Make a repository of stand-ins for Debian's own driver packages, in /srv/debian-repository.

Real: apt, DKMS, which compiles a module of one file for the named kernel. Stand-ins: what is in the packages.
The real driver takes minutes to build; MOLECULE_LONG=1 (scripts/test --full) installs it.
Runs on the test host, as root, beside cuda_repository.py and toolkit_repository.py:
`debian_repository.py 550.163.01`.
"""

import subprocess
import sys
from pathlib import Path

import cuda_repository
import toolkit_repository

DKMS = """PACKAGE_NAME="nvidia-current"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_NAME[0]="nvidia-current"
DEST_MODULE_LOCATION[0]="/updates/dkms"
AUTOINSTALL="yes"
"""


def files(name: str, version: str) -> dict[str, str]:
    """The content of a package, by path."""
    source = f"usr/src/nvidia-current-{version}"
    contents = {
        "nvidia-kernel-dkms": {
            f"{source}/nvidia.c": cuda_repository.MODULE.format(version=version),
            f"{source}/Makefile": "obj-m := nvidia.o\n",
            f"{source}/dkms.conf": DKMS.format(version=version),
            "DEBIAN/postinst": f"#!/bin/sh\nset -e\ndkms add -m nvidia-current -v {version}\n",
            "DEBIAN/prerm": f"#!/bin/sh\nset -e\ndkms remove -m nvidia-current -v {version} --all\n",
        },
        "nvidia-smi": {"usr/bin/nvidia-smi": "#!/bin/sh\necho stand-in\n"},
        "nvidia-persistenced": cuda_repository.files("nvidia-persistenced", version),
    }
    return contents.get(name, {})


def main(version: str) -> None:
    """Make the repository, and name it to apt."""
    root = Path("/srv/debian-repository")
    root.mkdir(parents=True, exist_ok=True)
    for name in (
        "nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "libnvidia-cfg1", "libnvidia-ml1", "libnvidia-nvvm4",
        "libnvidia-ptxjitcompiler1", "nvidia-modprobe", "nvidia-persistenced",
    ):  # fmt: skip
        depends = "dkms" if name == "nvidia-kernel-dkms" else ""
        cuda_repository.build(root, name, f"{version}-1", files(name, version), depends)
    toolkit_repository.index(root)
    Path("/etc/apt/sources.list.d/stand-in.list").write_text(f"deb [trusted=yes] file:{root} ./\n")
    subprocess.run(["apt-get", "-qq", "update"], check=True)


main(sys.argv[1])
