"""Print the processes that use an NVIDIA card, as a JSON list of texts. Runs as root by Python 3.9.

A process uses a card while it has one of the card's device files open, by the kernel's own list. nvidia-smi
adds processes that the kernel does not show here, as when this runs in a container of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

#: The driver's own services: they keep the cards initialised and compute nothing.
SERVICES = ("nvidia-persistenced", "nv-fabricmanager", "nvidia-powerd")
#: The major device number of NVIDIA's character devices; those of nvidia-uvm and nvidia-caps are dynamic.
MAJOR = 195
QUERY = ("--query-compute-apps=pid,process_name", "--format=csv,noheader")


def name(process):
    """Return the program of a process, or what it calls itself."""
    try:
        return (process / "exe").readlink().name
    except OSError:
        try:
            return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""


def device(file):
    """Return the card's device that a file descriptor in /proc stands for; empty for anything else."""
    try:
        path = str(file.readlink())
        if path.startswith("/dev/nvidia"):
            return path
        if not path.startswith("/dev/"):
            return ""
        return path if os.major(file.stat().st_rdev) == MAJOR else ""
    except OSError:
        return ""


def openers():
    """Return the processes that have a card's device open: number and sentence."""
    processes = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = list((process / "fd").iterdir())
        except OSError:
            continue
        devices = sorted({path for path in map(device, files) if path})
        program = name(process) if devices else ""
        if devices and program not in SERVICES:
            processes[process.name] = f"{program} (process {process.name}, {devices[0]})"
    return processes


def computing():
    """Return the processes that nvidia-smi names: number and sentence."""
    folders = os.environ.get("FOLDERS", "")
    path = f"{os.environ.get('PATH', '')}:{folders}"
    program = shutil.which("nvidia-smi", path=path)
    if not program:
        return {}
    for libraries in (None, os.environ.get("LIBRARIES")):
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries} if libraries else None
        try:
            done = subprocess.run(
                [program, *QUERY], env=environment, capture_output=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            rows = done.stdout.decode("utf-8", "replace").splitlines()
            fields = [row.split(",", 1) for row in rows if "," in row]
            return {
                pid.strip(): f"{Path(program_name.strip()).name} (process {pid.strip()}, by nvidia-smi)"
                for pid, program_name in fields
            }
    return {}


def main():
    """Print the processes."""
    users = {**computing(), **openers()}
    json.dump([users[number] for number in sorted(users, key=lambda text: (len(text), text))], sys.stdout)


if __name__ == "__main__":
    main()
