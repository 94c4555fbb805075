"""The worker's program as a set of files with a hash of their content, for the installation on a host."""

import functools
import hashlib
from pathlib import Path

#: What `python3 -I <folder>` runs first.
MAIN = b'''"""The worker of train-classifier; see docs/architecture.md."""

import sys

from train_classifier.worker.api import main

sys.exit(main(sys.argv[1:]))
'''
#: The packages below `train_classifier` that are installed on a host.
PACKAGES = ("core", "worker")


@functools.cache
def bundle() -> tuple[str, dict[str, bytes]]:
    """Return the hash (16 hex digits) and the files, relative path to content."""
    package = Path(__file__).parents[1]
    files = {"__main__.py": MAIN, "train_classifier/__init__.py": (package / "__init__.py").read_bytes()}
    for name in PACKAGES:
        for path in sorted((package / name).rglob("*.py")):
            files[f"train_classifier/{path.relative_to(package)}"] = path.read_bytes()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16], files
