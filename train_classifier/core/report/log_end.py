"""The end of a log for people: its last lines without control characters, and its last traceback."""

import re
from typing import Optional

from train_classifier.core.text import without_escapes

#: Longest line, and most lines of a traceback.
MAX_LINE, MAX_TRACEBACK = 2000, 200
_HEADER = re.compile(r"(?:.{0,40} )?(?:Exception Group )?Traceback \(most recent call last\):\s*\Z")


def clean_line(line: str) -> str:
    """Return a line as a terminal would show it, at most 2000 characters."""
    line = without_escapes(line).rstrip("\r").rpartition("\r")[2]
    line = "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in line)
    return line if len(line) <= MAX_LINE else line[:MAX_LINE] + "…"


def clean_lines(log: str) -> list[str]:
    """Return the lines of a log, cleaned."""
    lines = log.replace("\r\n", "\n").rstrip("\n").split("\n")
    return [clean_line(line) for line in lines] if lines != [""] else []


def traceback(lines: list[str]) -> Optional[tuple[int, int]]:
    """Return where the last traceback of a log begins and ends, as a slice; None when there is none."""
    starts = [index for index, line in enumerate(lines) if _HEADER.match(line)]
    if not starts:
        return None
    start = starts[-1]
    end = start + 1
    while end < min(len(lines), start + MAX_TRACEBACK):
        end += 1
        # The error itself is not indented; the lines of the calls before it are.
        if not lines[end - 1][:1].isspace() and lines[end - 1].strip():
            break
    return start, end
