"""Writes samples of a running job's usage to usage.csv: processor, memory, disks and its GPUs."""

import csv
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from train_classifier.worker.system.cgroup import ControlGroup

COLUMNS = (
    "time_s", "cpu_percent", "memory_bytes", "gpu_uuid", "gpu_util_percent", "gpu_memory_mib",
    "disk_read_bytes", "disk_written_bytes",
)  # fmt: skip
INTERVAL_S = 5.0


class Sampler(threading.Thread):
    """Writes a row for each GPU every few seconds; an unknown value stays empty."""

    def __init__(self, path: Path, group: ControlGroup, gpus: Sequence[str], nvidia_smi: str) -> None:
        super().__init__(name="usage", daemon=True)
        self.path = path
        self.group = group
        self.gpus = list(gpus)
        self.nvidia_smi = shutil.which(nvidia_smi) if gpus else None
        self._stopping = threading.Event()
        self._idle: dict[str, float] = {}

    def run(self) -> None:
        """Write samples periodically, until `stop`."""
        began = before = time.monotonic()
        cpu_before = self.group.cpu_seconds()
        try:
            with open(self.path, "w", newline="", encoding="ascii") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                # The first row comes early, so that short jobs have one too.
                wait = 0.2
                while not self._stopping.wait(wait):
                    wait = INTERVAL_S
                    now, cpu = time.monotonic(), self.group.cpu_seconds()
                    used = self.group.memory().used
                    if used is None and not self.gpus:
                        continue
                    percent = ""
                    if cpu is not None and cpu_before is not None:
                        percent = f"{100 * (cpu - cpu_before) / (now - before):.1f}"
                    seconds = now - before
                    before, cpu_before = now, cpu
                    disk = ["" if count is None else count for count in self.group.disk_bytes()]
                    gpus = self._gpus()
                    self._count_idle(gpus, seconds)
                    for gpu in gpus or [("", "", "")]:
                        start = [f"{now - began:.1f}", percent, "" if used is None else used]
                        writer.writerow([*start, *gpu, *disk])
                    file.flush()
        except OSError:
            # A full disk: the job continues without statistics.
            return

    def idle_s(self) -> dict[str, float]:
        """Return for how many seconds each GPU has been unused; one whose use is unknown is missing."""
        return dict(self._idle)

    def _count_idle(self, gpus: Sequence[tuple[str, str, str]], seconds: float) -> None:
        # Replaced as a whole: another thread reads it.
        self._idle = {
            uuid: self._idle.get(uuid, 0.0) + seconds if used == "0" else 0.0
            for uuid, used, _ in gpus
            if used
        }

    def stop(self) -> None:
        """Write the last row, then end."""
        self._stopping.set()
        if self.is_alive():
            self.join(timeout=15)

    def _gpus(self) -> list[tuple[str, str, str]]:
        if self.nvidia_smi is None:
            return [(uuid, "", "") for uuid in self.gpus]
        try:
            process = subprocess.run(
                [
                    self.nvidia_smi,
                    "--query-gpu=uuid,utilization.gpu,memory.used",
                    "--format=csv,noheader,nounits",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return [(uuid, "", "") for uuid in self.gpus]
        return parse(process.stdout.decode("utf-8", "replace"), self.gpus)


def parse(text: str, gpus: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return uuid, usage in percent and memory in MiB of each of `gpus`; empty for `[N/A]` and the like."""
    values = {uuid: (uuid, "", "") for uuid in gpus}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[0] in values:
            values[fields[0]] = (
                fields[0],
                fields[1] if fields[1].isdigit() else "",
                fields[2] if fields[2].isdigit() else "",
            )
    return list(values.values())
