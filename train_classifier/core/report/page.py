"""The report as one HTML page: a prebuilt page, made by scripts/report-page, with one JSON document in it.

The page loads nothing: its policy allows its own script, named by hash, and images in it. Untrusted text is
in the document alone, where it cannot end the element, and the script writes it as text.
"""

import json
import math
from pathlib import Path
from typing import Any, Optional

#: Where the document goes.
MARK = '<script type="application/json" id="report">'
END = "</script>"
#: Most bytes of a page.
MAX_PAGE = 2 << 20
PAGE = Path(__file__).with_name("page.html")


def render(document: dict[str, Any]) -> bytes:
    """Return the page; images, then points and lines of the log, are left out where it would be too large."""
    before, mark, after = PAGE.read_text(encoding="utf-8").partition(f"{MARK}null")
    most = MAX_PAGE - len((before + mark + after).encode())
    document = dict(document)
    content = _json(document)
    for key, empty in (("images", []), ("usage", []), ("curves", []), ("log", None)):
        while len(content) > most and document.get(key):
            document["notes"] = [*document.get("notes", ())][:50]
            note = f"{key} are not all shown: the page would be larger than {MAX_PAGE >> 20} MiB"
            if note not in document["notes"]:
                document["notes"].append(note)
            value = document[key]
            document[key] = value[: len(value) // 2] if isinstance(value, list) else empty
            content = _json(document)
    return f"{before}{MARK}{content}{after}".encode()


def _json(document: dict[str, Any]) -> str:
    """Return JSON in ASCII that has no character of HTML's syntax; those stand in texts only."""
    content = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def document_of(page: bytes) -> Optional[dict[str, Any]]:
    """Return the document of a page, None for any other file."""
    if len(page) > 2 * MAX_PAGE:
        return None
    _, mark, after = page.decode("utf-8", "replace").partition(MARK)
    content, end, _ = after.partition(END)
    if not mark or not end:
        return None
    try:
        document = json.loads(content, parse_int=_integer, parse_float=_finite, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _finite(digits: str) -> Optional[float]:
    # 1e999 is infinite, which JSON cannot hold.
    value = float(digits)
    return value if math.isfinite(value) else None


def _integer(digits: str) -> Optional[int]:
    # Python before 3.11 needs minutes for a number of a million digits.
    return int(digits) if len(digits) < 20 else None
