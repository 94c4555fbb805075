"""Projects with Poetry's own tables. The ranges are those of Poetry's documentation."""

from pathlib import Path
from typing import Any

import pytest

from train_classifier.core import requirements_file
from train_classifier.core.project import own_package, poetry, toml_reader
from train_classifier.core.project.own_package import OwnPackage

HEAD = "[tool.poetry]\nname = 'my-shapes'\nversion = '1.2'\n"
BUILD = "[build-system]\nrequires = ['poetry-core']\nbuild-backend = 'poetry.core.masonry.api'\n"


def lines(dependency: str) -> list[str]:
    tables: dict[str, Any] = toml_reader.read(f"[poetry.dependencies]\npython = '^3.9'\n{dependency}\n")
    dependencies: list[str] = poetry.project(tables["poetry"])["dependencies"]
    return dependencies


@pytest.mark.parametrize(
    ("version", "range_"),
    [
        ("^1.2.3", ">=1.2.3,<2"),
        ("^1.2", ">=1.2,<2"),
        ("^1", ">=1,<2"),
        ("^0.2.3", ">=0.2.3,<0.3"),
        ("^0.0.3", ">=0.0.3,<0.0.4"),
        ("^0.0", ">=0.0,<0.1"),
        ("^0", ">=0,<1"),
        ("^2.0.0b1", ">=2.0.0b1,<3"),
        ("~1.2.3", ">=1.2.3,<1.3"),
        ("~1.2", ">=1.2,<1.3"),
        ("~1", ">=1,<2"),
        ("*", ""),
        ("1.*", "==1.*"),
        ("!=1.2.*", "!=1.2.*"),
        ("1.2.3", "==1.2.3"),
        ("= 1.2.3", "==1.2.3"),
        ("==1.2.3.post1+cu121", "==1.2.3.post1+cu121"),
        ("^2.2.0+cpu", ">=2.2.0,<3"),
        (">=2.2.0+cpu", ">=2.2.0"),
        ("^2.1.0dev", ">=2.1.0dev,<3"),
        (">= 1.2, < 1.5", ">=1.2,<1.5"),
        (">=1.2 <1.5", ">=1.2,<1.5"),
        ("~=1.4", "~=1.4"),
        ("^v1.2", ">=1.2,<2"),
        ("1.x", "==1.*"),
        ("1.*.*", "==1.*"),
        ("!=1.2.X", "!=1.2.*"),
        (">=1.2.*", ">=1.2"),
        (">=1.2.*,<1.5.*", ">=1.2,<1.5"),
        ("1.0RC1", "==1.0rc1"),
    ],
)
def test_ranges(version: str, range_: str) -> None:
    assert lines(f"a = '{version}'") == [f"a{range_}"]


