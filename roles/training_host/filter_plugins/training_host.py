"""The worker's program, as the package on the controller has it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def worker(role_path: str) -> dict[str, Any]:
    """Return `{"name": content hash, "files": {relative path: text}}` of the package this role belongs to."""
    # roles/ lies beside the package in a checkout, and in _content/ inside it in the wheel.
    for folder in Path(role_path).resolve().parents:
        if (folder / "train_classifier/controller/worker_bundle.py").is_file():
            sys.path.insert(0, str(folder))
            break
    from train_classifier.controller.worker_bundle import bundle

    name, files = bundle()
    return {"name": name, "files": {path: content.decode() for path, content in files.items()}}


class FilterModule:
    """The filter training_host_worker."""

    def filters(self) -> dict[str, Any]:
        return {"training_host_worker": worker}
