"""Which versions of Python a repository asks for."""

from pathlib import Path

import pytest

from train_classifier.core.options import PYTHONS
from train_classifier.request.checkout import required_pythons


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("3.10\n", ("3.10",)), ("3.9.18", ("3.9",)), ("cpython-3.12.1\n", ("3.12",)), ("python-3.8\n3.9\n", ("3.8",)),
        ("pypy3.9", ()), ("2.7.18", ()), ("3.6.15", ()), ("system", ()), ("", ()), ("\0" * 100, ()),
    ],
)  # fmt: skip
def test_python_version_names_one(tmp_path: Path, text: str, versions: tuple[str, ...]) -> None:
    (tmp_path / ".python-version").write_text(text)
    assert required_pythons(tmp_path, "m") == versions


@pytest.mark.parametrize(
    ("range_", "versions"),
    [
        (">=3.8", ()), (">=3.6,<4", ()), (">=3.8,<3.11", ("3.8", "3.9", "3.10")), ("<3.10", ("3.8", "3.9")),
        (">=3.8.1, <=3.9", ("3.8", "3.9")), ("==3.10.*", ("3.10",)), ("3.10.*", ("3.10",)), ("~=3.9.2", ("3.9",)),
        (">3.12", PYTHONS[4:]), ("!=3.9.*,<3.11", ("3.8", "3.10")), (">=3.8,!=3.9.7", ()), ("^3.12", PYTHONS[4:]),
        ("~3.11", ("3.11",)), ("<3", ()), ("nonsense", ()), (">=2.7,<3.10", ("3.8", "3.9")), ("<3.10.4", PYTHONS[:3]),
        (">=3.8,<3.9 || >=3.12", ("3.8", *PYTHONS[4:])), ("~2.7 || ~3.9", ("3.9",)), ("3.9 || 3.11", ("3.9", "3.11")), (">= 3.8 <3.10", ("3.8", "3.9")),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "form",
    [
        '[project]\nrequires-python = "{}"\n', "[tool.poetry.dependencies]\npython = '{}'\n",
        "[project]  # a comment\n'requires-python' = '{}'  # another\n", 'project.requires-python = """{}"""',
    ],
)  # fmt: skip
def test_range_of_the_project(tmp_path: Path, range_: str, versions: tuple[str, ...], form: str) -> None:
    (tmp_path / "pyproject.toml").write_text(form.format(range_) + "\n[tool.other]\npython = '3.8'\n")
    assert required_pythons(tmp_path, "m") == versions
    # That of the model counts first.
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pyproject.toml").write_text("[project]\nrequires-python = '==3.12.*'\n")
    assert required_pythons(tmp_path, "m") == ("3.12",)


def test_files_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    (tmp_path / ".python-version").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nrequires-python = "<3.10"\n' + "#" * (1 << 20))
    assert required_pythons(tmp_path, "m") == ()


def test_links_lead_to_files_of_the_repository_only(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for folder in (top / "real", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text('[project]\nrequires-python = "<3.10"\n')
    (top / "m").symlink_to("../elsewhere")
    assert required_pythons(top, "m") == ()
    (top / "pyproject.toml").symlink_to("../elsewhere/pyproject.toml")
    assert required_pythons(top, "m") == ()
    (top / "m").unlink()
    (top / "m").symlink_to("real")
    assert required_pythons(top, "m") == ("3.8", "3.9")
