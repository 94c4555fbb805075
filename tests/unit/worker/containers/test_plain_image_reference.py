"""Which plain image a version of Python has, and what to do without it."""

from pathlib import Path

import pytest
import yaml

from train_classifier.worker.containers import image, plain_image
from train_classifier.worker.system.host import Host

ROLE = Path(__file__).parents[4] / "roles/training_host"


@pytest.mark.parametrize(
    ("images", "reference"),
    [
        ({}, "python:3.10-slim"),
        ({"python3.9": "other:1"}, "python:3.10-slim"),
        ({"python": "mirror.example/python:{version}-slim"}, "mirror.example/python:3.10-slim"),
        ({"python": "mirror.example/python:{version}", "python3.10": "own:1"}, "own:1"),
    ],
)
def test_plain_image_is_that_of_the_host_else_of_the_registry(images: dict[str, str], reference: str) -> None:
    assert plain_image.reference_for(Host(images=images), "3.10") == reference


def test_hint_names_the_role_for_the_versions_that_it_makes() -> None:
    tasks = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())
    choices = tasks["argument_specs"]["main"]["options"]["training_host_pythons"]["choices"]
    releases = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__training_host_releases"]
    assert plain_image.BOOTSTRAPPED == tuple(choices) == tuple(releases)
    for version, is_made in (("3.13", True), ("3.10", False)):
        hint = plain_image._way_out(image.BOOTSTRAP, version, "3.11")
        assert (f'training_host_pythons: ["{version}"]' in hint) is is_made
        assert f"training_host_images (python{version})" in hint
    assert plain_image._way_out("log in", "3.13", "3.11").startswith("log in; or name an image")
