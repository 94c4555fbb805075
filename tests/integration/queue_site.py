"""A queue of GPUs in a folder of the test, and a stand-in nvidia-smi with two cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from train_classifier.worker.gpus import gpu_queue
from train_classifier.worker.system.host import Host

WORKER = Path(__file__).with_name("queue_worker.py")
UUIDS = ["GPU-00000000-0000-4000-8000-000000000000", "GPU-00000000-0000-4000-8000-000000000001"]
SMI = """#!/bin/sh
case "$*" in
*query-gpu*) cat {folder}/gpus; exit "$(cat {folder}/status 2>/dev/null || echo 0)";;
*query-compute-apps*) cat {folder}/apps 2>/dev/null; exit 0;;
esac
exit 2
"""


class QueueSite:
    """A queue folder and a stand-in nvidia-smi with two cards."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "queue"
        self.folder.mkdir(0o2770)
        self.marks = tmp_path / "marks"
        self.marks.mkdir()
        self.smi = tmp_path / "nvidia-smi"
        self.smi.write_text(SMI.format(folder=tmp_path))
        self.smi.chmod(0o755)
        self.settings = tmp_path / "host.json"
        self.settings.write_text(json.dumps({"nvidia_smi": str(self.smi), "queue_dir": str(self.folder)}))
        self.host = Host(nvidia_smi=str(self.smi), queue_dir=self.folder)
        self.processes: list[subprocess.Popen[str]] = []
        self.write_cards()

    def write_cards(self, free: int = 23000, count: int = 2) -> None:
        """Give the host cards with so much free memory."""
        lines = [f"{i}, {UUIDS[i]}, NVIDIA L4, 23034, {free}, 550.163.01, [N/A]" for i in range(count)]
        (self.smi.parent / "gpus").write_text("\n".join(lines) + "\n")

    def enqueue(self, job: str, want: int = 1, vram: int | None = None) -> Path:
        """Put a job into the queue; returns its ticket."""
        return gpu_queue.enqueue(
            self.folder, job=job, model="mnist", directory=Path("/nowhere"), want=want, min_vram_mib=vram
        )

    def start(self, job: str, hold: float) -> subprocess.Popen[str]:
        """Start a worker that waits for the job's GPUs and holds them for `hold` seconds."""
        process = subprocess.Popen(
            [sys.executable, WORKER, self.folder, job, self.marks, str(hold)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "TRAIN_CLASSIFIER_HOST_JSON": str(self.settings), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.processes.append(process)
        return process

    def tickets(self) -> list[str]:
        """Return the names of the tickets."""
        return sorted(path.name for path in self.folder.iterdir() if path.name not in ("lock", "counter"))
