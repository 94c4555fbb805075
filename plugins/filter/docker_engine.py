"""Merge settings into daemon.json without losing what people wrote there."""

from __future__ import annotations

from typing import Any


def merge(present: dict[str, Any], wanted: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Merge `wanted` into `present`, key by key at every depth, and say what was left alone.

    `written` is what this role wrote last: a key that differs from it was edited by hand and stays. A key in
    `written` that is no longer wanted, and is as we wrote it, goes. Returns `result` and `kept`, dotted keys.
    """
    kept: list[str] = []
    return {"result": _merge(present, wanted, written, "", kept), "kept": kept}


def _merge(
    present: dict[str, Any], wanted: dict[str, Any], written: dict[str, Any], path: str, kept: list[str]
) -> dict[str, Any]:
    result = dict(present)
    for key, value in wanted.items():
        old = written.get(key)
        if isinstance(value, dict) and isinstance(result.get(key, {}), dict):
            deeper = old if isinstance(old, dict) else {}
            result[key] = _merge(result.get(key, {}), value, deeper, f"{path}{key}.", kept)
        elif key in result and result[key] != value and result[key] != old:
            kept.append(path + key)
        else:
            result[key] = value
    for key in written:
        if key not in wanted and key in result:
            if result[key] == written[key]:
                del result[key]
            elif isinstance(written[key], dict) and isinstance(result[key], dict):
                result[key] = _merge(result[key], {}, written[key], f"{path}{key}.", kept)
    return result


class FilterModule:
    """The filter docker_engine_merge."""

    def filters(self) -> dict[str, Any]:
        return {"docker_engine_merge": merge}
