"""The worker's program as a set of files named by their content, ready to be put on a host."""

import functools
import hashlib
from pathlib import Path

#: What `python3 -I <folder>` runs first.
MAIN = b'''"""The worker of train-classifier; see docs/architecture.md."""

import sys

from train_classifier.worker.protocol import main

sys.exit(main(sys.argv[1:]))
'''
SHARED = ("__init__.py", "errors.py", "job.py")


@functools.cache
def bundle() -> tuple[str, dict[str, bytes]]:
    """Return the hash (16 hex digits) and the files, relative path to content."""
    package = Path(__file__).parent
    files = {"__main__.py": MAIN}
    for name in SHARED:
        files[f"train_classifier/{name}"] = (package / name).read_bytes()
    for path in sorted((package / "worker").glob("*.py")):
        files[f"train_classifier/worker/{path.name}"] = path.read_bytes()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16], files
