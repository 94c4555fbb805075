"""The folder of a build: created by the submitting account, filled and emptied as the job's user.

    build/.HASH.tmp/    owned by the submitting account
      ours/             the input of uv, with a netrc; only the submitting account writes here
      site/             owned by the job's user: the environment
      work/             owned by the job's user: copies of local packages, since builds write into them

A program that a build runs (a setup.py, say) may do anything to site/ and work/. So the content of these is
read and changed only with that user's rights; record and activation are written beside site/, where it
cannot write.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable

from train_classifier.core.errors import NotReady
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import make_folder, make_leaf, write_bytes, write_json
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account

INPUT = "ours"
SITE = "site"
WORK = "work"
RECORD = "environment.json"


def create(
    account: Account,
    folder: Path,
    files: dict[str, str],
    request: dict[str, Any],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Create the folder of a build with `files` (name to text) in ours/, and fill it: see `fill_part`.

    `check` is called repeatedly and may raise.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    os.mkdir(folder, 0o700)
    os.chmod(folder, mode)
    inputs = make_folder(folder / INPUT, mode)
    for name, text in files.items():
        _write_for_account(account, inputs / name, text)
    for name in (SITE, WORK):
        make_leaf(folder / name, account)
    program.call(account, fill_part, {"folder": str(folder), **request}, check=check)


def publish(account: Account, folder: Path, target: Path, activation: tuple[str, str], record: Any) -> None:
    """Complete a built environment, then rename it to its final path.

    `activation` is name and text of its .pth file.
    """
    file_trees.remove(account, folder / WORK)
    shutil.rmtree(folder / INPUT)
    # The build may have removed the access to it.
    make_leaf(folder / SITE, account)
    name, text = activation
    write_bytes(folder / name, text.encode(), 0o644)
    write_json(folder / RECORD, record)
    os.rename(folder, target)


def remove(account: Account, folder: Path) -> None:
    """Remove a build or an environment; files of the job's user are removed as that user. Idempotent."""
    if folder.is_dir() and not folder.is_symlink():
        # Remove the record first, so that no job uses a partly removed environment.
        (folder / RECORD).unlink(missing_ok=True)
        file_trees.remove(account, folder / SITE, folder / WORK)
        shutil.rmtree(folder)


@program.checked_part
def fill_part(request: dict[str, Any], check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Fill the folder of a build.

    The request: `folder`, `nearest` (the site of an environment to start from, or null), `paths` (local
    packages, relative to `workspace`), `open` (a cache that earlier builds may have closed, or null).
    """
    folder = Path(request["folder"])
    if request["open"]:
        subprocess.run(
            ["chmod", "-R", "u+rwX", "--", request["open"]], stderr=subprocess.DEVNULL, check=False
        )
    nearest = request["nearest"]
    # The copy shares no inode, because a build may write into it. If `nearest` was removed meanwhile, the
    # build starts from nothing.
    if nearest:
        try:
            file_trees.copy(None, Path(nearest), folder / SITE, check)
        except NotReady:
            for entry in (folder / SITE).iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for relative in request["paths"]:
        source, target = Path(request["workspace"]) / relative, folder / WORK / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            target.mkdir(exist_ok=True)
            file_trees.copy(None, source, target, check)
        else:
            shutil.copy(source, target)
    return {}


def _write_for_account(account: Account, path: Path, text: str) -> None:
    """Write a file that the account reads and others do not; it may hold passwords."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        if os.geteuid() == 0:
            os.fchown(descriptor, account.uid, account.gid)
