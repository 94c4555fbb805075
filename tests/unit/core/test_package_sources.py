"""Where projects of uv, PDM and Poetry say that their packages come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from train_classifier.core import requirements_file
from train_classifier.core.project import package_index, toml_reader
from train_classifier.core.project.package_index import PackageIndex

HEAD = "[project]\nname = 'shapes'\nversion = '1'\ndependencies = ['torch>=2 ; python_version > \"3\"', 'My_Lib[x]>1', 'six']\n"
CPU = "[[tool.uv.index]]\nname = 'cpu'\nurl = 'https://h/whl/cpu'\nexplicit = true\n"
TORCH = PackageIndex("torch", "https://h/whl/cpu")
POETRY = "[build-system]\nbuild-backend = 'poetry.core.masonry.api'\n[tool.poetry.dependencies]\nsix = '*'\n"


def parse(folder: Path, text: str) -> requirements_file.Requirements:
    (folder / "pyproject.toml").write_text(text)
    return requirements_file.parse(folder, "m")


@pytest.mark.parametrize(
    ("more", "indexes", "options"),
    [
        (f"{CPU}[tool.uv.sources]\nTorch = {{ index = 'cpu' }}\n", [TORCH], ()),
        # The form of PyTorch's and uv's guides.
        (
            f"{CPU}[[tool.uv.index]]\nname = 'cuda'\nurl = 'https://h/whl/cu128'\nexplicit = true\n[tool.uv.sources]\n"
            "torch = [\n{ index = 'cpu', marker = \"sys_platform != 'linux'\" },\n"
            "{ index = 'cuda', marker = \"sys_platform == 'linux'\" },\n]\n",
            [
                PackageIndex("torch", "https://h/whl/cpu", "sys_platform != 'linux'"),
                PackageIndex("torch", "https://h/whl/cu128", "sys_platform == 'linux'"),
            ],
            (),
        ),
        (f"{CPU}[tool.uv.sources]\ntorch = [{{ index = 'cpu', extra = 'cpu' }}]\n", [], ()),
        ("[[tool.uv.index]]\nurl = 'https://h/more'\n", [], ("--index https://h/more",)),
        ("[[tool.uv.index]]\nurl = 'https://h/s'\ndefault = true\n", [], ("--index-url https://h/s",)),
        (
            "[tool.uv]\nindex-url = 'https://h/s'\nextra-index-url = ['https://h/t']\nprerelease = 'allow'\n",
            [],
            ("--index-url https://h/s", "--index https://h/t", "--pre"),
        ),
        # Nobody uses it.
        ("[[tool.uv.index]]\nname = 'files'\nurl = './wheels'\nformat = 'flat'\nexplicit = true\n", [], ()),
        ("[[tool.pdm.source]]\nname = 'pypi'\nurl = 'https://mirror/simple'\n", [], ()),
        ("[[tool.pdm.source]]\nname = 'more'\nurl = 'https://h/more'\n", [], ("--extra-index-url https://h/more",)),
        (
            "[[tool.pdm.source]]\nname = 'cpu'\nurl = 'https://h/whl/cpu'\ninclude_packages = ['torch*']\nexclude_packages = ['*']\n",
            [TORCH],
            (),
        ),
        ("[[tool.rye.sources]]\nname = 'torch'\nurl = 'https://h/cpu'\n", [], ("--extra-index-url https://h/cpu",)),
        (
            "[tool.poetry.dependencies]\ntorch = { source = 'CPU' }\n[[tool.poetry.source]]\nname = 'cpu'\n"
            "url = 'https://h/whl/cpu'\npriority = 'explicit'\n[build-system]\nbuild-backend = 'poetry.core.masonry.api'\n",
            [TORCH],
            (),
        ),
    ],
)  # fmt: skip
def test_indexes_of_a_project(
    tmp_path: Path, more: str, indexes: list[PackageIndex], options: tuple[str, ...]
) -> None:
    requirements = parse(tmp_path, HEAD + more)
    assert requirements.problems == ()
    assert (requirements.indexes, requirements.options) == (tuple(indexes), options)
    assert requirements.lines == ('torch>=2 ; python_version > "3"', "My_Lib[x]>1", "six")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{ git = 'https://h/l.git', rev = 'abc', subdirectory = 'lib' }", "My_Lib[x] @ git+https://h/l.git@abc#subdirectory=lib"),
        ("{ url = 'https://h/l.whl' }", "My_Lib[x] @ https://h/l.whl"),
        ("{ path = 'lib', editable = true }", "My_Lib[x] @ ./lib"),
        ("{ git = 'https://h/l', marker = \"sys_platform == 'linux'\" }", "My_Lib[x] @ git+https://h/l"),
        ("{ git = 'https://h/l', marker = \"platform_system == 'Windows'\" }", "My_Lib[x]>1"),
        ("{ workspace = true, group = 'dev' }", "My_Lib[x]>1"),
    ],
)  # fmt: skip
def test_address_of_a_dependency(tmp_path: Path, source: str, line: str) -> None:
    (tmp_path / "lib").mkdir()
    requirements = parse(
        tmp_path, f"{HEAD}[tool.uv.sources]\nmy-lib = {source}\nother = {{ workspace = true }}\n"
    )
    assert (requirements.problems, requirements.lines[1]) == ((), line)


def test_constraints_of_uv_are_constraints(tmp_path: Path) -> None:
    requirements = parse(tmp_path, f"{HEAD}[tool.uv]\nconstraint-dependencies = ['numpy<2']\n")
    assert (requirements.problems, requirements.constraints) == ((), ("numpy<2",))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("[tool.uv]\noverride-dependencies = ['a']\n", "tool.uv.override-dependencies cannot be followed without uv.lock"),
        ("[tool.uv]\nindex-url = 'file:///wheels'\n", "tool.uv.index-url has the address 'file:///wheels'"),
        ("[[tool.uv.index]]\nurl = 'https://me:word@h/${TOKEN}'\n", "has the address 'https://***@h/${TOKEN}'"),
        ("[[tool.uv.index]]\nurl = \"https://me:wo'rd two@h\"\n", "has the address 'https://***@h'"),
        ("[tool.uv.sources]\ntorch = { index = 'cpu' }\n", "names the index 'cpu', which tool.uv.index lacks"),
        ("[tool.uv.sources]\nsix = { workspace = true }\n", "tool.uv.sources.six cannot be followed"),
        ("[tool.uv.sources]\nsix = { git = 'x', marker = \"python_version > '3'\" }\n", "is for some platforms only"),
        ("[tool.uv.sources]\nsix = { git = 3 }\n", "has a value that is no text"),
        ("[tool.uv.sources]\nsix = { path = '../six' }\n", "leads out of the repository"),
        (f"{CPU}[tool.uv.sources]\ntorch = {{ index = 'cpu', marker = 'a\\nb' }}\n".replace("'a\\nb'", '"a\\nb"'), "a marker that is not read"),
        (f"{CPU}[tool.uv.sources]\n'a]\\n[x' = {{ index = 'cpu' }}\n".replace("'a]\\n[x'", '"a]\\n[x"'), "is no name of a package"),
        ("[[tool.pdm.source]]\nname = 'x'\ntype = 'find_links'\nurl = 'https://h'\n", "tool.pdm.source 'x' is not followed"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be_followed(tmp_path: Path, more: str, problem: str) -> None:
    [sentence] = parse(tmp_path, HEAD + more).problems
    assert sentence.startswith("pyproject.toml: ") and problem in sentence
    # A lock says it.
    (tmp_path / "uv.lock").write_text('[[package]]\nsource = { virtual = "." }\n')
    assert parse(tmp_path, HEAD + more).problems == ()


def test_problem_is_one_line_without_control_characters(tmp_path: Path) -> None:
    source = '[[tool.poetry.source]]\nname = "x"\nurl = "https://h/\\u001b[31m\\n::error::x"\n'
    [problem] = parse(tmp_path, POETRY + source).problems
    assert r"https://h/\x1b[31m\n::error::x)" in problem and problem.isprintable()


def test_long_name_is_compared_with_no_pattern(tmp_path: Path) -> None:
    """Each of many patterns would be looked for in all of it."""
    patterns = ", ".join(f"'*b{number}*'" for number in range(10000))
    source = f"[[tool.pdm.source]]\nname = 'x'\nurl = 'https://h'\ninclude_packages = [{patterns}]\n"
    head = f"[project]\nname = 'shapes'\nversion = '1'\ndependencies = ['{'a' * 100000}b1b']\n"
    requirements = parse(tmp_path, head + source)
    assert requirements.indexes == () and "is no name of a package" not in str(requirements.problems)


def test_repository_is_a_package_whatever_index_its_packages_are_from(tmp_path: Path) -> None:
    (tmp_path / "src" / "shapes").mkdir(parents=True)
    text = f"{HEAD}[project.optional-dependencies]\nplots = ['idna']\n{CPU}[tool.uv.sources]\ntorch = {{ index = 'cpu' }}\n"
    requirements = parse(tmp_path, text)
    assert requirements.package is not None and requirements.package.folder == "src"
    (tmp_path / "requirements.txt").write_text("-e .[plots]\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "requirements.txt").write_text("-e .[plots]\n")
    requirements = parse(tmp_path, text)
    assert (requirements.package is not None, requirements.indexes) == (True, (TORCH,))
    # Only uv itself knows where the packages of an extra are from.
    requirements = parse(tmp_path, text.replace("{ index = 'cpu' }", "{ index = 'cpu', extra = 'plots' }"))
    assert (requirements.package, requirements.lines, requirements.paths) == (
        None,
        (["-e", ".[plots]"][1],),
        (".",),
    )


def test_project_file_for_uv_names_no_index_as_the_checkout_does() -> None:
    lines = ['torch ; sys_platform == "linux"', "a\\b"]
    indexes = [
        PackageIndex("torch", "https://h/a", 'x == "y"'),
        PackageIndex("torch", "https://h/b", "z"),
        PackageIndex("six", "https://h/a"),
    ]
    tables = toml_reader.read(package_index.project_file(lines, indexes))
    assert tables["project"]["dependencies"] == lines
    names = ["train-classifier-0", "train-classifier-1"]
    assert tables["tool"]["uv"] == {
        "sources": {
            "torch": [{"index": names[0], "marker": 'x == "y"'}, {"index": names[1], "marker": "z"}],
            "six": [{"index": names[0]}],
        },
        "index": [
            {"name": name, "url": f"https://h/{letter}", "explicit": True} for name, letter in zip(names, "ab", strict=True)
        ],
    }  # fmt: skip