@pytest.mark.parametrize(
    ("dependency", "expected"),
    [
        ("a = { version = '^1.2', extras = ['x', 'y'] }", ["a[x,y]>=1.2,<2"]),
        ("a = { version = '1.2', optional = true }", []),
        ("a = [{ version = '<2', optional = true }, { version = '2', python = '>=3.10', optional = true }]", []),
        ("Python = '^3.9'\na = '1'", ["a==1"]),
        ("[poetry.group.dev.dependencies]\na = '*'\n[poetry.dev-dependencies]\nb = '*'", []),
        ("a = { version = '*', markers = \"sys_platform == 'win32'\" }", ["a ; (sys_platform == 'win32')"]),
        ("a = { version = '>=1', platform = 'linux' }", ["a>=1 ; sys_platform == 'linux'"]),
        (
            "a = { version = '1.2', python = '^3.9' }",
            ["a==1.2 ; python_full_version >= '3.9' and python_full_version < '4'"],
        ),
        (
            "a = { version = '1.2', python = '3.8 || ~3.10' }",
            ["a==1.2 ; (python_version == '3.8' or python_full_version >= '3.10' and python_full_version < '3.11')"],
        ),
        (
            "a = [{ version = '<2', python = '<3.10' }, { version = '^2.1', python = '>=3.10' }]",
            ["a<2 ; python_full_version < '3.10'", "a>=2.1,<3 ; python_full_version >= '3.10'"],
        ),
        ("a = { version = '^2.1', allow-prereleases = true }", ["a>=2.1,<3"]),
        ("a = { git = 'https://h/a.git', branch = 'main' }", ["a @ git+https://h/a.git@main"]),
        (
            "a = { git = 'git@h:o/a.git', rev = '38eb', subdirectory = 'lib', extras = ['x'] }",
            ["a[x] @ git+ssh://git@h/o/a.git@38eb#subdirectory=lib"],
        ),
        ("a = { path = 'lib/a', develop = true }", ["a @ ./lib/a"]),
        ("a = { git = 'git+https://h/a.git', tag = 'v1' }", ["a @ git+https://h/a.git@v1"]),
        ("a = { url = 'https://h/a.zip#sha256=0', subdirectory = 'b' }", ["a @ https://h/a.zip#sha256=0&subdirectory=b"]),
        ("a = { file = './a.whl' }", ["a @ ./a.whl"]),
        ("a = { url = 'https://h/a.whl', python = '>=3.9' }", ["a @ https://h/a.whl ; python_full_version >= '3.9'"]),
    ],
)  # fmt: skip
def test_forms_of_dependencies(dependency: str, expected: list[str]) -> None:
    assert lines(dependency) == expected


