"""How the engine gives GPUs to containers, and the GPUs in specifications of the Container Device Interface.

Standard library only, so YAML is read by patterns, in the form that nvidia-ctk writes.
https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train_classifier.core.errors import NoGpu

KIND = "nvidia.com/gpu"
#: Where packages of NVIDIA's runtime install its hook, on any distribution.
HOOK_PATH = "/usr/bin:/usr/local/bin:/usr/sbin:/sbin:/bin"
_KIND = re.compile(r"""^kind:\s*["']?([^\s"']+)""", re.MULTILINE)
_NAME = re.compile(r"""^(\s*)(-\s+)?name:\s*["']?([^\s"'#]+)""")


def gpu_access(info: dict[str, Any], root: Path) -> tuple[str, set[str]]:
    """Return how the engine gives GPUs to containers, and the names of GPUs that CDI has (else none).

    `info` is the engine's /info. CDI comes before the NVIDIA runtime. Raises NoGpu when there is neither.
    """
    folders = info.get("CDISpecDirs") or ()
    names = gpu_names(folders, root)
    if names:
        return "CDI", names
    if "nvidia" in (info.get("Runtimes") or {}) or shutil.which(
        "nvidia-container-runtime-hook", path=HOOK_PATH
    ):
        return "the NVIDIA runtime", names
    specification = f"a CDI specification of {KIND} in {', '.join(folders)}" if folders else "CDI"
    raise NoGpu(
        f"the engine cannot give a GPU to a container: it has neither {specification} nor the NVIDIA runtime",
        "run the role nvidia_container_toolkit on this host",
    )


def gpu_names(folders: Iterable[str], root: Path = Path("/")) -> set[str]:
    """Return the names of GPUs in the specifications of these folders; unreadable files are ignored."""
    names: set[str] = set()
    for folder in folders:
        try:
            files = sorted((root / folder.lstrip("/")).iterdir())
        except OSError:
            continue
        for file in files:
            if file.suffix in (".json", ".yaml", ".yml"):
                try:
                    text = file.read_text(encoding="utf-8")
                    names |= _names_in_json(text) if file.suffix == ".json" else _names_in_yaml(text)
                except (OSError, ValueError):
                    # The engine also ignores files that it cannot read.
                    continue
    return names


def _names_in_json(text: str) -> set[str]:
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        return set()
    return {
        str(device["name"])
        for device in data.get("devices", ())
        if isinstance(device, dict) and "name" in device
    }


def _names_in_yaml(text: str) -> set[str]:
    kind = _KIND.search(text)
    if kind is None:
        # JSON is YAML, too.
        return _names_in_json(text) if text.lstrip().startswith("{") else set()
    if kind[1] != KIND:
        return set()
    names: set[str] = set()
    in_devices, depth = False, -1
    for line in text.splitlines():
        if line.startswith("devices:"):
            in_devices, depth = True, -1
            continue
        if in_devices and line.strip() and not line.startswith((" ", "-", "#")):
            in_devices = False
        match = _NAME.match(line) if in_devices else None
        if match:
            # Names of hooks and mounts are indented deeper than those of devices.
            column = len(match[1]) + len(match[2] or "")
            depth = column if depth < 0 else depth
            if column == depth:
                names.add(match[3])
            elif column < depth:
                depth = column
                names = {match[3]}
    return names
