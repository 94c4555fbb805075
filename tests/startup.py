"""Imported by every Python process of the tests' environment: scripts/test puts it beside the packages.

Most of these processes live for seconds, and ansible-playbook starts hundreds of times. Each Ansible task is a fork whose
collector touches all of its memory: an eighth of the CPU time. At each start Ansible parses 370 KB of YAML, its table of
moved plugins: a sixth of its start. Here this is parsed once.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

MODULE = "ansible.utils.collection_loader._collection_meta"
#: Shorter texts are parsed every time.
SHORTEST = 100_000

gc.set_threshold(100000, 50, 1000)


class Finder:
    """Replaces the parser of routing tables, as Ansible's own tools do, when Ansible imports it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Return the module's own specification, with the parser replaced once it is loaded."""
        if name != MODULE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import importlib.util

        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_replace(module: Any) -> None:
            load(module)
            module._meta_yml_to_dict = remembered(module._meta_yml_to_dict)

        spec.loader.exec_module = load_and_replace  # type: ignore[method-assign]
        return spec


def remembered(parse: Any) -> Any:
    """Return a parser that keeps the results of long texts beside this file: all scalars are texts, as in JSON."""

    def parse_once(text: Any, identity: Any) -> Any:
        if len(text) < SHORTEST:
            return parse(text, identity)
        import contextlib
        import hashlib
        import json
        import os
        from pathlib import Path

        path = Path(__file__).with_name(f"routing-{hashlib.sha256(text).hexdigest()[:16]}.json")
        with contextlib.suppress(OSError):
            return json.loads(path.read_text())
        table = parse(text, identity)
        with contextlib.suppress(OSError):
            # Several processes may write it at once.
            own = path.with_suffix(f".{os.getpid()}")
            own.write_text(json.dumps(table))
            own.replace(path)
        return table

    return parse_once


sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
