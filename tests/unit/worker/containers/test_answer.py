"""What programs inside an image print, which may be anything."""

import pytest

from train_classifier.worker.containers import answer


def test_last_marked_line_counts() -> None:
    assert answer.read(b"train-classifier:1\nx\ntrain-classifier:2\nend") == 2
    assert answer.read(b"nothing") is None


@pytest.mark.parametrize(
    "text", [b"{", b"[" * 100_000, b"1" + b"0" * 5000, b"\xff", b'"' + b"x" * (2 << 20) + b'"']
)
def test_unreadable_answer_is_none(text: bytes) -> None:
    read = answer.read(answer.MARK + text)
    assert read is None or isinstance(read, int)


def test_packages_with_odd_names_or_versions_are_left_out() -> None:
    packages = {"six": "1.0", "a\nb @ http://x": "1", "b": "1\nc @ http://x", "-o": "1", "": "1"}
    assert answer.packages(packages) == {"six": "1.0"}
    assert answer.packages({"six": 1}) is None
    assert answer.packages([]) is None
