"""The content of the local packages that requirements name, as a part of what defines an environment."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

from train_classifier.core import regular_file
from train_classifier.core.errors import BadInput
from train_classifier.core.project import git_version
from train_classifier.core.project.git_version import GitVersion
from train_classifier.core.text import printable
from train_classifier.worker.containers.context import Context


def version_of_job(context: Context, git: GitVersion) -> Optional[str]:
    """Return the version of the repository's package that a tool makes from git; None without a tag."""
    if context.job is None:
        return None
    repository = context.job.spec().repository
    # A job's id begins with the day of its submission.
    date = context.job.id[:8]
    return git_version.version(git, repository.description or "", date)


def digest_of_paths(root: Path, paths: tuple[str, ...], check: Callable[[], None] = lambda: None) -> str:
    """Return a SHA-256 of names and contents of local packages; of a symbolic link, the target path.

    "" without any. `check` is called repeatedly and may raise. Raises BadInput for a link that leads out of a
    package: the build gets a copy of that folder alone.
    """
    if not paths:
        return ""
    total = hashlib.sha256()

    def add(*parts: bytes) -> None:
        for part in parts:
            total.update(len(part).to_bytes(8, "big") + part)

    for relative in paths:
        top = os.path.normpath(os.path.join(root, relative))
        add(os.fsencode(relative))
        for path in _files(top):
            check()
            if os.path.isdir(top):
                add(os.fsencode(os.path.relpath(path, top)))
            if os.path.islink(path):
                target = os.readlink(path)
                _require_inside(os.path.normpath(root), top, path, target)
                add(b"link", os.fsencode(target))
            elif stat.S_ISREG(os.lstat(path).st_mode):
                with open(regular_file.open_regular(path), "rb") as file:
                    add(b"file")
                    while block := file.read(1 << 20):
                        check()
                        add(block)
    return total.hexdigest()


def _files(top: str) -> Iterator[str]:
    """Yield the files and the links of a local package, in a fixed order."""
    if not os.path.isdir(top):
        yield os.path.realpath(top)
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", ".git"))
        # A linked folder stands among the folders and is not entered.
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from (os.path.join(folder, name) for name in sorted(names + links))


def _require_inside(root: str, top: str, path: str, target: str) -> None:
    """Raise BadInput for a link out of a package; one out of the whole repository is refused by the push."""
    place = os.path.normpath(os.path.join(os.path.dirname(path), target))
    if top != root and place != top and not place.startswith(top + os.sep):
        link, package = (printable(os.path.relpath(each, root)) for each in (path, top))
        raise BadInput(
            f"{link} is a link that leads out of the local package {package}: "
            f"put what it names into {package}"
        )
