"""Names of images that this host gives."""

import pytest

from train_classifier.core import image_reference


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("train-classifier/packages:x", True),
        ("docker.io/train-classifier/packages:x", True),
        ("index.docker.io/train-classifier/tensorflow", True),
        ("train-classifier", False),
        ("example.org/train-classifier/packages:x", False),
        ("tensorflow/tensorflow:2.17.0", False),
    ],
)
def test_local_names_are_recognised(name: str, local: bool) -> None:
    assert image_reference.is_local(name) is local
