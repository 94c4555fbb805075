"""Facts about the host, for the host check and the manifest of a job."""

import os
import platform
from pathlib import Path
from typing import Any

from train_classifier.worker.system.host import boot_id


def host_facts() -> dict[str, Any]:
    """Return facts about the host: name, os, kernel, boot_id, cpus (all of them), memory_bytes."""
    release = {}
    try:
        for line in Path("/etc/os-release").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            release[key] = value.strip("\"'")
    except OSError:
        release = {}
    return {
        "name": platform.node(),
        "os": release.get("PRETTY_NAME", platform.system()),
        "kernel": platform.release(),
        "boot_id": boot_id(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
