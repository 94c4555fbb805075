"""Make a signed Debian repository of stand-ins for the NVIDIA container toolkit, in /srv/nvidia-repository.

Real: the repository's format and signature, apt, pins, holds. Stand-ins: what is in the packages. Their
nvidia-ctk takes the command lines the role uses and merges JSON as the real one does; its CDI specification
names /dev/null.
Runs on the test host, as root. Needs dpkg-deb and gpg. Prints the key's fingerprint.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from email.utils import formatdate
from pathlib import Path

ROOT = Path("/srv/nvidia-repository")
PACKAGES = [
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
]

NVIDIA_CTK = '''#!/usr/bin/python3
"""Stand-in for nvidia-ctk."""
import json, os, sys

arguments = [a for a in sys.argv[1:] if a not in ("--quiet", "-q")]
options = dict((a.lstrip("-").split("=", 1) + ["true"])[:2] for a in arguments if a.startswith("--"))
words = [a for a in arguments if not a.startswith("--")]
if words == ["runtime", "configure"] and options.get("runtime") == "docker":
    path = options.get("config", "/etc/docker/daemon.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except FileNotFoundError:
        config = {}
    config.setdefault("runtimes", {})["nvidia"] = {"args": [], "path": "nvidia-container-runtime"}
    if "cdi.enabled" in options:
        config.setdefault("features", {})["cdi"] = True
    if os.path.exists("/etc/stand-in-nvidia-ctk-loses-keys"):
        config = {"runtimes": config["runtimes"]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=4)
elif words == ["cdi", "generate"]:
    with open(options["output"], "w", encoding="utf-8") as file:
        file.write("cdiVersion: 0.5.0\\nkind: nvidia.com/gpu\\ndevices:\\n- name: all\\n  containerEdits:\\n"
                   "    deviceNodes:\\n    - path: /dev/null\\n")
elif "--version" in sys.argv:
    print("NVIDIA Container Toolkit CLI (stand-in)")
else:
    sys.exit(f"nvidia-ctk (stand-in): unknown command line {sys.argv[1:]}")
'''

RUNTIME = '#!/bin/sh\n# Stand-in: adds nothing to what runc does.\nexec runc "$@"\n'

SERVICE = """[Unit]
Description=Refresh the NVIDIA CDI specification (stand-in)
ConditionPathExists=/proc/driver/nvidia/version
[Service]
Type=oneshot
ExecStart=/usr/bin/nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml
[Install]
WantedBy=multi-user.target
"""
PATH_UNIT = """[Unit]
Description=Watch for a new NVIDIA driver (stand-in)
[Path]
PathChanged=/lib/modules
[Install]
WantedBy=multi-user.target
"""


def build(name: str, version: str, folder: Path) -> None:
    """Build one stand-in package."""
    tree = folder / f"{name}_{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    depends = {
        "nvidia-container-toolkit": f"nvidia-container-toolkit-base (= {version}), "
        f"libnvidia-container-tools (= {version})",
        "libnvidia-container-tools": f"libnvidia-container1 (= {version})",
        "nvidia-container-toolkit-base": "python3",
    }.get(name, "")
    control = (
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: tests <tests@example.org>\n"
    )
    control += f"Depends: {depends}\n" if depends else ""
    (tree / "DEBIAN/control").write_text(control + "Description: stand-in for tests\n")
    if name == "nvidia-container-toolkit-base":
        files = {
            "usr/bin/nvidia-ctk": NVIDIA_CTK,
            "usr/bin/nvidia-container-runtime": RUNTIME,
            "usr/lib/systemd/system/nvidia-cdi-refresh.service": SERVICE,
            "usr/lib/systemd/system/nvidia-cdi-refresh.path": PATH_UNIT,
        }
        for path, text in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            target.chmod(0o755 if path.startswith("usr/bin") else 0o644)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, ROOT], check=True, stdout=subprocess.DEVNULL
    )


def index(root: Path) -> None:
    """Write Packages and Release."""
    stanzas = []
    for deb in sorted(root.glob("*.deb")):
        data = deb.read_bytes()
        control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True).stdout
        stanzas.append(
            f"{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: "
            f"{hashlib.sha256(data).hexdigest()}\n"
        )
    packages = "\n".join(stanzas).encode()
    (root / "Packages").write_bytes(packages)
    (root / "Packages.gz").write_bytes(gzip.compress(packages))
    lines = ["Origin: stand-in", "Suite: stable", f"Date: {formatdate(usegmt=True)}", "SHA256:"]
    for name in ("Packages", "Packages.gz"):
        data = (root / name).read_bytes()
        lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}")
    (root / "Release").write_text("\n".join(lines) + "\n")


def sign(root: Path) -> str:
    """Sign Release, export the key as gpgkey, and return the key's fingerprint."""
    home = Path("/srv/nvidia-repository.gnupg")
    home.mkdir(mode=0o700, exist_ok=True)
    environment = {**os.environ, "GNUPGHOME": str(home)}
    gpg = ["gpg", "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]
    if not any(home.glob("private-keys-v1.d/*")):
        subprocess.run(
            [*gpg, "--quick-gen-key", "Stand-in <tests@example.org>", "rsa3072", "sign", "never"],
            check=True,
            env=environment,
            stderr=subprocess.DEVNULL,
        )
    subprocess.run(
        [*gpg, "--yes", "--armor", "--export", "--output", root / "gpgkey"], check=True, env=environment
    )
    subprocess.run(
        [*gpg, "--yes", "--clearsign", "--output", root / "InRelease", root / "Release"],
        check=True,
        env=environment,
    )
    listed = subprocess.run(
        [*gpg, "--with-colons", "--list-keys"], check=True, env=environment, capture_output=True, text=True
    )
    subprocess.run(["gpgconf", "--kill", "all"], check=True, env=environment)
    return next(line.split(":")[9] for line in listed.stdout.splitlines() if line.startswith("fpr"))


def main(versions: list[str]) -> None:
    """Make the repository with every package in each of `versions`."""
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    work = Path("/srv/nvidia-repository.work")
    shutil.rmtree(work, ignore_errors=True)
    for version in versions:
        for name in PACKAGES:
            build(name, version, work)
    shutil.rmtree(work)
    index(ROOT)
    print(sign(ROOT))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
