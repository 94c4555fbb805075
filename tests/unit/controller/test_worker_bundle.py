"""The worker's program and its installation."""

import json
import os
import subprocess
import sys
from pathlib import Path

from train_classifier.controller.worker_bundle import INSTALLER, bundle


def test_bundle_holds_only_core_and_worker() -> None:
    name, files = bundle()
    assert len(name) == 16
    assert {"__main__.py", "train_classifier/worker/api.py", "train_classifier/core/report/page.html"} <= set(
        files
    )
    # It carries nothing of the controller.
    top = {path.split("/")[1] for path in files if "/" in path}
    assert top == {"__init__.py", "core", "worker"}


def test_installer_keeps_complete_and_replaces_incomplete_program(tmp_path: Path) -> None:
    program = tmp_path / "state" / "workers" / "name"

    def install(content: str) -> str:
        command = [sys.executable, "-I", "-c", INSTALLER, str(tmp_path / "state"), program.name]
        files = {"__main__.py": content, "package/module.py": ""}
        subprocess.run(command, input=json.dumps(files).encode(), check=True)
        assert os.listdir(program.parent) == [program.name] and (program / "package" / "module.py").exists()
        return (program / "__main__.py").read_text()

    assert install("first") == "first"
    assert install("second") == "first"
    (program / "__main__.py").unlink()
    assert install("third") == "third"
