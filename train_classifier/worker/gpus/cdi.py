"""Container Device Interface specifications on this host: which GPUs they name.

Standard library only, so YAML is read by patterns, in the form that nvidia-ctk writes.
https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

KIND = "nvidia.com/gpu"
_KIND = re.compile(r"""^kind:\s*["']?([^\s"']+)""", re.MULTILINE)
_NAME = re.compile(r"""^(\s*)(-\s+)?name:\s*["']?([^\s"'#]+)""")


def gpu_names(folders: Iterable[str], root: Path = Path("/")) -> set[str]:
    """Return the names of GPUs in the specifications of these folders; unreadable files are ignored."""
    names: set[str] = set()
    for folder in folders:
        try:
            found = sorted(os.scandir(root / folder.lstrip("/")), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in found:
            if entry.name.endswith((".json", ".yaml", ".yml")):
                try:
                    text = Path(entry.path).read_text(encoding="utf-8")
                    names |= _of_json(text) if entry.name.endswith(".json") else _of_yaml(text)
                except (OSError, ValueError):
                    # The engine also ignores files that it cannot read.
                    continue
    return names


def _of_json(text: str) -> set[str]:
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        return set()
    return {
        str(device["name"])
        for device in data.get("devices", ())
        if isinstance(device, dict) and "name" in device
    }


def _of_yaml(text: str) -> set[str]:
    kind = _KIND.search(text)
    if kind is None:
        # JSON is YAML, too.
        return _of_json(text) if text.lstrip().startswith("{") else set()
    if kind[1] != KIND:
        return set()
    names: set[str] = set()
    inside, depth = False, -1
    for line in text.splitlines():
        if line.startswith("devices:"):
            inside, depth = True, -1
            continue
        if inside and line.strip() and not line.startswith((" ", "-", "#")):
            inside = False
        match = _NAME.match(line) if inside else None
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
