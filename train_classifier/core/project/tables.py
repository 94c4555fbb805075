"""Values in the tables of a TOML file, whatever kinds they are of."""

import re
from typing import Any


def normal_name(name: str) -> str:
    """Return a distribution's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def table_at(tables: Any, *keys: str) -> dict[str, Any]:
    """Return a table by its dotted key; an empty one when it is missing or something else."""
    for key in keys:
        tables = tables.get(key) if isinstance(tables, dict) else None
    return tables if isinstance(tables, dict) else {}


def tables_in(value: Any) -> list[dict[str, Any]]:
    """Return the tables of a list, or the one that stands in its place; nothing else of it."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, dict)]


def texts(value: Any) -> list[str]:
    """Return a list of texts. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("`dependencies` is not a list of texts")
    return value
