"""The keys that docs/manifest.md documents, and those that a job's files really have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "manifest.md"


def documented(file_name: str) -> set[str]:
    """The keys in the table of one section of the page."""
    sections = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    section = dict(zip(sections[1::2], sections[2::2], strict=True))[file_name]
    keys = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
    assert len(keys) == len(set(keys)), "a key is documented twice"
    return set(keys)


def keys_of(data: dict[str, Any], file_name: str) -> set[str]:
    """Every key of a file as the page writes it: `a.b`, `a[].b`, `a.NAME` where names are free."""
    free = {key.rpartition(".")[0] for key in documented(file_name) if key.rpartition(".")[2].isupper()}
    return _keys(data, "", free)


def _keys(value: Any, path: str, free: set[str]) -> set[str]:
    if isinstance(value, dict) and path not in free:
        below = (_keys(item, f"{path}.{key}".lstrip("."), free) for key, item in value.items())
        return set().union(*below)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(_keys(item, f"{path}[]", free) for item in value))
    return {path}


def matches(keys: set[str], file_name: str) -> tuple[set[str], set[str]]:
    """The keys that are not documented, and the documented ones that are not there.

    A key whose value is null or empty stands for all that may be below it.
    """
    tables = documented(file_name)
    tops = {re.sub(r"(\[\])?\.[^.]*$", "", key) for key in tables if "." in key}
    tops |= {re.sub(r"(\[\])?\.[^.]*$", "", key) for key in tops if "." in key}
    documented_form = {
        next((key for key in tables if re.fullmatch(rf"{re.escape(name)}\.[A-Z]+", key)), name)
        for name in keys
    }
    return documented_form - tables - tops, tables - documented_form
