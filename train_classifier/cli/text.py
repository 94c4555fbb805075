"""Words and numbers for people: sizes, times, tables."""

import re
from collections.abc import Sequence

#: Control characters that text from elsewhere must not bring to a terminal, those of bidirectional text too.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def size(count: float) -> str:
    """Return bytes as people read them, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Return seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: object) -> str:
    """Return a metric as people read it: whole numbers whole, others to six digits."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.6g}"
    return str(int(value)) if isinstance(value, float) else short(value, 28)


def short(text: object, most: int) -> str:
    """Return text of at most that many characters."""
    words = str(text)
    return words if len(words) <= most else words[: most - 1] + "…"


def clean(text: object) -> str:
    """Return text without control characters; newlines and tabs stay."""
    return _CONTROL.sub("�", str(text))


def table(
    rows: Sequence[Sequence[object]], head: Sequence[str] | None = None, right: Sequence[int] = ()
) -> str:
    """Return rows as aligned columns; those numbered in `right` are flush right."""
    cells = [[clean(cell) if cell is not None else "" for cell in row] for row in rows]
    every = ([list(head)] if head else []) + cells
    if not every:
        return ""
    widths = [max(len(row[column]) for row in every) for column in range(len(every[0]))]
    lines = []
    for row in every:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
