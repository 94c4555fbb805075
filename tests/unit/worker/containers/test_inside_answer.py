"""What programs inside an image print, which may be anything."""

import pytest

from train_classifier.worker.containers import inside_answer


def test_last_marked_line_counts() -> None:
    assert inside_answer.read(b"train-classifier:1\nx\ntrain-classifier:2\nend") == 2
    assert inside_answer.read(b"nothing") is None


@pytest.mark.parametrize(
    "text", [b"{", b"[" * 100_000, b"1" + b"0" * 5000, b"\xff", b'"' + b"x" * (2 << 20) + b'"']
)
def test_unreadable_answer_is_none(text: bytes) -> None:
    read = inside_answer.read(inside_answer.MARK + text)
    assert read is None or isinstance(read, int)


def test_packages_with_odd_names_or_versions_are_left_out() -> None:
    packages = {"six": "1.0", "a\nb @ http://x": "1", "b": "1\nc @ http://x", "-o": "1", "": "1"}
    assert inside_answer.packages(packages) == {"six": "1.0"}
    assert inside_answer.packages({"six": 1}) is None
    assert inside_answer.packages([]) is None
