"""What a pyproject.toml asks for."""

import pytest

from train_classifier.core.project import project_file


@pytest.mark.parametrize("file", ["'a.txt'", "['a.txt']"])
def test_dependencies_in_a_file(file: str) -> None:
    text = f"[project]\ndynamic = ['dependencies']\n[tool.setuptools.dynamic]\ndependencies = {{ file = {file} }}\n"
    assert project_file.read(text).dependency_files == ("a.txt",)
    assert project_file.read(text.replace("dynamic = ['dependencies']", "")).dependency_files == ()
