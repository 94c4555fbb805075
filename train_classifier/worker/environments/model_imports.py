"""The modules that a model's code imports, as its text says: nothing of it runs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from train_classifier.core import regular_file

#: Most files that are read, and most bytes of each.
MOST_FILES = 500
MOST_BYTES = 1 << 20
IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+([A-Za-z_]\w*)|import[ \t]+([^\n#;]{1,400}))", re.MULTILINE)


def top_modules(workspace: Path, model: str) -> set[str]:
    """Return the top-level names that the model imports, itself or by other code of the repository."""
    root = os.path.realpath(workspace)
    names: set[str] = set()
    waiting, seen = [model], set()
    budget = MOST_FILES
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for path in _files(os.path.join(root, name)):
            budget -= 1
            if budget < 0:
                return names
            found = _imports(path, root)
            names |= found
            waiting += [
                new for new in found if new not in seen and new not in waiting and _is_code(root, new)
            ]
    return names


def _is_code(root: str, name: str) -> bool:
    return os.path.isdir(os.path.join(root, name)) or os.path.isfile(os.path.join(root, f"{name}.py"))


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield f"{path}.py"
    for folder, _, files in os.walk(path):
        yield from (os.path.join(folder, name) for name in files if name.endswith(".py"))


def _imports(path: str, root: str) -> set[str]:
    try:
        text = regular_file.read(path, MOST_BYTES, within=root)
    except (OSError, ValueError):
        return set()
    names = set()
    for source, listed in IMPORT.findall(text):
        for part in [source] if source else listed.split(b","):
            names.add(part.split(b".")[0].split(b" as ")[0].strip().decode("ascii", "replace"))
    return names
