"""What a pyproject.toml asks for, as Python's own reader of TOML reads it."""

import tomllib
from pathlib import Path

import pytest

from train_classifier.core import project_file

ROOT = Path(__file__).parents[3]
PLAIN = r'''
title = "[project]"  # [project]
words = """
[project]
dependencies = ["no"] \""" """"
more = '[project]'
[project] # a comment
name = 'x'
dependencies = [ # one, "no"
    "numpy>=1.26,<2", 'pandas[excel]; python_version < "3.12"',

    "quo\"ted\u0041",
  ]
optional-dependencies = { dev = ["no"] }
[project.scripts]
dependencies = "no"
[tool.uv]
dev-dependencies = ["no"]
'''


@pytest.mark.parametrize(
    "text",
    [
        PLAIN, PLAIN.replace("\n", "\r\n"), "x = '''\n[project]\ndependencies = ['no']'''\n", (ROOT / "pyproject.toml").read_text(), "",
        "[project]\nname = 'a'\n", "project.dependencies = ['a', 'b',]", '["project"]\n"dependencies" = []\n',
        "[ project ]\ndependencies=['a']", "[tool]\nproject.dependencies = ['no']\n",
        "[[tool.x]]\na = [[1], [2.5, {b = 1979-05-27T07:32:00Z}]]\n[project]\ndependencies = ['a']\n",
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
