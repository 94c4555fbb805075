"""The answer of a probe of an image."""

from typing import Any

import pytest

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.containers import image

SOUND = {
    "python": "/usr/bin/python3", "version": "3.11.2", "site": ["/usr/lib/python3/dist-packages"],
    "search_path": "/usr/bin", "packages": {"six": "1.16.0"}, "frameworks": {}, "distutils": True,
}  # fmt: skip


def test_valid_answer_of_probe_is_accepted() -> None:
    assert image._validated(SOUND, "i") == SOUND


@pytest.mark.parametrize(
    "change",
    [
        {"python": "python3"}, {"python": None}, {"version": "3"}, {"version": "3.11.2\n"}, {"site": []}, {"site": "/x"},
        {"site": ["relative"]}, {"site": [1]}, {"packages": None}, {"frameworks": {"numpy": 1}}, {"search_path": 1},
    ],
)  # fmt: skip
def test_invalid_answer_of_probe_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NoEnvironment, match="returned invalid data"):
        image._validated({**SOUND, **change}, "i")
    for answer in (None, 5, [], "x", {}):
        with pytest.raises(NoEnvironment, match="returned invalid data"):
            image._validated(answer, "i")
