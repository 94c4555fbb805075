"""The answer of the GPU check."""

from typing import Any

import pytest

from train_classifier.worker.gpus import visibility


@pytest.mark.parametrize(
    ("answer", "is_valid"),
    [
        ({}, True),
        ({"torch": {"gpus": 1, "version": "2", "output": ""}}, True),
        ({"torch": {"gpus": None, "version": None, "output": "no"}}, True),
        ({"torch": {"gpus": True, "version": "2", "output": ""}}, False),
        ({"torch": {"gpus": 1, "version": "2"}}, False),
        ({"torch": {"gpus": 1, "output": ""}}, False),
        ({"evil": {"gpus": 1, "version": "2", "output": ""}}, False),
        ({"torch": []}, False),
        (None, False),
    ],
)
def test_answer_of_gpu_check_is_checked(answer: Any, is_valid: bool) -> None:
    assert visibility._is_valid(answer) is is_valid
