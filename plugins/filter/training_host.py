"""What the role takes from the package: the worker's program, and the file systems that it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def _find_package(role_path: str) -> None:
    """Let the package beside roles/ be imported; in the wheel roles/ lies in _content/ inside it."""
    for folder in Path(role_path).resolve().parents:
        if (folder / "train_classifier/controller/worker_bundle.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            break


def worker(role_path: str) -> dict[str, Any]:
    """Return the worker's program: `name` (content hash), `installer`, `files` (relative path: text)."""
    _find_package(role_path)
    from train_classifier.controller.worker_bundle import INSTALLER, bundle

    name, files = bundle()
    texts = {path: content.decode() for path, content in files.items()}
    return {"name": name, "installer": INSTALLER, "files": texts}


def refused_file_systems(role_path: str) -> list[str]:
    """Return the types of file systems on which the worker keeps no state."""
    _find_package(role_path)
    from train_classifier.core.file_systems import NETWORK_FILE_SYSTEMS, OVERLAY_FILE_SYSTEMS

    return sorted(NETWORK_FILE_SYSTEMS | OVERLAY_FILE_SYSTEMS)


class FilterModule:
    """The filters training_host_worker and training_host_refused_file_systems."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"training_host_worker": worker, "training_host_refused_file_systems": refused_file_systems}
