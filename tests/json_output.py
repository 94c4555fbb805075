"""What commands print with --json, and job files, against the published schemas of docs/schemas."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
#: Commands whose output another one's schema describes.
SAME = {"attach": "train", "rerun": "train"}


@functools.cache
def schema(name: str) -> jsonschema.Draft202012Validator:
    content = json.loads((FOLDER / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def check(words: Sequence[str | Path], output: bytes | str) -> None:
    """Compare the output of a command with its schema if it was called with --json and printed anything."""
    own = [str(word) for word in words]
    own = own[: own.index("--")] if "--" in own else own
    if "--json" in own and output:
        command = "doctor" if own[:2] == ["hosts", "add"] else own[0]
        validate(SAME.get(command, command), json.loads(output))


def validate(name: str, content: Any) -> None:
    """Fail with what is wrong; of several forms, with what the nearest lacks."""
    problem = jsonschema.exceptions.best_match(schema(name).iter_errors(content))
    if problem is not None:
        detail = "; ".join(f"{one.json_path}: {one.message[:300]}" for one in problem.context or [problem])
        raise AssertionError(
            f"docs/schemas/{name}.json: {problem.json_path}: {problem.message[:300]} ({detail})"
        )
