"""Stand-ins for the packages of the NVIDIA container toolkit, for a test host's archive."""

from __future__ import annotations

import base64
import hashlib
import importlib.util

from . import archive
from .machine import TestHost
from .play import ROOT

NAMES = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
#: The repository that the role adds.
REPOSITORY = "/srv/toolkit"
#: An armoured key, as the role looks at one: apt on this host asks no signature of the archive.
KEY_PACKET = b"\x04good"
FINGERPRINT = hashlib.sha1(b"\x99\x00\x05" + KEY_PACKET).hexdigest().upper()


def key() -> str:
    """The key, armoured."""
    body = base64.encodebytes(bytes([0xC0 | 6, len(KEY_PACKET)]) + KEY_PACKET).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{body}-----END PGP PUBLIC KEY BLOCK-----\n"


def toolkit(version: str) -> list[archive.Package]:
    """The four packages in one version, with Molecule's stand-in for nvidia-ctk."""
    path = ROOT / "molecule/shared/toolkit_repository.py"
    spec = importlib.util.spec_from_file_location("toolkit_repository", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    depends = {
        NAMES[0]: f"{NAMES[1]} (= {version}), {NAMES[2]} (= {version})",
        NAMES[2]: f"{NAMES[3]} (= {version})",
    }
    files = {"usr/bin/nvidia-ctk": module.NVIDIA_CTK, "usr/bin/nvidia-container-runtime": module.RUNTIME}
    return [
        archive.Package(
            name=name, version=version, source=name,
            fields={"Depends": depends[name]} if name in depends else {},
            files=files if name == NAMES[1] else {},
        )
        for name in NAMES
    ]  # fmt: skip


def publish(host: TestHost, *versions: str) -> None:
    """Make these versions the content of the host's only package source, and of the role's repository, which is not signed."""
    packages = [package for version in versions for package in toolkit(version)]
    archive.publish(host, packages)
    archive.make(host, packages, REPOSITORY)
    host.shell(f"rm {REPOSITORY}/InRelease {REPOSITORY}/Release")
