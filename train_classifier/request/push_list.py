"""The files of the repository that are pushed, and warnings and problems that are visible before."""

# Paths are bytes here, since names need not be UTF-8.
# ruff: noqa: PTH115, PTH118, PTH120, PTH208

import dataclasses
import hashlib
import heapq
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from train_classifier.core import options, regular_file
from train_classifier.core.job import archive_name_pattern
from train_classifier.core.options import show_option
from train_classifier.core.text import printable, show_bytes
from train_classifier.request import git_state, secret_files
from train_classifier.request.checkout import GENERATED
from train_classifier.request.trainignore import FILE as IGNORE_FILE
from train_classifier.request.trainignore import TrainIgnore

#: Seconds that the walk through a checkout may take.
WALK_S = 600.0
_Bytes = bytes
_LFS_HEADER = b"version https://git-lfs.github.com/spec/v1\n"
_KINDS = (
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISCHR, "device"),
)
_IDENTITY = ("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")
_GENERATED = frozenset(name.encode() for name in GENERATED)


class _TooLong(Exception):
    """The walk takes too long."""


@dataclasses.dataclass
class Sources:
    """The list of what is pushed. Paths are relative to the repository; folders end in `/`."""

    paths: list[_Bytes] = dataclasses.field(default_factory=list)
    #: Number of files and symbolic links, and the bytes of the files as `ls -l` counts them.
    files: int = 0
    bytes: int = 0
    warnings: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def fingerprint(repository: Path, paths: list[_Bytes]) -> str | None:
    """Return a hash of the present state of the listed files; None when one of them cannot be read.

    The same hash later means that nothing was changed: a change of a file's content, mode or times changes
    its ctime, and no user can set the ctime back (inode(7)).
    """
    top = os.fsencode(repository)
    digest = hashlib.sha256()
    try:
        for path in paths:
            status = os.lstat(os.path.join(top, path.rstrip(b"/")))
            folder = stat.S_ISDIR(status.st_mode)
            # A folder's size and times depend only on its entries, which are in the list already.
            identity = [status.st_mode] if folder else [getattr(status, name) for name in _IDENTITY]
            digest.update(path + b"\0" + " ".join(map(str, identity)).encode() + b"\0")
    except OSError:
        return None
    return digest.hexdigest()


def collect(
    repository: Path,
    model: str | None = None,
    output: Path | None = None,
    push_limit: int = options.default("push_limit"),
) -> Sources:
    """Return the files of a checkout that a job needs; symbolic links are listed, never followed.

    `output`, an archive of the default name at the top and those of failed jobs beside them are left out.
    More than `push_limit` bytes are a problem. Problems are returned, not raised.
    """
    walk = _Walk(os.fsencode(repository), os.fsencode(output) if output else None)
    walk.run(model)
    walk.report(push_limit)
    return walk.sources


