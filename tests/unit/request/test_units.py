"""Sizes and durations: what people write, and one sentence for what is not one (faults, row 6)."""

import math

import pytest

from train_classifier.core import text
from train_classifier.request import units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 << 30),
        ("500MB", 500_000_000),
        ("1.5GiB", 3 << 29),
        ("512m", 512 << 20),
        ("8g", 8 << 30),
        (" 2 TiB ", 2 << 40),
        ("90", 90),
        ("0", 0),
        ("7B", 7),
        (4096, 4096),
        (0, 0),
        ("1125899906842624", 1 << 50),
    ],
)
def test_sizes(text: str | int, count: int) -> None:
    assert units.size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "1e99",
        "nan",
        "NaN",
        "inf",
        "8 GiB x",
        "GiB",
        "8XB",
        "0x10",
        "٣",
        "1_000",
        "8.GiB",
        "1,5GiB",
    ],
)
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="write 8GiB, 500MB") as caught:
        units.size(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, 1e99, True, None, [], "9999TiB"])
def test_sizes_of_the_wrong_kind(value: object) -> None:
    with pytest.raises(ValueError, match="write 8GiB"):
        units.size(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "mib"),
    [("8GiB", 8192), ("6000", 6000), (4000, 4000), ("4GB", 3815), ("0", 0), ("6000MiB", 6000)],
)
def test_gpu_memory_counts_mebibytes(text: str | int, mib: int) -> None:
    assert units.vram_mib(text) == mib


@pytest.mark.parametrize("text", ["8", "-1", "1e99", "", "99999TiB", "17TiB"])
def test_invalid_gpu_memory(text: str) -> None:
    with pytest.raises(ValueError, match="plain number of MiB"):
        units.vram_mib(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6h", 21600),
        ("90", 90),
        ("90s", 90),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2d", 172800),
        ("1.5h", 5400),
        ("15min", 900),
        ("1w", 604800),
        (2.5, 2.5),
        ("0", 0),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert units.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-1", "-1h", "1e99", "nan", "h", "1h1h", "1m1h", "6 hours", "1h30", "400d", "999999999999"]
)
def test_invalid_durations(text: str) -> None:
    with pytest.raises(ValueError, match="write 90 or 90s") as caught:
        units.duration(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 1e99, False, None])
def test_durations_of_the_wrong_kind(value: object) -> None:
    with pytest.raises(ValueError, match="write 90 or 90s"):
        units.duration(value)  # type: ignore[arg-type]


def test_numbers() -> None:
    assert units.whole("16", 16, 20) == 16
    assert units.decimal("0.5", 0.01, 4) == 0.5
    for bad in ("15", "21", "1.5", "", "1e1", True, 1.0):
        with pytest.raises(ValueError, match="from 16 to 20"):
            units.whole(bad, 16, 20)
    for bad in ("nan", "1e1", "", "5", -1, math.nan, True):
        with pytest.raises(ValueError, match=r"from 0\.01 to 4"):
            units.decimal(bad, 0.01, 4)


def test_what_is_printed_cannot_steer_a_terminal() -> None:
    assert text.printable("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"
    assert text.printable(b"\xff gr\xc3\xbcn") == "\\udcff grün"
    assert len(text.quoted("x" * 1000)) == 120
