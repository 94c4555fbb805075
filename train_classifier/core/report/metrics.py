"""Reads metrics.json, which a model writes: the valid metrics, and what is wrong with the others.

Used by the worker, which reads the file, and by the controller, which gets the metrics from the worker.
Standard library, Python 3.9.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, Optional

MOST_BYTES = 1 << 20
#: Most metrics of one job, and the longest name.
MOST, MOST_NAME = 1000, 200
#: Most bytes of all names together as they stand in records, which answers about many jobs hold.
MOST_NAMES = 64 << 10
#: Whole numbers up to here are exact for every reader of JSON.
EXACT = 1 << 53


def number(value: Any) -> Optional[float]:
    """Return a finite number as it is, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        floating = float(value)
    except OverflowError:
        return None
    if not math.isfinite(floating):
        return None
    return value if isinstance(value, int) and abs(value) <= EXACT else floating


def read(data: bytes) -> tuple[Optional[dict[str, float]], Optional[str]]:
    """Return the metrics of a file and a sentence about what is left out; either is None if there is none."""
    if len(data) > MOST_BYTES:
        return None, "metrics.json is larger than 1 MiB"
    try:
        # As pairs: otherwise the first of two metrics of one name would be lost silently.
        metrics = json.loads(data, object_pairs_hook=_Pairs, parse_int=_parse_integer)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        return None, f"metrics.json is not JSON: {reason[:200]}"
    if not isinstance(metrics, _Pairs):
        return None, "metrics.json is not an object of names and numbers"
    return _chosen(metrics)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as the list of its pairs, duplicates included."""


def _parse_integer(digits: str) -> Optional[float]:
    # Python before 3.11 needs minutes to parse a number of a million digits.
    return int(digits) if len(digits) <= 400 else None


def first(metrics: Optional[dict[str, float]], most_bytes: int) -> Optional[dict[str, float]]:
    """Return as many of the metrics, from the first on, as have at most that many bytes as JSON."""
    chosen: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        most_bytes -= len(json.dumps({name: value}))
        if most_bytes < 0:
            break
        chosen[name] = value
    return None if metrics is None else chosen


def _chosen(pairs: Iterable[tuple[str, Any]]) -> tuple[Optional[dict[str, float]], Optional[str]]:
    chosen: dict[str, float] = {}
    problems = []
    space = MOST_NAMES
    for name, raw in pairs:
        value = number(raw)
        if not name.isprintable() or len(name) > MOST_NAME:
            problems.append(f"{name[:80]!r} is no printable name of at most {MOST_NAME} letters")
        elif value is None:
            problems.append(f"{name[:80]!r} is not a finite number")
        elif name in chosen:
            problems.append(f"{name[:80]!r} is there twice")
        elif len(chosen) == MOST or len(json.dumps(name)) > space:
            problems.append(f"there are more than {MOST}, or their names are too long together")
            break
        else:
            chosen[name] = value
            space -= len(json.dumps(name))
    if not problems:
        return chosen, None
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return chosen or None, f"metrics.json: {problems[0]}{more}"
