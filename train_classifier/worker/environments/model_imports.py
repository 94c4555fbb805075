"""The modules that a model's code imports, as its text says: nothing of it runs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from train_classifier.core import regular_file

#: Most folders and files that are looked at, most names that are collected, and most bytes of each file.
MOST_ENTRIES = 2000
MOST_NAMES = 10000
MOST_BYTES = 1 << 20
IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+([A-Za-z_]\w*)|import[ \t]+([^\n#;]{1,400}))", re.MULTILINE)


def top_modules(workspace: Path, model: str) -> set[str]:
    """Return the top-level names that the model imports, itself or by other code of the repository."""
    root = os.path.realpath(workspace)
    names: set[str] = set()
    waiting, visited = [name for name in [model] if _is_code(root, name)], set()
    budget = MOST_ENTRIES
    while waiting:
        name = waiting.pop()
        visited.add(name)
        for path in _files(os.path.join(root, name)):
            budget -= 1
            imported = _imports(path, root)
            if budget < 0 or len(names) + len(imported) > MOST_NAMES:
                return names
            names |= imported
            waiting += [
                module
                for module in imported
                if module not in visited and module not in waiting and _is_code(root, module)
            ]
    return names


def _is_code(root: str, name: str) -> bool:
    path = os.path.join(root, name)
    # A link may lead out of the repository.
    inside = os.path.realpath(path).startswith(root + os.sep)
    return inside and (os.path.isdir(path) or os.path.isfile(f"{path}.py"))


def _files(path: str) -> Iterator[str]:
    """Return the folders and the files of Python code; a folder is listed so that its caller can stop."""
    if not os.path.isdir(path):
        yield f"{path}.py"
    for folder, _, files in os.walk(path):
        yield folder
        yield from (os.path.join(folder, name) for name in files if name.endswith(".py"))


def _imports(path: str, root: str) -> set[str]:
    try:
        text = regular_file.read(path, MOST_BYTES, within=root)
    except (OSError, ValueError):
        return set()
    names = set()
    for source, listed in IMPORT.findall(text):
        for part in [source] if source else listed.split(b","):
            name = part.split(b".")[0].split(b" as ")[0].strip().decode("ascii", "replace")
            # Anything else could be a path out of the repository.
            if name.isidentifier():
                names.add(name)
    return names
