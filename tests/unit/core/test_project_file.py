"""What a pyproject.toml asks for, as Python's own reader of TOML reads it."""

import tomllib
from pathlib import Path

import pytest

from train_classifier.core.project import project_file

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "text",
    [
        (ROOT / "pyproject.toml").read_text(), "", "[project]\nname = 'a'\n", "project.dependencies = ['a', 'b',]",
        "project = { dependencies = ['a'] }", "[project] # the project\n'dependencies' = [\n'a', # one\n\"b\"]\n",
    ],
)  # fmt: skip
def test_same_dependencies_as_of_tomllib(text: str) -> None:
    expected = tomllib.loads(text).get("project", {}).get("dependencies", [])
    assert list(project_file.read(text).dependencies) == expected


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
