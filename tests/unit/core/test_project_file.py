"""What a pyproject.toml asks for."""

import pytest

from train_classifier.core.project import project_file


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[tool.uv]\nindex-url = 'x'\npackage = false", ("index-url",)),
        ("[[tool.uv.index]]\nurl = 'x'", ("index",)),
        ("[tool.uv.sources]\na = { git = 'x' }\nb = { index = 'y' }", ("sources",)),
        ("tool.uv.sources.a.git = 'x'", ("sources",)),
        ("[tool.uv]\ndev-dependencies = []\n[tool.uvx.sources]\n[x.tool.uv.sources]\n", ()),
    ],
)
def test_settings_of_uv_that_change_what_is_installed(text: str, names: tuple[str, ...]) -> None:
    assert project_file.read(text).uv_settings == names


@pytest.mark.parametrize("file", ["'a.txt'", "['a.txt']"])
def test_dependencies_in_a_file(file: str) -> None:
    text = f"[project]\ndynamic = ['dependencies']\n[tool.setuptools.dynamic]\ndependencies = {{ file = {file} }}\n"
    assert project_file.read(text).dependency_files == ("a.txt",)
    assert project_file.read(text.replace("dynamic = ['dependencies']", "")).dependency_files == ()