@pytest.mark.parametrize(
    ("dependency", "problem"),
    [
        (
            "a = '^1.2 || ^2'",
            "'a' in tool.poetry.dependencies has the version '^1.2 || ^2', which is not read",
        ),
        ("a = '~=1'", "has the version '~=1', which is not read"),
        ("a = '<=1.2.*'", "has the version '<=1.2.*', which is not read"),
        (f"a = 'https://me:{'word' * 90}@h'", "has the version 'https://***@h', which is not read"),
        ("a = { git = 'me:word@h:o/a.git' }", "the local package '***@h:o/a.git' does not exist"),
        ("a = []", "'a' in tool.poetry.dependencies has no version"),
        ("a = 1.2", "'a' in tool.poetry.dependencies has no version"),
        ("a = { version = 1 }", "has a value that is no text"),
        ("a = { extras = 3 }", "has extras that are no list"),
        (
            "a = { version = '1', source = 'private' }",
            "a dependency names the source 'private', which tool.poetry.source lacks",
        ),
        ("a = { version = '1', other = '2' }", "has the key 'other', which is not read"),
        (
            "[[poetry.source]]\nname = 'private'\nurl = 'https://h'",
            "tool.poetry.source 'private' is not followed, unless its priority is 'explicit' (or as a line of "
            "requirements.txt: --extra-index-url https://h)",
        ),
        (
            "a = { version = '1', source = 'cpu' }\n[[poetry.source]]\nname = 'cpu'\nurl = 'https://me:word@h'\n"
            "priority = 'supplemental'",
            "(or as a line of requirements.txt: --extra-index-url https://***@h)",
        ),
        (f"a = '{'>=1 ' * 300}'", "which is not read"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, dependency: str, problem: str) -> None:
    text = HEAD + f"[tool.poetry.dependencies]\n{dependency}\n".replace("[poetry.", "[tool.poetry.")
    (tmp_path / "pyproject.toml").write_text(text.replace("[[poetry.", "[[tool.poetry."))
    [sentence] = requirements_file.parse(tmp_path, "m").problems
    assert sentence.startswith("pyproject.toml: ") and problem in sentence
    assert "tool.poetry" not in sentence or sentence.endswith(
        "; write the packages into m/requirements.txt (empty: those of the image)"
    )


def test_hostile_tables_end_soon(tmp_path: Path) -> None:
    many = ", ".join("{version = '1'}" for _ in range(1000))
    extras = "\n".join(f"x{number} = ['a', 'a']" for number in range(3000))
    for text in (
        f"[tool.poetry.dependencies]\na = [{many}]\n[tool.poetry.extras]\n{extras}\n",
        f"[tool.poetry.dependencies]\na = '>=1{' ' * 100_000}'\nb = '>{' ' * 100_000}x'\n",
        f"[tool.poetry.dependencies]\na = '{'1.' * 100_000}'\n",
        "[tool]\npoetry = 1\n",
        "[tool.poetry]\nsource = [{name = [1], priority = 'explicit'}]\ndependencies = {a = {source = [1]}}\n",
        "[tool.poetry.dependencies]\na = ["
        + "{version = '1', optional = true}, " * 4000
        + "{version = 'x', optional = true}]\n[tool.poetry.extras]\n"
        + "".join(f"x{number} = ['a']\n" for number in range(9000)),
        "[tool.poetry]\nsource = [1]\npackages = 3\nextras = {x = 1, y = [[1]]}\nscripts = 1\n",
    ):
        (tmp_path / "pyproject.toml").write_text(text)
        requirements_file.parse(tmp_path, "m")
        own_package.read(tmp_path)


@pytest.mark.parametrize(
    ("more", "folder"),
    [("", "src"), ("packages = [{ include = 'a', from = 'lib' }, { include = 'b', from = 'lib' }]\n", "lib")],
)
def test_project_is_a_package(tmp_path: Path, more: str, folder: str) -> None:
    for name in ("src/my_shapes", "lib/a", "lib/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "poetry.lock").touch()
    (tmp_path / "pyproject.toml").write_text(
        f"{HEAD}{more}[tool.poetry.dependencies]\nsix = '^1.16'\nidna = {{ version = '3', optional = true, allow-prereleases = true }}\n"
        f"[tool.poetry.extras]\nnames = ['idna', 'six']\nodd = ['missing']\n"
        f"[tool.poetry.scripts]\ntool = 'a:main'\n[tool.poetry.plugins.group]\nname = 'b:c'\n{BUILD}"
    )
    requirements = requirements_file.parse(tmp_path, "m")
    points = (("console_scripts", "tool", "a:main"), ("group", "name", "b:c"))
    assert requirements.package == OwnPackage("my-shapes", "1.2", folder, points)
    assert (requirements.files, requirements.lines) == (("pyproject.toml",), ("six>=1.16,<2",))
    assert requirements.notes == (
        "poetry.lock is not used: packages get the newest versions that pyproject.toml allows; "
        "poetry export -o m/requirements.txt writes the locked ones",
        "pyproject.toml allows pre-releases of idna: one is installed only where no release fits; "
        "require its version to have a newer one",
    )
    metadata = own_package.read(tmp_path)
    assert metadata is not None
    assert metadata.dependencies["names"] == ("idna==3", "six>=1.16,<2")
    assert "odd" not in metadata.dependencies


@pytest.mark.parametrize(
    "more",
    ["packages = [{ include = 'a/**/*.py' }]\n", "packages = [{ include = 'a', to = 'b' }]\n", "package-mode = false\n"],
)  # fmt: skip
def test_project_whose_modules_are_moved_gives_its_dependencies_alone(tmp_path: Path, more: str) -> None:
    (tmp_path / "my_shapes.py").touch()
    (tmp_path / "pyproject.toml").write_text(f"{HEAD}{more}[tool.poetry.dependencies]\nsix = '*'\n{BUILD}")
    requirements = requirements_file.parse(tmp_path, "m")
    assert (requirements.package, requirements.lines) == (None, ("six",))


def test_tables_of_pep_621_count_before_those_of_poetry(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f"[project]\nname = 'a'\nversion = '1'\ndependencies = ['six']\n{HEAD}[tool.poetry.dependencies]\nidna = '*'\n"
    )
    assert requirements_file.parse(tmp_path, "m").lines == ("six",)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("../out", "leads out of"), ("missing", "does not exist"), ("/etc", "absolute path"), ("lib", "")],
)
def test_paths_are_those_of_the_repository(tmp_path: Path, path: str, problem: str) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "pyproject.toml").write_text(f"[tool.poetry.dependencies]\na = {{ path = '{path}' }}\n")
    requirements = requirements_file.parse(tmp_path, "m")
    assert problem in "".join(requirements.problems)
    assert requirements.paths == (() if problem else ("lib",))


