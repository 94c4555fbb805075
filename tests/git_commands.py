"""git in a checkout that a test makes."""

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    """Return what git prints in a folder, with an identity of its own."""
    done = subprocess.run(
        ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments],
        cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()
