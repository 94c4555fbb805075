"""Reads the answer of a program that ran in an image: the last line with a mark. It is untrusted input."""

import json
import re
from typing import Any, Optional

MARK = b"train-classifier:"
#: Names and versions of packages: they become lines of files that uv reads.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,199}\Z")
#: More than the answer for any image with all its packages.
MOST_BYTES = 1 << 20


def read(output: bytes) -> Any:
    """Return the JSON of the last line that begins with the mark; None when none can be read."""
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            try:
                return json.loads(line[len(MARK) : MOST_BYTES])
            except (ValueError, RecursionError):
                return None
    return None


def packages(value: Any) -> Optional[dict[str, str]]:
    """Return packages and versions, without malformed ones; None unless `value` is an object of text."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        return None
    return {name: version for name, version in value.items() if PLAIN.match(name) and PLAIN.match(version)}
