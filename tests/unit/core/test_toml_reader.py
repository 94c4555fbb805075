"""The reader of TOML agrees with Python's own."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.project import toml_reader

ROOT = Path(__file__).parents[3]
ODD = (
    r'''
title = "[project]"  # [project]
words = """
[project]
dependencies = ["no"] \""" """"
joined = """a \
    b\ttab \u0041 \U00000022 \\n"""
literal = '''
    + "'''\n'x' \\n'''"
    + r"""
more = '[project]'
numbers = [1, 2.5, 1979-05-27T07:32:00Z, {b = -inf, "c d".e = [true, false,]}]
[project] # a comment
"na\u006de" = 'x'
dependencies = [ # one, "no"
    "numpy>=1.26,<2", 'pandas[excel]; python_version < "3.12"',

    "quo\"ted\u0041",
  ]
optional-dependencies = { dev = ["no"] }
[project.scripts]
dependencies = "no"
[[tool.uv.index]]
url = "a"
[tool.uv.index.more]
x = "y"
[[tool.uv.index]]
[ tool . "uv" ]
sources.a.git = 'x'
"""
)


def plain(value: Any) -> Any:
    """What the reader makes of a value of tomllib's."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value if isinstance(value, str | bool) else None


@pytest.mark.parametrize(
    "text",
    [
        ODD,
        ODD.replace("\n", "\r\n"),
        (ROOT / "pyproject.toml").read_text(),
        "",
        "a.b.c = ''\na.d = {}\n",
        "1.2 = 1e6",
    ],
)
def test_same_as_tomllib(text: str) -> None:
    assert toml_reader.read(text) == plain(tomllib.loads(text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = [1", "a bracket does not close"), ('a = "', "a text in quotes does not end"), ("\n\na", "line 3 is not TOML"),
        ("a =", "line 1"), ("= 1", "line 1"), ("a = 'b' 'c'", "line 1"), ("a = [1 2, 'x' 'y']", "line 1"), ("[a", "a bracket"),
        ("[[a]", "a bracket"), ("[]", "line 1"), ("a = {b}", "line 1"), ("a = 1\na = 2", "line 2"), ("a = 1\n[a.b]", "line 2"),
        ("a = [1]\n[[a]]\n[a]\n", ""), ('a = "\\q"', "line 1"), ('a = "\\UFFFFFFFF"', "line 1"), ("a = " + "[" * 90 + "]" * 90, "line 1"),
        (".".join("a" * 100) + " = 1", "line 1"), ("a.'''b''' = 1", "line 1"), ("a = [\n1,,\n]", "line 1"), ("a = 1]", "line 1"),
    ],
)  # fmt: skip
def test_bad_text_ends_in_a_phrase(text: str, problem: str) -> None:
    if problem:
        with pytest.raises(ValueError, match=problem):
            toml_reader.read(text)
    else:
        toml_reader.read(text)
