"""Row 19: what is fetched is what we chose: by checksum, by hash, by commit."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hosts.machine import TestHost
from hosts.play import ROOT, play

REPOSITORY = "http://127.0.0.1:8119"
DEBIAN = {"distribution": "Debian", "architecture": "x86_64"}
#: A package with NVIDIA's name whose installation runs the attacker's script as root.
KEYRING = textwrap.dedent("""
    mkdir -p /srv/tampered/tree/DEBIAN /srv/tampered/debian12/x86_64
    cd /srv/tampered
    printf 'Package: cuda-keyring\\nVersion: 1.1-1\\nArchitecture: all\\nMaintainer: x <x@example.org>\\nDescription: x\\n' \\
        >tree/DEBIAN/control
    printf '#!/bin/sh\\ntouch /root/attacked\\n' >tree/DEBIAN/postinst
    chmod 0755 tree/DEBIAN/postinst
    dpkg-deb --root-owner-group -Znone -b tree debian12/x86_64 >/dev/null
    systemd-run --quiet --unit test-tampered python3 -m http.server --bind 127.0.0.1 --directory /srv/tampered 8119
""")


@pytest.fixture
def tampered_repository(ssh_host: TestHost) -> Iterator[TestHost]:
    """The Debian 12 host with a mirror whose package of NVIDIA's key is not NVIDIA's."""
    ssh_host.shell(KEYRING)
    yield ssh_host
    ssh_host.shell(
        "systemctl stop test-tampered.service; rm -rf /srv/tampered /root/attacked "
        "/var/cache/apt/archives/cuda-keyring_1.1-1_all.deb; dpkg --purge cuda-keyring >/dev/null 2>&1"
    )


@pytest.mark.engine
@pytest.mark.host
def test_19_tampered_cuda_keyring_is_not_installed(tampered_repository: TestHost) -> None:
    host = tampered_repository
    source = {
        "tasks_from": "source_cuda_repository",
        "nvidia_driver_cuda_repository_url": REPOSITORY,
        "nvidia_driver_download_retries": 0,
        # What the role's main makes of the proxies before.
        "common_protected_environment": {},
        "fails": True,
    }
    facts = {**DEBIAN, "distribution_major_version": "12"}
    done = play(host, "nvidia_driver", ansible_facts=facts, **source)  # type: ignore[arg-type]
    assert "did not match" in done.output
    # Of this release no checksum is known: nothing is fetched without one.
    facts = {**DEBIAN, "distribution_major_version": "13"}
    done = play(host, "nvidia_driver", ansible_facts=facts, **source)  # type: ignore[arg-type]
    assert "set nvidia_driver_cuda_keyring_checksum to sha256:" in " ".join(done.output.split())
    assert host.exec("test", "-e", "/root/attacked", check=False).returncode == 1
    assert host.exec("dpkg-query", "-W", "cuda-keyring", check=False).returncode == 1


def test_19_cuda_keyring_checksums_are_complete() -> None:
    variables = yaml.safe_load((ROOT / "roles/nvidia_driver/vars/main.yml").read_text())
    checksums = variables["__nvidia_driver_keyring_checksums"]
    assert {"debian12/x86_64", "ubuntu2204/x86_64", "ubuntu2404/x86_64", "ubuntu2604/x86_64"} <= set(
        checksums
    )
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in checksums.values())
    assert len(set(checksums.values())) == len(checksums)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_19_image_is_installed_from_hashes_only(kind: str) -> None:
    version = yaml.safe_load((ROOT / "roles/training_host/defaults/main.yml").read_text())[
        "training_host_tensorflow_version"
    ]
    lock = (ROOT / f"roles/training_host/files/tensorflow-{kind}.lock").read_text()
    packages = re.split(r"\n(?=[a-z])", lock)
    assert all(re.match(r"[a-z0-9-]+==\S+ ", package) for package in packages)
    assert all("--hash=sha256:" in package for package in packages)
    assert any(re.match(rf"tensorflow(-cpu)?=={re.escape(version)} ", package) for package in packages)
    # No index: it installs from whatever index a host is configured with.
    assert "://" not in lock
    script = (ROOT / "roles/training_host/files/build-image").read_text()
    installs = re.findall(r"pip install (?:.*\\\n)*.*", script)
    assert installs and all("--require-hashes --only-binary :all:" in line for line in installs)


def _pip_installs() -> list[tuple[str, str]]:
    """The beginning of every command that installs or downloads Python packages, in what we run on hosts and runners."""
    uses = []
    for folder in ("roles", "scripts", "playbooks", "plugins"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix not in (".lock", ".md", ".pyc"):
                text = path.read_text(encoding="utf-8", errors="replace")
                text = re.sub(r"[\s\\\\\"',]+", " ", re.sub(r"(?m)^\s*#.*", "", text))
                starts = [match.start() for match in re.finditer(r"\bpip (install|download)\b", text)]
                uses += [(str(path.relative_to(ROOT)), text[start : start + 250]) for start in starts]
    return uses


def test_19_every_pip_install_requires_hashes() -> None:
    """The installation of the checkout itself fetches nothing but what builds it, by hash too."""
    commands = _pip_installs()
    assert {path for path, _ in commands} >= {
        "roles/training_host/files/build-image",
        "roles/training_host/tasks/uv_fetch.yml",
        "scripts/action_environment.py",
        "scripts/lib.sh",
    }
    hashed = ("--require-hashes", "--build-constraints $repo/scripts/requirements-build.lock --no-deps")
    loose = [item for item in commands if not any(option in item[1] for option in hashed)]
    assert loose == []


def test_19_no_download_is_piped_into_a_shell() -> None:
    for folder in ("roles", "scripts", "playbooks", "examples", "docs", ".github"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                text = path.read_text(encoding="utf-8", errors="replace")
                assert not re.search(r"(curl|wget)[^\n]*\|\s*(sudo\s+)?(ba|da)?sh\b", text), path


def _uses() -> list[tuple[str, str, str]]:
    """Every action in workflows, examples and pages, with its place and what it is pinned by."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
    workflows = [*ROOT.glob(".github/workflows/*.yml"), *ROOT.glob("examples/**/.github/workflows/*.yml")]
    return [
        (str(path.relative_to(ROOT)), action, reference)
        for path in [*pages, *workflows]
        for action, reference in re.findall(
            r"uses: ([\w.-]+/[\w./-]+)@([^\s,}`]+)", Path(path).read_text(encoding="utf-8")
        )
    ]


def test_19_every_action_is_pinned_by_commit() -> None:
    uses = _uses()
    assert len(uses) >= 15
    assert [item for item in uses if not re.fullmatch(r"[0-9a-f]{40}", item[2])] == []
