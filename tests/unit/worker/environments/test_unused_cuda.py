"""What is said of an environment."""

from types import SimpleNamespace
from typing import Any

import pytest

from train_classifier.worker.environments import environment
from train_classifier.worker.environments.stored_environments import ISOLATED, Environment


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ((), " and the packages in m/requirements.txt "),
        (("pyproject.toml",), " and the packages in m/requirements.txt "),
        (("requirements.txt",), " in requirements.txt "),
        (("uv.lock",), ""),
    ],
)
def test_cuda_of_torch_without_a_gpu(files: tuple[str, ...], place: str) -> None:
    packages = ("nvidia-cublas==1", "torch==2")
    image: Any = SimpleNamespace(packages={})
    made = Environment("0" * 40, packages, (), {}, "python3", ISOLATED, files=files)
    advice = environment.unused_cuda(made, image, "m")
    assert place in advice and bool(advice) == bool(place)
