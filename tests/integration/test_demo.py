"""scripts/demo as a new user runs it: a bare Debian host, a checkout, sudo, nothing else."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest
from hosts import fleet
from hosts.machine import CA_BUNDLE, TestHost, ca_bundle

pytestmark = [pytest.mark.engine, pytest.mark.host, pytest.mark.full, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parents[2]
CHECKOUT = "/home/trainer/train-classifier"


def copy_checkout(host: TestHost, scratch: Path) -> None:
    """Put what a clone would hold into the user's home."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    archive = scratch / "checkout.tar"
    with tarfile.open(archive, "w") as tar:
        for path in filter(None, listed.split("\0")):
            if (REPOSITORY / path).exists():
                tar.add(REPOSITORY / path, path)
    host.shell(f"mkdir -p {CHECKOUT}")
    with archive.open("rb") as stream:
        command = ["docker", "exec", "-i", host.container, "tar", "-x", "-C", CHECKOUT]
        subprocess.run(command, stdin=stream, check=True)
    host.shell("chown -R trainer:trainer /home/trainer")


def demo(host: TestHost, *arguments: str) -> str:
    bundle = f"SSL_CERT_FILE={CA_BUNDLE} " if ca_bundle() else ""
    command = f"cd {CHECKOUT} && {bundle}scripts/demo {' '.join(arguments)}"
    done = host.ssh(command, user="trainer", timeout=3000)
    return done.stdout + done.stderr


def test_demo_trains_on_bare_host(_hosts_possible: None, tmp_path: Path) -> None:
    host = fleet.bare_host(tmp_path / "host", "bookworm")
    try:
        host.write("/etc/sudoers.d/trainer", "trainer ALL=(ALL) NOPASSWD: ALL\n", "0440")
        copy_checkout(host, tmp_path)
        first = demo(host)
        assert f"{CHECKOUT}/artefacts.tar.gz" in first
        accuracy = next(line for line in first.splitlines() if line.startswith("test_accuracy"))
        assert float(accuracy.split()[1]) >= 0.95
        assert host.shell(f"stat -c %U {CHECKOUT}/artefacts.tar.gz") == "trainer\n"
        started = host.shell("systemctl show -p ActiveEnterTimestampMonotonic docker")
        again = demo(host, "--", "--epochs", "1")
        # The engine is left alone and nothing is prepared, fetched or installed a second time.
        assert host.shell("systemctl show -p ActiveEnterTimestampMonotonic docker") == started
        preparing = again.partition("Prepared in")[0].splitlines()
        assert not [line for line in preparing if line.startswith(("  ", "Installing", "Fetching"))]
        assert "environment: installing" not in again
        # As models of the original action do: with distutils, in the container with TensorFlow.
        trained = host.ssh(
            f"cd {CHECKOUT}/examples/classifiers && ../../.venv/bin/train-classifier train yolo --gpus 0",
            user="trainer", timeout=1800,
        )  # fmt: skip
        precision = next(line for line in trained.stderr.splitlines() if line.startswith("test_map50"))
        assert float(precision.split()[1]) >= 0.5
        names = host.shell(f"tar -tf {CHECKOUT}/examples/classifiers/artefacts.tar.gz")
        assert {"artefacts/model.keras", "artefacts/metrics.json", "artefacts/history.csv"} <= set(
            names.split()
        )
    finally:
        host.remove()
