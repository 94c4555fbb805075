"""The product as users install it: its wheel with the locked dependencies, or its Ansible collection with Ansible alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .world import PACKAGE, tail


def uv(*words: str | Path) -> None:
    """Run uv in the checkout; fail with its own words."""
    done = subprocess.run(["uv", *map(str, words)], capture_output=True, check=False, cwd=PACKAGE)
    assert done.returncode == 0, tail(done.stderr)


def build(folder: Path) -> Path:
    """Build the wheel into `folder` and return it."""
    uv("build", "-q", "--wheel", "--out-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, python: str, venv: Path) -> Path:
    """Make the environment `venv` for the interpreter `python` and return its `train-classifier`."""
    uv("venv", "-q", "--python", python, venv)
    command = ("pip", "install", "-q", "--python", venv / "bin" / "python")
    uv(*command, "--require-hashes", "-r", PACKAGE / "requirements.lock")
    uv(*command, "--no-deps", wheel)
    return venv / "bin" / "train-classifier"


def build_collection(folder: Path) -> Path:
    """Build the Ansible collection into `folder` and return it."""
    program = Path(sys.executable).with_name("ansible-galaxy")
    subprocess.run(
        [program, "collection", "build", "--output-path", folder, PACKAGE],
        env={**os.environ, "ANSIBLE_HOME": str(folder), "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
        check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    (built,) = folder.glob("*.tar.gz")
    return built


def install_collection(built: Path, folder: Path) -> Path:
    """Install a collection below `folder` beside an environment that has only Ansible; return its `ansible-playbook`."""
    venv = folder / "venv"
    uv("venv", "-q", "--python", sys.executable, venv)
    uv(
        "pip",
        "install",
        "-q",
        "--python",
        venv / "bin" / "python",
        "--require-hashes",
        "-r",
        PACKAGE / "requirements.lock",
    )
    command = ("collection", "install", "-p", folder / "collections", built)
    # A setting that names the checkout's own collections would have it count as installed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    subprocess.run(
        [venv / "bin/ansible-galaxy", *command],
        cwd=folder, env={**environment, "ANSIBLE_HOME": str(folder)},
        check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    return venv / "bin/ansible-playbook"
