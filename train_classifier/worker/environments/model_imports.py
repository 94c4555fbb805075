"""The modules that a model's code imports, as its text says: nothing of it runs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from train_classifier.core import regular_file

#: Most folders and files that are looked at, most names, and most bytes of each file and of all together.
MOST_ENTRIES = 2000
MOST_NAMES = 10000
MOST_BYTES = 1 << 20
MOST_BYTES_OF_ALL = 16 << 20
IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+([A-Za-z_]\w*)|import[ \t]+([^\n#;]{1,400}))", re.MULTILINE)


def top_modules(workspace: Path, model: str) -> set[str]:
    """Return the top-level names that the model imports, itself or by other code of the repository."""
    root = os.path.realpath(workspace)
    names: set[str] = set()
    waiting, visited = [name for name in [model] if _is_code(root, name)], set()
    budget, bytes_left = MOST_ENTRIES, MOST_BYTES_OF_ALL
    while waiting:
        name = waiting.pop()
        visited.add(name)
        for path in _files(os.path.join(root, name)):
            text = _read(path, root)
            budget, bytes_left = budget - 1, bytes_left - len(text)
            # A name is looked up once, however many files import it.
            imported = _imports(text) - names
            if budget < 0 or bytes_left < 0 or len(names) + len(imported) > MOST_NAMES:
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


def _read(path: str, root: str) -> bytes:
    try:
        return regular_file.read(path, MOST_BYTES, within=root)
    except (OSError, ValueError):
        return b""


def _imports(text: bytes) -> set[str]:
    names = set()
    for source, listed in IMPORT.findall(text):
        for part in [source] if source else listed.split(b","):
            name = part.split(b".")[0].split(b" as ")[0].strip().decode("ascii", "replace")
            # Anything else could be a path out of the repository.
            if name.isidentifier():
                names.add(name)
    return names
