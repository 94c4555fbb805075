"""The state of a checkout in git: its commit, whether it was changed, and the tracked files.

git does not run on the checkout's git folder, but on a temporary one. It links to the objects, references
and index, and has none of the checkout's configuration and hooks. So no program that a checkout names can
run: filters, fsmonitor, hooks, credential helpers, the transport of a partial clone, or additions of later
versions of git. Attributes are still used, but the filters that they may name are not defined.
"""

import contextlib
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from train_classifier.controller.temp_files import private_folder
from train_classifier.core import regular_file
from train_classifier.core.job import DESCRIPTION
from train_classifier.core.text import printable

#: Seconds for all git commands together; after that the training starts without their results.
GIT_TIMEOUT = 60.0
#: KiB of memory that git may use: a packed object may be a thousand times larger when unpacked.
MOST_MEMORY = 8 << 20
#: Seconds for writing the files of a commit.
EXPORT_S = 600.0
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
#: Most bytes that are read of HEAD and similar files.
SMALL = 4096
#: Most bytes that are read of another small file of git.
MOST_BYTES = 1 << 20
MOST_SUBMODULES = 100
#: Names that are shared with the checkout's own git folder. None of them is configuration.
_SHARED = ("objects", "refs", "packed-refs", "reftable", "shallow")
#: The settings for files on this disk. None of them names a program or a file.
_DISK = re.compile(
    r"core\.(?:autocrlf|eol|filemode|ignorecase|precomposeunicode|symlinks|trustctime|checkstat)\Z"
)
_FORMAT = re.compile(r"extensions\.(objectformat|refstorage)\Z")
_WORD = re.compile(r"[A-Za-z0-9]{1,16}\Z")


class GitSilent(Exception):
    """git cannot answer; the text is the reason."""


class NoCommit(GitSilent):
    """The checkout has no commit yet."""


def is_checkout(folder: Path) -> bool:
    """Return whether a folder lies in a git checkout."""
    return _place(folder) is not None


def _place(folder: Path) -> Path | None:
    """Return the nearest `.git`, of this folder or of one above it."""
    ceilings = os.environ.get("GIT_CEILING_DIRECTORIES", "").split(os.pathsep)
    for each in (folder, *folder.parents):
        if each != folder and str(each) in ceilings:
            return None
        if os.path.lexists(each / ".git"):
            return each / ".git"
    return None


