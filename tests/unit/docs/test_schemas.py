"""docs/schemas has a schema for each command that has --json, and each is strict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import json_output
import pytest

from train_classifier.cli import app

NAMES = sorted(path.stem for path in json_output.FOLDER.glob("*.json"))
ERROR = {"code": 2, "reason": "r", "hint": None, "detail": None, "problems": ["r"], "link": "https://…"}


def test_every_command_with_json_has_one() -> None:
    with_json = set()
    for name in app.COMMANDS:
        command = app.app.get_command(click.Context(app.app), name)
        commands = [command, *getattr(command, "commands", {}).values()]
        if any("--json" in parameter.opts for one in commands if one for parameter in one.params):
            with_json.add(json_output.SAME.get(name, name))
    assert with_json | {"manifest"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_valid_and_every_command_may_fail(name: str) -> None:
    json_output.schema(name)
    failure = {"id": None, "outcome": "bad-input", "exit_code": 2, "error": ERROR}
    if name == "manifest":
        return
    json_output.validate(name, failure)
    for wrong in ({**failure, "code": 2}, {**failure, "exit_code": 12}, {"outcome": "bad-input"}):
        with pytest.raises(AssertionError, match=f"schemas/{name}.json"):
            json_output.validate(name, wrong)


def tables(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for each in schema.values():
            yield from tables(each)
    for each in schema if isinstance(schema, list) else ():
        yield from tables(each)


@pytest.mark.parametrize("name", NAMES)
def test_no_table_has_keys_that_the_schema_does_not_name(name: str) -> None:
    """But those whose names are free: settings of a job, side by side."""
    content = json.loads((json_output.FOLDER / f"{name}.json").read_text())
    is_open = [table for table in tables(content) if "additionalProperties" not in table]
    assert len(is_open) == (1 if name == "compare" else 0)
