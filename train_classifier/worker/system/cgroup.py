"""Reads a running container's counters from its control group, version 1 and 2.

Files: Documentation/admin-guide/cgroup-v1/memory.rst, blkio-controller.rst and cgroup-v2.rst of the kernel.
"""

import dataclasses
import os
from pathlib import Path
from typing import Optional

MOUNT = Path("/sys/fs/cgroup")
DEVICES = Path("/sys/dev/block")


@dataclasses.dataclass
class Memory:
    """Bytes in use and at the peak, and processes killed for lack of memory."""

    used: Optional[int] = None
    peak: Optional[int] = None
    kills: int = 0


class ControlGroup:
    """The control group of one process; everything is None where the host does not show it."""

    def __init__(self, pid: int) -> None:
        self._folders: dict[str, Path] = {}
        try:
            lines = (
                Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            )
        except OSError:
            lines = []
        for line in lines:
            _, controllers, path = line.split(":", 2)
            for name in controllers.split(",") if controllers else ["unified"]:
                folder = self._find(name, path)
                if folder is not None:
                    self._folders[name] = folder
        self._peak = 0

    @staticmethod
    def _find(controller: str, path: str) -> Optional[Path]:
        bases = [MOUNT / controller] if controller != "unified" else [MOUNT, MOUNT / "unified"]
        for base in bases:
            folder = base / path.lstrip("/")
            # Inside a container the path may be one of the outer host: then nothing can be said.
            if path != "/" and folder.is_dir():
                return folder
        return None

    def memory(self) -> Memory:
        """Return the memory counters as they are now; the peak also of what was seen before."""
        memory = Memory()
        if "memory" in self._folders:
            folder = self._folders["memory"]
            # Read first: when the use can be read afterwards, the kills were read while the group existed.
            memory.kills = _field(folder / "memory.oom_control", "oom_kill") or 0
            memory.used = _number(folder / "memory.usage_in_bytes")
            memory.peak = _number(folder / "memory.max_usage_in_bytes")
        elif "unified" in self._folders:
            folder = self._folders["unified"]
            memory.kills = _field(folder / "memory.events", "oom_kill") or 0
            memory.used = _number(folder / "memory.current")
            # memory.peak is there from Linux 5.19 on.
            memory.peak = _number(folder / "memory.peak")
        self._peak = max(self._peak, memory.peak or 0, memory.used or 0)
        memory.peak = self._peak or None
        return memory

    def process_limit(self) -> Optional[int]:
        """Return the most processes of the group."""
        folder = self._folders.get("pids") or self._folders.get("unified")
        return _number(folder / "pids.max") if folder is not None else None

    def refused_processes(self) -> int:
        """Return how often the limit of processes refused a new one."""
        folder = self._folders.get("pids") or self._folders.get("unified")
        return (_field(folder / "pids.events", "max") or 0) if folder is not None else 0

    def cpu_seconds(self) -> Optional[float]:
        """Return the processor time used so far."""
        if "cpuacct" in self._folders:
            nanoseconds = _number(self._folders["cpuacct"] / "cpuacct.usage")
            return None if nanoseconds is None else nanoseconds / 1e9
        if "unified" in self._folders:
            microseconds = _field(self._folders["unified"] / "cpu.stat", "usage_usec")
            return None if microseconds is None else microseconds / 1e6
        return None

    def disk_bytes(self) -> tuple[Optional[int], Optional[int]]:
        """Return the bytes that were read from disks and written to them so far."""
        if "blkio" in self._folders:
            # 8:0 Read 4096
            return _disk_bytes(self._folders["blkio"] / "blkio.throttle.io_service_bytes", "Read ", "Write ")
        if "unified" in self._folders:
            # 8:0 rbytes=4096 wbytes=0 rios=1 …
            return _disk_bytes(self._folders["unified"] / "io.stat", "rbytes=", "wbytes=")
        return None, None


def _disk_bytes(path: Path, read: str, written: str) -> tuple[Optional[int], Optional[int]]:
    counts = {read: 0, written: 0}
    try:
        for line in path.read_text().splitlines():
            device, _, fields = line.partition(" ")
            if ":" not in device or _has_parts(device):
                continue
            for name in counts:
                _, found, rest = f" {fields}".partition(f" {name}")
                counts[name] += int(rest.split()[0]) if found else 0
    except (OSError, ValueError, IndexError):
        return None, None
    return counts[read], counts[written]


def _has_parts(device: str) -> bool:
    """Return whether a device lies on others, as one of LVM, which count the same bytes again."""
    try:
        return bool(os.listdir(DEVICES / device / "slaves"))
    except OSError:
        return False


def host_kills() -> Optional[int]:
    """Return how many processes the kernel has killed for lack of memory since the host's start.

    It counts those of every group, and stays when a container's own counters are gone with it.
    """
    return _field(Path("/proc/vmstat"), "oom_kill")


def _number(path: Path) -> Optional[int]:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> Optional[int]:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return None
    return None
