"""What tests/startup.py remembers is what Ansible would parse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import ansible
import pytest
from ansible.utils.collection_loader import _collection_meta

STARTUP = Path(__file__).parents[2] / "startup.py"
TABLE = Path(ansible.__file__).parent / "config" / "ansible_builtin_runtime.yml"


def refuse(text: bytes, identity: str) -> Any:
    raise AssertionError("parsed again")


def test_routing_table_is_remembered_as_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "startup.py"
    copy.write_text(STARTUP.read_text())
    specification = importlib.util.spec_from_file_location("startup", copy)
    assert specification is not None and specification.loader is not None
    startup = importlib.util.module_from_spec(specification)
    monkeypatch.setattr("sys.meta_path", [])
    specification.loader.exec_module(startup)
    monkeypatch.undo()
    text = TABLE.read_bytes()
    parsed = startup.remembered(_collection_meta._meta_yml_to_dict)(text, "ansible.builtin")
    (table,) = tmp_path.glob("routing-*.json")
    assert json.loads(table.read_text()) == parsed
    assert startup.remembered(refuse)(text, "ansible.builtin") == parsed
    assert len(parsed["plugin_routing"]["modules"]) > 1000
    with pytest.raises(AssertionError, match="parsed again"):
        startup.remembered(refuse)(text + b"\n", "ansible.builtin")