class _Walk:
    def __init__(self, top: bytes, output: bytes | None) -> None:
        self.top = top
        #: By folder: what matches archives of this and earlier runs, and parts that killed fetches left.
        self.archives: dict[bytes, list[re.Pattern[str]]] = {}
        for path in (os.path.join(top, options.default("output").encode()), output or b""):
            folder, name = os.path.split(path)
            self.archives.setdefault(folder, []).append(archive_name_pattern(os.fsdecode(name)))
        self.sources = Sources()
        self.ignore = TrainIgnore(Path(os.fsdecode(top)))
        self.may_read_all = os.geteuid() == 0
        self.tracked: frozenset[bytes] | None = None
        self.sizes: list[tuple[int, bytes]] = []
        self.pointers: list[bytes] = []
        self.uses_lfs = False
        self.keys: list[bytes] = []
        self.env_files: list[bytes] = []
        self.specials: list[tuple[str, bytes]] = []
        self.links_out: list[bytes] = []
        self.unreadable: list[bytes] = []
        self.left_out: set[bytes] = set()
        self.git_is_requested = False
        self.deadline = time.monotonic() + WALK_S

    def run(self, model: str | None) -> None:
        """Walk the tree; folders come before their content."""
        pending: list[tuple[bytes, bool | None]] = [(b"", None)]
        try:
            while pending:
                pending.extend(reversed(self._folder(*pending.pop())))
        except _TooLong:
            self.sources.problems.append(
                f"the checkout was not read within {WALK_S / 60:.0f} min: name a smaller folder by "
                f"{show_option('repo')}, or use fewer patterns with wildcards in {IGNORE_FILE}"
            )
            return
        if model:
            self._require_model(model)
        self.sources.files = sum(not path.endswith(b"/") for path in self.sources.paths)

    def _folder(self, relative: bytes, folder_decision: bool | None) -> list[tuple[bytes, bool | None]]:
        """List one folder (`b""` or ending in `/`); return the folders below it to list next.

        The decision for the folder also applies to its content. From a folder that is left out, only the
        files that .trainignore includes again are pushed.
        """
        paths = self.sources.paths
        left_out = folder_decision is True
        if time.monotonic() > self.deadline:
            raise _TooLong
        in_artefacts = relative.startswith(b"artefacts/")
        try:
            with os.scandir(os.path.join(self.top, relative)) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        except OSError:
            self.unreadable.append(relative or b".")
            return []
        if relative and not left_out:
            paths.append(relative)
        below: list[tuple[bytes, bool | None]] = []
        for entry in entries:
            name = entry.name
            path = relative + name
            try:
                folder = entry.is_dir(follow_symlinks=False)
                decision = self.ignore.decide(path, folder) if self.ignore else None
                if name == b".git":
                    # It may hold credentials: actions/checkout writes the workflow's token into .git/config.
                    self.git_is_requested = (
                        self.git_is_requested or decision is False or self.ignore.reaches_into(path)
                    )
                    self.left_out.add(path)
                    continue
                decision = folder_decision if decision is None else decision
                if decision is None and name in _GENERATED:
                    decision = True
                if decision is None and in_artefacts and path not in self._tracked():
                    decision = True
                if decision is None and not relative and name == b"artefacts" and not folder:
                    decision = self._report_artefacts_file(entry)
                if folder:
                    if decision:
                        self.left_out.add(path)
                    if not decision or self.ignore.reaches_into(path):
                        self._parents(path, left_out and not decision)
                        below.append((path + b"/", decision))
                elif decision:
                    self.left_out.add(path)
                elif self._file(entry, path, decision is False):
                    self._parents(path, left_out)
                    paths.append(path)
            except FileNotFoundError:
                # Changed during the walk: rsync and the worker use the files that exist when they run.
                continue
            except OSError:
                self.unreadable.append(path)
        return below

    def _parents(self, path: bytes, missing: bool) -> None:
        """List the left-out folders above a path that is included again, each once."""
        if not missing:
            return
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = b"/".join(parts[:depth])
            if parent in self.left_out:
                self.left_out.discard(parent)
                self.sources.paths.append(parent + b"/")

    def _file(self, entry: "os.DirEntry[bytes]", path: bytes, forced: bool) -> bool:
        """Return whether an entry that is not a folder is pushed; `forced`: .trainignore includes it."""
        if entry.is_symlink():
            if self._leads_out(path, os.readlink(entry.path)):
                self.links_out.append(path)
            return True
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            kind = next((word for test, word in _KINDS if test(status.st_mode)), "special file")
            self.specials.append((kind, path))
            return False
        archives = self.archives.get(os.path.dirname(entry.path), ())
        if not forced and any(pattern.fullmatch(os.fsdecode(entry.name)) for pattern in archives):
            return False
        if not self.may_read_all and not os.access(entry.path, os.R_OK):
            self.unreadable.append(path)
            return False
        name, size = entry.name, status.st_size
        if not forced and secret_files.is_candidate(name, status) and secret_files.is_private_key(entry.path):
            self.keys.append(path)
            self.left_out.add(path)
            return False
        if not forced and secret_files.is_environment_file(name):
            self.env_files.append(path)
        if 100 <= size < 1024:
            self.pointers.append(path)
        if name == b".gitattributes" and not self.uses_lfs:
            self.uses_lfs = b"filter=lfs" in regular_file.start(entry.path, 1 << 20)
        self.sources.bytes += size
        self.sizes.append((size, path))
        return True

    def _report_artefacts_file(self, entry: "os.DirEntry[bytes]") -> bool:
        if entry.is_symlink():
            self.sources.warnings.append(
                "artefacts is a symbolic link: not pushed, the job gets a folder of its own"
            )
        else:
            self.sources.problems.append(
                "artefacts is a file; results need a folder of that name: move the file away"
            )
        return True

    @staticmethod
    def _leads_out(path: bytes, target: bytes) -> bool:
        """Return whether a symbolic link leads out of the repository, by its text alone."""
        if target.startswith(b"/"):
            return True
        return os.path.normpath(os.path.join(os.path.dirname(path), target)).split(b"/")[0] == b".."

    def _tracked(self) -> frozenset[bytes]:
        """Return the tracked files below artefacts/, which also holds results of earlier runs."""
        if self.tracked is None:
            repository = Path(os.fsdecode(self.top))
            tracked: set[bytes] = set()
            names: list[bytes] | None = None
            try:
                if git_state.is_checkout(repository):
                    with git_state.opened(repository) as git:
                        names = git.tracked("artefacts")
            except git_state.GitSilent as silent:
                self.sources.warnings.append(f"of artefacts/ only README and .gitignore are pushed: {silent}")
            if names is None:
                names = [
                    b"artefacts/" + name
                    for name in os.listdir(os.path.join(self.top, b"artefacts"))
                    if name == b".gitignore" or name.upper().startswith(b"README")
                ]
            for name in filter(None, names):
                while name:
                    tracked.add(name)
                    name = os.path.dirname(name)
            self.tracked = frozenset(tracked)
        return self.tracked

    def _require_model(self, model: str) -> None:
        name = os.fsencode(model)
        for path in (name, name + b"/__main__.py"):
            if path in self.left_out:
                why = IGNORE_FILE if self.ignore.decide(path, path == name) else "the rule for private keys"
                self.sources.problems.append(
                    f"{printable(path)} is left out of the push by {why}; the job needs it"
                )
                return

    def report(self, push_limit: int) -> None:
        """Convert the findings into sentences."""
        sources = self.sources
        sources.problems.extend(self.ignore.problems)
        if self.unreadable:
            sources.problems.append(
                f"this user cannot read {_show(self.unreadable)}; make readable, or name in {IGNORE_FILE}"
            )
        if sources.bytes > push_limit:
            largest = ", ".join(
                f"{printable(path)} ({show_bytes(size)})" for size, path in heapq.nlargest(5, self.sizes)
            )
            sources.problems.append(
                f"the sources are {show_bytes(sources.bytes)}, over the limit of {show_bytes(push_limit)}; "
                f"largest: {largest}; leave files out with {IGNORE_FILE}, "
                f"use {show_option('data')}, or raise {show_option('push_limit')}"
            )
        if self.keys:
            sources.warnings.append(
                f"private keys are not pushed: {_show(self.keys)} (a line such as "
                f"!{printable(self.keys[0])} in {IGNORE_FILE} sends one)"
            )
        if self.git_is_requested:
            sources.warnings.append(f".git is never pushed, whatever {IGNORE_FILE} says")
        if self.env_files:
            sources.warnings.append(
                f"{_show(self.env_files)}: pushed, passwords too; a line in {IGNORE_FILE} leaves it out"
            )
        for kind in dict.fromkeys(kind for kind, _ in self.specials):
            sources.warnings.append(
                f"left out, a {kind}: {_show([path for of, path in self.specials if of == kind])}"
            )
        if self.links_out:
            sources.warnings.append(
                f"symbolic links out of the repository lead nowhere in the job: {_show(self.links_out)}"
            )
        sources.warnings.extend(self._submodules())
        pointers = [path for path in self.pointers if self._is_pointer(path)] if self.uses_lfs else []
        if pointers:
            sources.warnings.append(
                f"git LFS has not fetched {_show(pointers)}: run git lfs pull, or the job gets a pointer"
            )

    def _is_pointer(self, path: bytes) -> bool:
        try:
            return regular_file.start(os.path.join(self.top, path), len(_LFS_HEADER)) == _LFS_HEADER
        except OSError:
            return False

    def _submodules(self) -> Iterator[str]:
        try:
            modules = regular_file.start(os.path.join(self.top, b".gitmodules"), 1 << 20)
        except OSError:
            return
        lines = [line.strip().partition(b"=") for line in modules.split(b"\n")]
        named = [value.strip().strip(b'"') for key, _, value in lines if key.strip() == b"path"]
        paths = [path for path in named if path and b"\0" not in path and not self._leads_out(b"", path)]
        empty = []
        for path in paths:
            try:
                if not [name for name in os.listdir(os.path.join(self.top, path)) if name != b".git"]:
                    empty.append(path)
            except OSError:
                empty.append(path)
        if empty:
            yield f"git submodules are empty: {_show(empty)}; run git submodule update --init first"


def _show(paths: list[bytes]) -> str:
    """Return the first five paths and the number of the others."""
    names = ", ".join(printable(path) for path in paths[:5])
    return f"{names} and {len(paths) - 5} more" if len(paths) > 5 else names
