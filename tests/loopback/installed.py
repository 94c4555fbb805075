"""The product as users install it: its wheel and the locked dependencies in a clean environment."""

from __future__ import annotations

import subprocess
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
