"""Merge settings into daemon.json without losing what people wrote there."""

from __future__ import annotations

import json
from typing import Any


def json_problem(text: str) -> str:
    """Return why a text is no JSON object; empty when it is one, or when there is no text."""
    try:
        return "" if isinstance(json.loads(text or "{}"), dict) else "it holds no object"
    except ValueError as error:
        return str(error)


def merge(current: dict[str, Any], settings: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Merge `settings` into `current`, key by key at every depth, except what was edited by hand.

    `written` is what this role wrote last: a key that differs from it was edited and stays. A key in
    `written` that is no setting any more, and was not edited, is removed. Returns `result` and `edited`.
    """
    edited: list[str] = []
    return {"result": _merge(current, settings, written, "", edited), "edited": edited}


def _merge(
    current: dict[str, Any], settings: dict[str, Any], written: dict[str, Any], path: str, edited: list[str]
) -> dict[str, Any]:
    result = dict(current)
    for key, value in settings.items():
        old = written.get(key)
        if isinstance(value, dict) and isinstance(result.get(key, {}), dict):
            deeper = old if isinstance(old, dict) else {}
            result[key] = _merge(result.get(key, {}), value, deeper, f"{path}{key}.", edited)
        elif key in result and result[key] != value and result[key] != old:
            edited.append(path + key)
        else:
            result[key] = value
    for key in written:
        if key not in settings and key in result:
            if result[key] == written[key]:
                del result[key]
            elif isinstance(written[key], dict) and isinstance(result[key], dict):
                result[key] = _merge(result[key], {}, written[key], f"{path}{key}.", edited)
    return result


class FilterModule:
    """The filters of the role docker_engine."""

    def filters(self) -> dict[str, Any]:
        return {"docker_engine_json_problem": json_problem, "docker_engine_merge": merge}
