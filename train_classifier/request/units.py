"""Parses sizes, durations and counts as people write them, with a sentence for each invalid one."""

import math
import re

from train_classifier.core.options import MOST_BYTES, YEAR_S
from train_classifier.core.text import quoted

SIZE_FORMS = "write 8GiB, 500MB, 1.5GiB, 512m (as Docker does) or a plain number of bytes"
VRAM_FORMS = "write 8GiB, 6000MiB or a plain number of MiB, as nvidia-smi shows them"
DURATION_FORMS = "write 90 or 90s (seconds), 15m, 6h, 1h30m or 2d"

# The single letters are Docker's, where 8g is 8 GiB; the two-letter forms are the SI's.
_FACTORS = {
    "": 1,
    "b": 1,
    **{letter: 1024**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SECONDS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([a-z]{0,3})\Z", re.ASCII)
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})? ?(?:s|sec|m|min|h|d|w) ?)+\Z", re.ASCII)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(sec|s|min|m|h|d|w)", re.ASCII)


def _require_64_bits(value: str | int | float) -> None:
    """Raise ValueError for an integer that no float and no TOML file can hold."""
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError(f"{quoted(value)} is a number beyond all limits")


def _number(value: int | float, forms: str) -> float:
    _require_64_bits(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number to work with; {forms}")
    if value < 0:
        raise ValueError(f"{quoted(value)} is negative; {forms}")
    return value


def _limited(value: float, text: object, most: float, words: str, forms: str) -> None:
    if value > most:
        raise ValueError(f"{quoted(text)} is more than {words}; {forms}")


def size(value: str | int | float, *, plain: int = 1, forms: str = SIZE_FORMS) -> int:
    """Return bytes. `plain` is what a number without a unit counts, in bytes.

    Raises ValueError with one sentence that names the accepted forms.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{quoted(value)} is not a size; {forms}")
    if isinstance(value, str):
        text = value.strip().lower()
        if not text:
            raise ValueError(f"a size is empty; {forms}")
        match = _SIZE.match(text)
        if match and match[2] in _FACTORS:
            factor = _FACTORS[match[2]] if match[2] else plain
            result = float(match[1]) * factor
            exact = int(match[1]) * factor if match[1].isdigit() else round(result)
        elif text.startswith("-"):
            raise ValueError(f"{quoted(value)} is negative; {forms}")
        else:
            raise ValueError(f"{quoted(value)} is not a size; {forms}")
    else:
        result = _number(value, forms) * plain
        exact = round(result)
    _limited(result, value, MOST_BYTES, "a pebibyte", forms)
    return exact


def vram_mib(value: str | int | float) -> int:
    """Return MiB of GPU memory, rounded up; a plain number counts MiB.

    Raises ValueError with one sentence, also for 1 to 255 MiB: `8` probably means `8GiB`.
    """
    mib = -(-size(value, plain=1 << 20, forms=VRAM_FORMS) // (1 << 20))
    if 0 < mib < 256:
        raise ValueError(f"{quoted(value)} is only {mib} MiB of GPU memory; {VRAM_FORMS}")
    if mib > 1 << 24:
        raise ValueError(f"{quoted(value)} is more than 16 TiB of GPU memory; {VRAM_FORMS}")
    return mib


def duration(value: str | int | float) -> float:
    """Return seconds; a plain number counts seconds.

    Raises ValueError with one sentence that names the accepted forms.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{quoted(value)} is not a duration; {DURATION_FORMS}")
    if isinstance(value, str):
        text = value.strip().lower()
        if not text:
            raise ValueError(f"a duration is empty; {DURATION_FORMS}")
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text, re.ASCII):
            seconds = float(text)
        elif _DURATION.match(text):
            parts = _PART.findall(text)
            sizes = [_SECONDS[unit] for _, unit in parts]
            if sizes != sorted(set(sizes), reverse=True):
                raise ValueError(f"{quoted(value)} names its units twice or out of order; {DURATION_FORMS}")
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        elif text.startswith("-"):
            raise ValueError(f"{quoted(value)} is negative; {DURATION_FORMS}")
        else:
            raise ValueError(f"{quoted(value)} is not a duration; {DURATION_FORMS}")
    else:
        seconds = float(_number(value, DURATION_FORMS))
    _limited(seconds, value, YEAR_S, "a year", DURATION_FORMS)
    return seconds


def whole(value: str | int | float, least: int, most: int) -> int:
    """Return a whole number between two bounds, both included. Raises ValueError with one sentence."""
    if not isinstance(value, str):
        _require_64_bits(value)
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        raise ValueError(f"{quoted(value)} is not a whole number from {least} to {most}")
    return int(text)


def decimal(value: str | int | float, least: float, most: float) -> float:
    """Return a number between two bounds, both included. Raises ValueError with one sentence."""
    if not isinstance(value, str):
        _require_64_bits(value)
    written = isinstance(value, str) and re.fullmatch(
        r"[+-]?[0-9]{1,18}(\.[0-9]{1,9})?", value.strip(), re.ASCII
    )
    counted = isinstance(value, int | float) and not isinstance(value, bool)
    number = float(value) if written or counted else math.nan
    if not least <= number <= most:
        raise ValueError(f"{quoted(value)} is not a number from {least:g} to {most:g}")
    return number