def test_paths_of_a_models_project_start_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "m" / "lib").mkdir(parents=True)
    (tmp_path / "lib").mkdir()
    (tmp_path / "m" / "pyproject.toml").write_text(
        "[tool.poetry.dependencies]\na = { path = 'lib' }\nb = { path = '../lib' }\n"
    )
    requirements = requirements_file.parse(tmp_path, "m")
    assert (requirements.problems, requirements.paths) == ((), ("m/lib", "lib"))
    # The build has copies of these folders alone.
    assert requirements.lines == ("a @ ./m/lib", "b @ ./lib")


PROJECT = "[project]\nname = 'my-shapes'\nversion = '1.2'\n"


@pytest.mark.parametrize(
    "project", [f"{PROJECT}dynamic = ['dependencies']\n", PROJECT, f"{PROJECT}dependencies = []\n"]
)
def test_project_with_dependencies_in_poetrys_table(tmp_path: Path, project: str) -> None:
    (tmp_path / "my_shapes.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        f"{project}[tool.poetry.dependencies]\npython = '^3.9'\nsix = '^1.16'\n{BUILD}"
    )
    requirements = requirements_file.parse(tmp_path, "m")
    assert (requirements.problems, requirements.lines) == ((), ("six>=1.16,<2",))
    assert requirements.package == OwnPackage("my-shapes", "1.2", "")


@pytest.mark.parametrize(
    ("dependency", "problem"),
    [
        ("My_Six = { git = 'https://h/six.git' }", "says where 'My_Six' is from"),
        ("my-six = { source = 'private' }", "names the source 'private', which tool.poetry.source lacks"),
        ("my-six = [{ path = 'lib' }]", "says where 'my-six' is from"),
        ("[[tool.poetry.source]]\nname = 'private'\nurl = 'https://h'", "tool.poetry.source 'private' is"),
        ("my-six = { source = 'PyPI', allow-prereleases = true }", ""),
        ("other = { git = 'https://h/other.git' }", ""),
    ],
)
def test_places_of_poetry_beside_project_are_not_ignored(
    tmp_path: Path, dependency: str, problem: str
) -> None:
    text = f"{PROJECT}dependencies = ['my.six>=1']\n{BUILD}[tool.poetry.dependencies]\n{dependency}\n"
    (tmp_path / "pyproject.toml").write_text(text)
    requirements = requirements_file.parse(tmp_path, "m")
    assert problem in "".join(requirements.problems)
    assert requirements.lines == (() if problem else ("my.six>=1",))
    # Another build back end does not read Poetry's table.
    (tmp_path / "pyproject.toml").write_text(text.replace(BUILD, ""))
    assert requirements_file.parse(tmp_path, "m").lines == ("my.six>=1",)


def test_extras_name_packages_in_any_spelling(tmp_path: Path) -> None:
    (tmp_path / "my_shapes.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        f"{HEAD}[tool.poetry.dependencies]\nMy_Six = {{ version = '1', optional = true, allow-prereleases = true }}\n"
        f"\"a\\ud800\\n\" = {{ version = '1', optional = true, allow-prereleases = true }}\n"
        f"[tool.poetry.extras]\nsix = ['my-six']\n{BUILD}"
    )
    metadata = own_package.read(tmp_path)
    assert metadata is not None and metadata.dependencies["six"] == ("My_Six==1",)
