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


PACKAGE = '[project]\nname = "My-Shapes"\nversion = "1.2"\ndependencies = ["six"]\n'


def package(root: Path, text: str) -> project_file.OwnPackage | None:
    return project_file.own_package(root, project_file.read(text))


@pytest.mark.parametrize(
    ("more", "files", "folder"),
    [
        ("", ("src/my_shapes/__init__.py",), "src"),
        ("", ("src/other/__init__.py",), "src"),
        ("", ("my_shapes.py", "src/notes.txt"), ""),
        ("[tool.setuptools_scm]\n", ("My_Shapes/__init__.py", "src/__init__.py"), ""),
        ("[tool.setuptools.packages.find]\nwhere = ['src']\n", ("src/a/__init__.py",), "src"),
        (
            "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
            "[tool.hatch.build.targets.wheel]\npackages = ['src/a']\n[tool.hatch.build.targets.sdist]\ninclude = ['x']\n",
            ("src/a/__init__.py",), "src",
        ),
    ],
)  # fmt: skip
def test_package_of_plain_files(tmp_path: Path, more: str, files: tuple[str, ...], folder: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "setup.py").write_text("# for old tools\nfrom setuptools import setup\n\nsetup()\n")
    assert package(tmp_path, PACKAGE + more) == project_file.OwnPackage("My-Shapes", "1.2", folder)


def test_version_that_the_build_says_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    text = PACKAGE.replace('version = "1.2"', "dynamic = ['version']")
    assert package(tmp_path, text) == project_file.OwnPackage("My-Shapes", "0+unknown", "src")


@pytest.mark.parametrize(
    "text",
    [
        "", "[project]\nname = 'a'\n", "[project]\nname = '../a'\nversion = '1'\n",
        "[project]\nname = 'a'\nversion = '1\\n[x]'\n", "[project]\nname = 'a'\nversion = \"1\\n\"\n",
        PACKAGE + "dynamic = ['dependencies']\n", PACKAGE + "optional-dependencies = { a = ['b'] }\n",
        PACKAGE + "[build-system]\nbuild-backend = 'maturin'\n",
        PACKAGE + "[build-system]\nbuild-backend = 'hatchling.build'\nbackend-path = ['.']\n",
        PACKAGE + "[[tool.setuptools.ext-modules]]\nname = 'x'\n",
        PACKAGE + "[tool]\nsetuptools = { package-dir = { '' = 'lib' } }\n",
        PACKAGE + "[tool.setuptools.packages]\nfind = { where = ['lib'] }\n",
        PACKAGE + "[tool.setuptools.packages.find]\nwhere = ['lib']\n",
        PACKAGE + "[tool.setuptools_scm]\nversion_file = 'src/a/_version.py'\n",
        PACKAGE + "[tool.hatch.build.hooks.custom]\n", PACKAGE + "[tool.hatch.build.targets.wheel.hooks.vcs]\n",
        PACKAGE + "[tool.hatch.build.targets.wheel]\npackages = ['python/a']\n",
        PACKAGE + "[tool.uv.sources]\na = { git = 'x' }\n", PACKAGE + "[project.entry-points.x]\na = 'b'\n",
        "= 1\n",
    ],
)  # fmt: skip
def test_package_that_has_to_be_built(tmp_path: Path, text: str) -> None:
    (tmp_path / "src").mkdir()
    assert package(tmp_path, text) is None


def test_setup_that_says_more_is_built(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name, text in (("setup.py", "setup(ext_modules=[])"), ("setup.cfg", "[options]\nx = 1\n")):
        (tmp_path / name).write_text(text)
        assert package(tmp_path, PACKAGE) is None
        (tmp_path / name).unlink()
    (tmp_path / "setup.py").symlink_to("/etc/hostname")
    assert package(tmp_path, PACKAGE) is None
    (tmp_path / "setup.py").unlink()
    (tmp_path / "setup.cfg").write_text("[flake8]\nmax-line-length = 100\n")
    assert package(tmp_path, PACKAGE) is not None
