"""Where an environment is built: a folder made, filled and finished as the job's user.

What runs in a build (a setup.py, say) may do anything to this folder and to uv's cache beside it; so nothing
here is touched with more rights than that user has, and no other part of the store is within its reach.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from train_classifier.worker import program
from train_classifier.worker.host import Account
from train_classifier.worker.store import write_bytes, write_json

#: What uv reads of ours, and the copies of local packages (builds write into them): two folders, since a
#: repository that is a package itself has files of the same names.
OURS = "work/ours"
REPOSITORY = "work/repository"


def make(account: Account, request: dict[str, Any]) -> None:
    """Do `make_part` as the account. Raises what it raises."""
    _as(account, "place-make", make_part, request)


def finish(account: Account, request: dict[str, Any]) -> None:
    """Do `finish_part` as the account. Raises what it raises."""
    _as(account, "place-finish", finish_part, request)


def _as(account: Account, name: str, part: Any, request: dict[str, Any]) -> None:
    if account.options():
        program.call(account, name, request)
    else:
        part(request)


def make_part(request: dict[str, Any]) -> dict[str, Any]:
    """Make the folder of a build.

    The request: `folder`, `nearest` (the site of an environment to start from, or null), `files` (name to
    text, ours), `paths` (local packages, relative to `workspace`).
    """
    folder = Path(request["folder"])
    (folder.parent / "uv-cache").mkdir(0o700, exist_ok=True)
    folder.mkdir(0o700)
    site = folder / "site"
    site.mkdir()
    # Hard links: only what differs takes space and time. One that was cleaned meanwhile is done without.
    nearest = request["nearest"]
    if nearest and subprocess.run(["cp", "-al", f"{nearest}/.", str(site)], check=False).returncode != 0:
        shutil.rmtree(site)
        site.mkdir()
    (folder / OURS).mkdir(parents=True)
    for name, text in request["files"].items():
        (folder / OURS / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    (folder / REPOSITORY).mkdir()
    for relative in request["paths"]:
        source, target = Path(request["workspace"]) / relative, folder / REPOSITORY / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(
                source, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git")
            )
        else:
            shutil.copy(source, target)
    return {}


def finish_part(request: dict[str, Any]) -> dict[str, Any]:
    """Make an environment of what was built: complete it, then rename it to where it is found.

    The request: `folder`, `target`, `activation` (name and text of its .pth file), `record`.
    """
    folder = Path(request["folder"])
    shutil.rmtree(folder / "work")
    name, text = request["activation"]
    # By rename: whatever a build may have put there is replaced, never followed.
    write_bytes(folder / name, text.encode(), 0o644)
    write_json(folder / "environment.json", request["record"])
    os.rename(folder, request["target"])
    return {}