class Git:
    """Answers about one checkout, from `opened`."""

    def __init__(self, folder: Path, top: Path, shadow: Path, index: Path, deadline: float) -> None:
        self._folder = folder
        #: The top of the working tree.
        self.top = top
        self._shadow = shadow
        self._index = index
        self._deadline = deadline
        self._options: list[str] = []
        #: The address of the remote `origin` as it is configured, with a login if it has one.
        self.origin = ""

    def commit(self) -> str:
        """Return the commit that is checked out. Raises NoCommit when there is none."""
        return self._run("rev-parse", "--verify", "--quiet", "HEAD").decode("ascii", "replace").strip()

    def description(self) -> str | None:
        """Return the last tag with a number, commits since, commit, `-dirty`, as `git describe --long` does.

        Without a tag it is `0.0` and all commits; None in a shallow clone, which lacks both. New files do not
        make it dirty.
        """
        patterns = ("--match", "*[0-9]*", "--exclude", "-*")
        try:
            answer = self._run("describe", "--tags", "--long", "--abbrev=9", *patterns, "HEAD")
        except GitSilent:
            if os.path.lexists(self._shadow / "shallow"):
                return None
            count = self._run("rev-list", "--count", "HEAD").decode("ascii", "replace").strip()
            answer = f"0.0-{count}-g{self.commit()[:9]}".encode()
        is_dirty = self.changed(ignored=lambda path: True)
        text = answer.decode("utf-8", "replace").strip() + ("-dirty" if is_dirty else "")
        return text if DESCRIPTION.match(text) else None

    def tracked(self, path: str) -> list[bytes]:
        """Return the tracked files below a path of the folder."""
        return [name for name in self._run("ls-files", "-z", "--", path).split(b"\0") if name]

    def changed(self, ignored: Callable[[Path], bool] = lambda path: False) -> bool | None:
        """Return whether the folder differs from the commit; None when only a filter could decide it.

        Files for which `ignored` is true may be new. A file is compared by its content only if its size or
        its times differ from the index. Content that a filter (git LFS) changes cannot be compared.
        """
        # Without --ignore-submodules git would run once more in each of them, on its own configuration.
        status = self._run(
            "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=normal",
            "--ignore-submodules=dirty", "--", ".",
        )  # fmt: skip
        modified = []
        for entry in filter(None, status.split(b"\0")):
            kind, name = entry[:2], entry[3:]
            if kind == b" M":
                modified.append(name)
            elif kind != b"??" or not ignored(self.top / os.fsdecode(name.rstrip(b"/"))):
                return True
        filtered = self._filtered(modified)
        if len(filtered) < len(modified):
            return True
        submodules = self._submodules_changed()
        return None if filtered and not submodules else submodules

    def export(self, commit: str, destination: Path, paths: Collection[bytes]) -> list[bytes]:
        """Write those of the files that a commit has into an empty folder, and return their paths.

        Raises GitSilent when the checkout lacks the commit, or where git alone does not write what a checkout
        of it holds: a submodule is another repository, and no filter is run.
        """
        if not _COMMIT.match(commit):
            raise GitSilent(f"{printable(commit)[:80]!r} is no commit")
        tree = Git(destination, destination, self._shadow, self._shadow / "export-index", self._deadline)
        tree._options = self._options
        try:
            self._run("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
        except GitSilent as error:
            raise GitSilent(f"it has no commit {commit[:12]}") from error
        tree._run("read-tree", commit)
        entries = [
            entry.partition(b"\t") for entry in tree._run("ls-files", "-s", "-z").split(b"\0") if entry
        ]
        if any(kind.startswith(b"160000 ") for kind, _, _ in entries):
            raise GitSilent(f"commit {commit[:12]} has submodules")
        names = [name for _, _, name in entries if name in paths]
        tree._run("checkout-index", "-z", "--stdin", data=b"".join(name + b"\0" for name in names))
        if filtered := tree._filtered(names):
            name = printable(os.fsdecode(filtered[0]))
            raise GitSilent(f"{name} of commit {commit[:12]} is written by a filter of git (such as LFS)")
        return names

    def _filtered(self, names: list[bytes]) -> list[bytes]:
        """Return those of the files whose attributes name a filter."""
        if not names:
            return []
        answer = self._run("check-attr", "-z", "--stdin", "filter", data=b"\0".join(names), at=self.top)
        fields = answer.split(b"\0")
        values = zip(fields[::3], fields[2::3], strict=False)
        return [name for name, value in values if value not in (b"unspecified", b"unset", b"set", b"")]

    def _submodules_changed(self) -> bool | None:
        if not (self.top / ".gitmodules").is_file():
            return False
        entries = self._run("ls-files", "-s", "-z", "--", ".").split(b"\0")
        links = [entry.partition(b"\t")[2] for entry in entries if entry.startswith(b"160000 ")]
        if len(links) > MOST_SUBMODULES:
            raise GitSilent(f"it has more than {MOST_SUBMODULES} submodules")
        unknown = False
        for link in links:
            folder = self._folder / os.fsdecode(link)
            # An index may name any path. A submodule without a .git was never fetched.
            if folder != Path(os.path.realpath(folder)) or not folder.is_relative_to(self._folder):
                continue
            if os.path.lexists(folder / ".git"):
                with opened(folder, self._deadline) as submodule:
                    changed = submodule.changed()
                if changed:
                    return True
                unknown = unknown or changed is None
        return None if unknown else False

    def _run(self, *arguments: str, data: bytes = b"", at: Path | None = None, user: bool = False) -> bytes:
        """Return what a command of git prints. With `user` the user's own configuration is read."""
        program = shutil.which("git")
        if program is None:
            raise GitSilent("git is not installed")
        # If a git hook calls this program, its variables would point git to another checkout.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {
            "LC_ALL": "C",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
            # No remote is configured. If git finds one anyway, it must not connect to it.
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_DIR": str(self._shadow),
            "GIT_WORK_TREE": str(self.top),
            "GIT_INDEX_FILE": str(self._index),
        }
        if user:
            names = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
            environment |= {name: os.environ[name] for name in names if name in os.environ}
        else:
            # The user's filters are disabled like the checkout's: git LFS runs the programs that .lfsconfig
            # and .git/config name.
            environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        command = [program, *self._options, "-C", str(at or self._folder), *arguments]
        try:
            process = subprocess.run(
                ["/bin/sh", "-c", f'ulimit -d {MOST_MEMORY} 2>/dev/null; exec "$@"', "git", *command],
                env=environment,
                input=data,
                capture_output=True,
                timeout=max(0.1, self._deadline - time.monotonic()),
                check=False,
            )
        except OSError as error:
            raise GitSilent(f"git cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise GitSilent(f"git did not answer within {GIT_TIMEOUT:.0f} s") from error
        if process.returncode == 1 and arguments[0] == "rev-parse":
            raise NoCommit("it has no commit yet")
        if process.returncode:
            message = process.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
            message = message.replace(str(self._shadow), str(self.top / ".git"))
            raise GitSilent(printable(message)[:400] or f"git exited {process.returncode}")
        return process.stdout

    def configure(self, common: Path) -> None:
        """Copy the settings for files on this disk from the user's and the checkout's configuration."""
        excludes = None
        chosen: dict[str, str] = {}
        extensions = []
        for key, value in _settings(self._run("config", "--null", "--list", user=True)):
            if key == "core.excludesfile":
                excludes = value
            elif _DISK.match(key) and _WORD.match(value):
                chosen[key] = value
        own = common / "config"
        if _size(own) is not None:
            answer = self._run("config", "--null", "--list", "--no-includes", "--file", str(own))
            for key, value in _settings(answer):
                extension = _FORMAT.match(key)
                if extension and _WORD.match(value):
                    extensions.append(f"\t{extension[1]} = {value}\n")
                elif _DISK.match(key) and _WORD.match(value):
                    chosen[key] = value
                elif key == "remote.origin.url":
                    self.origin = value
        (self._shadow / "config").write_text("".join([_CONFIG, "[extensions]\n", *extensions]))
        if excludes is not None:
            chosen["core.excludesfile"] = excludes
        self._options = [word for key, value in chosen.items() for word in ("-c", f"{key}={value}")]


_CONFIG = "[core]\n\trepositoryformatversion = 1\n\tbare = false\n"


def _settings(listing: bytes) -> Iterator[tuple[str, str]]:
    for entry in listing.split(b"\0"):
        key, newline, value = os.fsdecode(entry).partition("\n")
        if key:
            yield key, value if newline else "true"


@contextlib.contextmanager
def opened(folder: Path, deadline: float | None = None) -> Iterator[Git]:
    """Yield the checkout that a folder lies in; the folder's path is a real one.

    Raises GitSilent when it is not a checkout, or cannot be read.
    """
    place = _place(folder)
    if place is None:
        raise GitSilent("it is no git checkout")
    own, common = _git_folders(place, folder)
    deadline = time.monotonic() + GIT_TIMEOUT if deadline is None else deadline
    with private_folder() as private:
        shadow = private / "git"
        try:
            shadow.mkdir()
            (shadow / "HEAD").write_bytes(regular_file.start(own / "HEAD", SMALL))
            (shadow / "config").write_text(_CONFIG)
            (shadow / "info").mkdir()
            for shared in _SHARED:
                if os.path.lexists(common / shared):
                    (shadow / shared).symlink_to(common / shared)
            for shared in ("info/exclude", "info/attributes"):
                if _size(common / shared) is not None:
                    (shadow / shared).symlink_to(common / shared)
            for part in own.glob("sharedindex.*"):
                (shadow / part.name).symlink_to(part)
        except OSError as error:
            raise GitSilent(f"{printable(str(own))} cannot be read: {error.strerror}") from error
        git = Git(folder, place.parent, shadow, own / "index", deadline)
        git.configure(common)
        yield git


def _git_folders(place: Path, folder: Path) -> tuple[Path, Path]:
    """Return the git folder of a `.git`, and the common folder of its worktrees.

    A `.git` may be a file that names a folder elsewhere, as in a linked worktree or a submodule. It is
    followed only if that folder names it in turn, or is in the `.git` of a folder above. Otherwise a
    checkout could claim another repository as its own.
    """
    try:
        status = place.lstat()
        if place.parent != folder and status.st_uid not in (0, os.geteuid(), folder.stat().st_uid):
            raise GitSilent(f"{printable(str(place))}, above it, belongs to another user")
        if stat.S_ISDIR(status.st_mode):
            return place, place
        if not stat.S_ISREG(status.st_mode):
            raise GitSilent(f"{printable(str(place))} is no folder")
        text = regular_file.start(place, SMALL)
        if not text.startswith(b"gitdir:"):
            raise GitSilent(f"{printable(str(place))} names no git folder")
        named = os.fsdecode(text.removeprefix(b"gitdir:").strip())
        own = Path(os.path.realpath(place.parent / named))
        if own.parent.name == "worktrees" and os.path.lexists(own / "gitdir"):
            back = own / os.fsdecode(regular_file.start(own / "gitdir", SMALL).strip())
            if Path(os.path.realpath(back)) == place:
                return own, own.parent.parent
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GitSilent(f"{printable(str(place))} cannot be read: {reason}") from error
    if any(own.is_relative_to(above / ".git") for above in place.parent.parents):
        return own, own
    raise GitSilent(
        f"{printable(str(place))} names the git folder {printable(str(own))}, which does not name it in turn"
    )


def _size(path: Path) -> int | None:
    """Return the size of a small regular file, None for anything else."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES else None
