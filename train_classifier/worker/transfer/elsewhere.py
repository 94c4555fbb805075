"""The files that a model wrote outside its folders of results: many scripts have their own places."""

import dataclasses
import os
import stat
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Callable, Optional

from train_classifier.core.text import printable, short, show_bytes
from train_classifier.worker.state.file_trees import open_folder
from train_classifier.worker.transfer import artefacts
from train_classifier.worker.transfer.artefacts import Artefact, show_name

#: Where these files are in the archive: below a folder of their own, so that none can pass for a record.
FOLDER = b"workspace/"
#: Names of files and folders that are no results, wherever they are.
NO_RESULTS = (
    b"__pycache__", b".cache", b".git", b".ipynb_checkpoints", b".mypy_cache", b".pytest_cache",
    b".ruff_cache", b".venv", b"node_modules",
)  # fmt: skip
NO_RESULT_ENDINGS = (b".pyc", b".pyo", b".lock", b".egg-info", b".dist-info")
#: What is in every virtual environment of Python.
VENV_FILE = b"pyvenv.cfg"
#: Bounds of one search. Each level keeps two descriptors open.
MOST_ENTRIES = 1_000_000
MOST_SECONDS = 30.0
MOST_DEPTH = 100
#: Most files of one folder that are listed one by one.
MOST_GROUPS = 1000
#: Most names in result.json, most characters of each, and most names in a message.
MOST_LISTED = 20
MOST_CHARACTERS = 1000
MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class _Group:
    """A new file, or a folder (with a slash): one of new files alone, or one with too many to list."""

    path: bytes
    files: int
    bytes: int


class Elsewhere:
    """A search for files that were written or changed after a time, outside the folders of results."""

    def __init__(
        self, workspace: int, results: Sequence[str], began_ns: int, check: Callable[[], None]
    ) -> None:
        self._workspace = workspace
        self._began_ns = began_ns
        self._check = check
        self._skipped = set(artefacts.bases(results))
        self._groups: list[_Group] = []
        self._entries = 0
        self._deadline: Optional[float] = None
        #: False when a bound or an error ended the search early.
        self._is_complete = True

    def files(self) -> Iterator[Artefact]:
        """Yield the files, named by their path in the workspace."""
        for base in list(self._skipped):
            # A link in the place of a folder of results: what it leads to is delivered already.
            try:
                descriptor, path = artefacts.open_top(self._workspace, base)
            except OSError:
                continue
            os.close(descriptor)
            self._skipped.add(path)
        yield from self._walk(self._workspace, b"", 1)

    def summary(self) -> Optional[dict[str, Any]]:
        """Search within the bounds; return number, bytes and names of the files, None without any."""
        self._deadline = time.monotonic() + MOST_SECONDS
        try:
            for _ in self.files():
                pass
        except OSError:
            self._is_complete = False
        if not self._groups:
            return None
        groups = sorted(self._groups, key=lambda group: (-group.bytes, group.path))
        return {
            "files": sum(group.files for group in groups),
            "bytes": sum(group.bytes for group in groups),
            "is_complete": self._is_complete,
            "places": [
                {"path": _shown(group.path), "files": group.files, "bytes": group.bytes}
                for group in groups[:MOST_LISTED]
            ],
            "more_places": len(groups[MOST_LISTED:]),
        }

    def _walk(self, folder: int, parent: bytes, depth: int) -> Generator[Artefact, None, bool]:
        """Yield the new files below an open folder; return whether it also has other files."""
        first = len(self._groups)
        has_others = has_many = False
        with os.scandir(folder) as entries:
            for entry in entries:
                if not self._count_entry():
                    return True
                name = os.fsencode(entry.name)
                path = parent + name
                if name in NO_RESULTS or name.endswith(NO_RESULT_ENDINGS) or path in self._skipped:
                    continue
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    has_others |= yield from self._walk_below(folder, name, path + b"/", depth + 1)
                elif stat.S_ISREG(status.st_mode) and status.st_size:
                    # The time of the last change of the inode: a model cannot set it, as it can the others.
                    if status.st_ctime_ns > self._began_ns:
                        self._groups.append(_Group(path, 1, status.st_size))
                        yield Artefact(path, status, folder)
                    else:
                        has_others = True
                if len(self._groups) - first > MOST_GROUPS:
                    has_many = True
                    self._merge(first, parent)
        if has_many or (parent and not has_others):
            self._merge(first, parent)
        return has_others

    def _walk_below(
        self, parent: int, name: bytes, path: bytes, depth: int
    ) -> Generator[Artefact, None, bool]:
        if depth > MOST_DEPTH:
            self._is_complete = False
            status = os.lstat(name, dir_fd=parent)
            yield Artefact(path, status, parent, left_out=f"more than {MOST_DEPTH} folders deep")
            return True
        folder = open_folder(name, parent)
        try:
            if os.access(VENV_FILE, os.F_OK, dir_fd=folder, follow_symlinks=False):
                return False
            return (yield from self._walk(folder, path, depth))
        finally:
            os.close(folder)

    def _merge(self, first: int, parent: bytes) -> None:
        """Replace the groups from an index on by one for the folder that they are in."""
        groups = self._groups[first:]
        if groups:
            total = _Group(
                parent or b"./", sum(group.files for group in groups), sum(group.bytes for group in groups)
            )
            self._groups[first:] = [total]

    def _count_entry(self) -> bool:
        """Count one more entry; return whether the search is still within its bounds."""
        self._check()
        self._entries += 1
        if self._deadline is None or (self._entries <= MOST_ENTRIES and time.monotonic() <= self._deadline):
            return True
        self._is_complete = False
        return False


def _shown(path: bytes) -> str:
    return short(printable(show_name(path)), MOST_CHARACTERS)


def describe(summary: dict[str, Any]) -> str:
    """Return the files of a summary for a sentence: a few names with sizes."""
    places = summary["places"]
    names = [_place(place) for place in places[:MOST_NAMED]]
    unnamed = len(places[MOST_NAMED:]) + summary["more_places"]
    if unnamed:
        names.append(f"{unnamed} more")
    elif not summary["is_complete"]:
        names.append("more")
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _place(place: dict[str, Any]) -> str:
    count = f"{place['files']} files, " if place["files"] > 1 else ""
    return f"{short(place['path'], 60)} ({count}{show_bytes(place['bytes'])})"


def is_in_archive(entry: Artefact) -> bool:
    """Tell whether an entry of the archive was written outside the folders of results."""
    return entry.name.startswith(FOLDER)
