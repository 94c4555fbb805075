"""The repository as a package, as far as its files say all of it."""

import warnings
from pathlib import Path

import pytest

from train_classifier.core import requirements_file
from train_classifier.core.project import own_package
from train_classifier.core.project.own_package import Metadata, OwnPackage

PACKAGE = '[project]\nname = "My-Shapes"\nversion = "1.2"\ndependencies = ["six"]\n'
FIND = "from setuptools import setup, find_packages\n"


def make(root: Path, **files: str) -> Path:
    """A repository with a package in src/, and files by name; `_` stands for a dot."""
    (root / "src" / "a").mkdir(parents=True, exist_ok=True)
    (root / "src" / "a" / "__init__.py").touch()
    for name, text in files.items():
        (root / name.replace("_", ".")).write_text(text)
    return root


def read(root: Path, **files: str) -> Metadata:
    metadata = own_package.read(make(root, **files))
    assert metadata is not None
    return metadata


@pytest.mark.parametrize(
    ("more", "files", "folder"),
    [
        ("", ("src/my_shapes/__init__.py",), "src"),
        ("", ("src/other/__init__.py",), "src"),
        ("", ("my_shapes.py", "src/notes.txt"), ""),
        ("[tool.setuptools_scm]\n", ("My_Shapes/__init__.py", "src/__init__.py"), ""),
        ("[tool.setuptools.packages.find]\nwhere = ['src']\n", ("src/a/__init__.py",), "src"),
        ("[tool.setuptools.packages]\nfind = { where = ['lib'] }\n", ("lib/a/__init__.py",), "lib"),
        ("[tool.setuptools]\npackage-dir = {'' = 'lib'}\npackages = ['a']\n", ("lib/a/__init__.py",), "lib"),
        ("[tool.setuptools]\npackage-dir = {a = 'x/a'}\npackages = ['a', 'a.b']\n", ("x/a/__init__.py",), "x"),
        ("[tool.setuptools]\npy-modules = ['one']\n", ("one.py",), ""),
        ("[tool.setuptools_scm]\nversion_file = 'src/a/_version.py'\n", ("src/a/__init__.py",), "src"),
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
    (tmp_path / "pyproject.toml").write_text(PACKAGE + more)
    (tmp_path / "setup.py").write_text("# for old tools\nfrom setuptools import setup\n\nsetup()\n")
    metadata = own_package.read(tmp_path)
    assert metadata is not None
    assert metadata.package == OwnPackage("My-Shapes", "1.2", folder)
    assert metadata.dependencies == {"": ("six",)}


@pytest.mark.parametrize(
    "text",
    [
        FIND + "requires = ['six', 'idna']\nsetup(name='a', version='1.0', packages=find_packages('src'),\n"
        "package_dir={'': 'src'}, install_requires=requires, extras_require={'b': ['c']}, description=open('x').read(),\n"
        "entry_points={'console_scripts': ['tool = a:main', 'other=a.b:c.d [b]']})\n",
        "import setuptools\nNAME = 'a'\nif __name__ == '__main__':\n    setuptools.setup(name=NAME, version='1.0',\n"
        "packages=['a'], package_dir={'a': 'src/a'}, install_requires=['six', 'idna'], extras_require=dict(b=['c']),\n"
        "entry_points={'console_scripts': ['tool = a:main', 'other=a.b:c.d']})\n",
    ],
)  # fmt: skip
def test_setup_with_literal_values(tmp_path: Path, text: str) -> None:
    metadata = read(tmp_path, setup_py=text)
    points = (("console_scripts", "other", "a.b:c.d"), ("console_scripts", "tool", "a:main"))
    assert metadata.package == OwnPackage("a", "1.0", "src", points)
    assert metadata.files == ("setup.py",)
    assert metadata.dependencies[""] == ("six", "idna")


CONFIG = """
[metadata]
name = a
version = attr: a.__version__
[options]
package_dir =
    = src
packages = find:
install_requires =
    six
    # a comment
    idna
[options.packages.find]
where = src
[options.extras_require]
b = c; python_version > "3"
[options.entry_points]
console_scripts =
    tool = a:main
a.plugins =
    x = a
[flake8]
max-line-length = 100
"""


def test_setup_cfg(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "src" / "a" / "__init__.py").write_text("import b\n__version__ = '1.0'\n")
    metadata = read(tmp_path, setup_cfg=CONFIG, setup_py="from setuptools import setup\nsetup()\n")
    points = (("a.plugins", "x", "a"), ("console_scripts", "tool", "a:main"))
    assert metadata.package == OwnPackage("a", "1.0", "src", points)
    assert metadata.dependencies == {"": ("six", "idna"), "b": ('c; python_version > "3"',)}
    assert metadata.files == ("setup.cfg", "setup.py")
    listed = read(tmp_path, setup_cfg="[metadata]\nname = a\n[options]\ninstall_requires = file: more.txt\n")
    assert listed.dependency_files == ("more.txt",)


@pytest.mark.parametrize(
    ("more", "version"),
    [
        ("[tool.setuptools.dynamic]\nversion = {attr = 'a.about.VERSION'}\n", "2.0"),
        ("[tool.setuptools.dynamic]\nversion = {file = 'VERSION'}\n", "3.0"),
        ("[build-system]\nbuild-backend = 'hatchling.build'\n[tool.hatch.version]\npath = 'src/a/about.py'\n", "2.0"),
        ("[build-system]\nbuild-backend = 'flit_core.buildapi'\n", "1.0"), ("", "1.0"),
        ("[tool.setuptools.dynamic]\nversion = {attr = 'a.about.COMPUTED'}\n", "0+unknown"),
        ("[tool.setuptools.dynamic]\nversion = {file = 'nowhere'}\n", "0+unknown"),
    ],
)  # fmt: skip
def test_version_in_a_file(tmp_path: Path, more: str, version: str) -> None:
    make(tmp_path, VERSION="3.0\n")
    (tmp_path / "src" / "a" / "__init__.py").write_text("__version__ = '1.0'\n")
    (tmp_path / "src" / "a" / "about.py").write_text("VERSION = '2.0'\nCOMPUTED = str(2)\n")
    metadata = read(tmp_path, pyproject_toml="[project]\nname = 'a'\ndynamic = ['version']\n" + more)
    assert metadata.package == OwnPackage("a", version, "src")


def test_table_of_old_flit(tmp_path: Path) -> None:
    text = (
        "[build-system]\nrequires = ['flit_core >=2,<4']\nbuild-backend = 'flit_core.buildapi'\n"
        "[tool.flit.metadata]\nmodule = 'a'\nrequires = ['six']\n[tool.flit.metadata.requires-extra]\ntest = ['idna']\n"
        "[tool.flit.scripts]\ntool = 'a:main'\n"
    )
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "a" / "__init__.py").write_text("__version__ = '1.0'\n")
    metadata = read(tmp_path, pyproject_toml=text)
    assert metadata.package == OwnPackage("a", "1.0", "src", (("console_scripts", "tool", "a:main"),))
    assert metadata.dependencies == {"": ("six",), "test": ("idna",)}
    assert requirements_file.parse(tmp_path, "m").lines == ("six",)


def test_entry_points_of_the_project(tmp_path: Path) -> None:
    more = "[project.scripts]\ntool = 'a:main'\n[project.entry-points.'a.plugins']\nx = 'a.b'\n"
    points = (("a.plugins", "x", "a.b"), ("console_scripts", "tool", "a:main"))
    assert read(tmp_path, pyproject_toml=PACKAGE + more).package.entry_points == points


@pytest.mark.parametrize(
    "text",
    [
        "", "[project]\nname = 'a'\n", "[project]\nname = '../a'\nversion = '1'\n",
        "[project]\nname = 'a'\nversion = '1\\n[x]'\n", "[project]\nname = 'a'\nversion = \"1\\n\"\n",
        PACKAGE.replace("dependencies = [\"six\"]", "dynamic = ['dependencies']"), PACKAGE + "[build-system]\nbuild-backend = 'maturin'\n",
        PACKAGE + "[build-system]\nbuild-backend = 'hatchling.build'\nbackend-path = ['.']\n",
        PACKAGE + "[[tool.setuptools.ext-modules]]\nname = 'x'\n",
        PACKAGE + "[tool]\nsetuptools = { package-dir = { '' = 'lib' } }\n",
        PACKAGE + "[tool.setuptools.packages.find]\nwhere = ['../x']\n",
        PACKAGE + "[tool.setuptools.packages.find]\nwhere = ['link']\n",
        PACKAGE + "[tool.setuptools]\npackages = ['nowhere']\n",
        PACKAGE + "[tool.hatch.build.hooks.custom]\n", PACKAGE + "[tool.hatch.build.targets.wheel.hooks.mypyc]\n",
        PACKAGE + "[tool.hatch.build.targets.wheel]\npackages = ['python/a']\n",
        PACKAGE + "[project.scripts]\n'../x' = 'a:b'\n",
        PACKAGE + "[project.scripts]\nx = 'a:b; import os'\n", PACKAGE + "[project.entry-points.\"x]\\n[y\"]\na = 'b'\n", "= 1\n",
        "[project]\nname = 'a'\ndynamic = ['version']\n[tool.setuptools.dynamic]\nversion = {file = []}\n",
    ],
)  # fmt: skip
def test_package_that_has_to_be_built(tmp_path: Path, text: str) -> None:
    (tmp_path / "link").symlink_to("src")
    assert own_package.read(make(tmp_path, pyproject_toml=text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "setup(name='a', ext_modules=[x])", "setup(name='a', cmdclass={'build_py': x})", "setup(name='a', **more)",
        "a = b = []\nb.append('x')\nsetup(name='a', install_requires=a)", "a = []\nfrom x import y as a\nsetup(name='a', install_requires=a)",
        "requires = []\nrequires.append('x')\nsetup(name='a', install_requires=requires)", "setup(name=name())", "x = (",
        "def f():\n    setup(name='a')\nf()", "setup(name='a')\nsetup(name='b')", "setup(name='a', scripts=['x'])",
        "setup(name='a', install_requires=open('r.txt').read().split())", "setup(name='a', install_requires=('file',))", "(" * 1000, "x = 1" + "+1" * 50000,
    ],
)  # fmt: skip
def test_setup_that_computes_is_built(tmp_path: Path, text: str) -> None:
    assert own_package.read(make(tmp_path, setup_py=SETUP + text)) is None


REQUIRES = "a = ['six']\n"
SETUP = "from setuptools import setup\n"
CALL = "setup(name='a', install_requires=a)\n"


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        (f"{SETUP}{REQUIRES}{CALL}", True),
        # What binds any name before is bound again.
        (f"from setuptools import *\n{REQUIRES}{CALL}", True),
        (f"{SETUP}exec(open('a/version.py').read())\n{REQUIRES}{CALL}", True),
        (f"{SETUP}{REQUIRES}names = {{}}\nexec(open('a/version.py').read(), names)\n{CALL}", True),
        (f"{SETUP}{REQUIRES}def version():\n    exec(open('v.py').read())\n    return locals()['v']\n{CALL}", True),
        (f"{SETUP}{REQUIRES}exec(open('a/version.py').read())\n{CALL}", False),
        (f"{SETUP}{REQUIRES}from a.lists import *\n{CALL}", False),
        (f"{SETUP}{REQUIRES}globals()['a'].append('idna')\n{CALL}", False),
        (f"{SETUP}def more():\n    globals()['a'] = ['idna']\n{REQUIRES}more()\n{CALL}", False),
        (f"import sys\n{SETUP}{REQUIRES}vars(sys.modules[__name__])['a'].append('idna')\n{CALL}", False),
        (f"{SETUP}{REQUIRES}def a(): pass\n{CALL}", False),
        (f"{SETUP}{REQUIRES}try: pass\nexcept ValueError as a: pass\n{CALL}", False),
        (f"{SETUP}{REQUIRES}for a in (): pass\n{CALL}", False),
        (f"{SETUP}{REQUIRES}a += ['idna']\n{CALL}", False),
        # Another `setup` than that of setuptools, or one that may not run.
        (f"try:\n    {SETUP}except ImportError:\n    from distutils.core import setup\n{REQUIRES}{CALL}", True),
        (f"import setuptools\n{REQUIRES}setuptools.{CALL}", True),
        (f"from skbuild import setup\n{REQUIRES}{CALL}", False),
        (f"import skbuild\n{REQUIRES}skbuild.{CALL}", False),
        (f"{SETUP}{REQUIRES}from functools import partial\nsetup = partial(setup, ext_modules=[])\n{CALL}", False),
        (f"{SETUP}from a import *\n{REQUIRES}{CALL}", False),
        (f"{REQUIRES}{CALL}", False),
        (f"{SETUP}from a import find_packages\n{REQUIRES}{CALL[:-2]}, packages=find_packages())\n", False),
        (f"import os\n{SETUP}{REQUIRES}if os.environ.get('X'):\n    {CALL}", False),
        (f"{SETUP}{REQUIRES}if __name__ == '__main__':\n    {CALL}", True),
        (f"{SETUP}{REQUIRES}setup({{}}, name='a', install_requires=a)\n", False),
    ],
)  # fmt: skip
def test_setup_is_read_only_where_its_text_is_sure(tmp_path: Path, text: str, is_read: bool) -> None:
    metadata = own_package.read(make(tmp_path, setup_py=text))
    assert (metadata.dependencies[""] if metadata else None) == (("six",) if is_read else None)


def test_files_that_cannot_be_read_are_built(tmp_path: Path) -> None:
    make(tmp_path, pyproject_toml=PACKAGE)
    (tmp_path / "setup.py").symlink_to("/etc/hostname")
    assert own_package.read(tmp_path) is None
    (tmp_path / "setup.py").unlink()
    (tmp_path / "setup.cfg").write_text("[files]\npackages = a\n")
    assert own_package.read(tmp_path) is None
    (tmp_path / "setup.cfg").write_text("[metadata\n")
    assert own_package.read(tmp_path) is None


@pytest.mark.parametrize(
    "pyproject",
    [
        "dynamic = ['version']\n[tool.setuptools.dynamic]\nversion = {file = []}\n",
        # Name and version make the name of a folder.
        f"version = '1+{'.'.join(['a' * 40] * 6)}'\n",
    ],
)
def test_hostile_pyproject_is_no_package_of_plain_files(tmp_path: Path, pyproject: str) -> None:
    assert own_package.read(make(tmp_path, pyproject_toml="[project]\nname = 'a'\n" + pyproject)) is None


def test_warnings_about_the_code_of_a_setup_py_are_not_shown(tmp_path: Path) -> None:
    text = "import re\nre.compile('\\d')\n" + FIND + "setup(name='a', version='1')\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, setup_py=text).package.version == "1"


def test_code_that_takes_seconds_to_read_is_left_to_a_build(tmp_path: Path) -> None:
    files = {"setup_py": FIND + "setup(name='a', packages=find_packages('src'))\n"}
    assert read(tmp_path, **files).package.version == own_package.UNKNOWN_VERSION
    for name in ("_version", "version"):
        (tmp_path / "src" / "a" / f"{name}.py").write_text("a\n" * 80_000)
    assert own_package.read(tmp_path) is None


POETRY = "[tool.poetry]\nname = 'a'\n[tool.poetry.dependencies]\npython = '^3.9'\n"


@pytest.mark.parametrize(
    ("files", "unread"),
    [
        ({}, ""),
        ({"setup_py": "from setuptools import setup\nsetup(name='a')\n"}, ""),
        ({"setup_py": "setup(install_requires=open('x').read())\nsetup(\n"}, "setup.py"),
        ({"setup_cfg": "[options]\ninstall_requires =\n  six\n"}, "setup.cfg"),
        ({"setup_py": FIND + "setup(name='a', install_requires=['six'], ext_modules=[x])\n"}, "setup.py"),
        ({"setup_cfg": "[flake8]\nmax-line-length = 100\n"}, ""),
        ({"pyproject_toml": POETRY}, ""),
        ({"pyproject_toml": POETRY + "numpy = '*'\n", "requirements_txt": "numpy\n"}, ""),
        ({"pyproject_toml": PACKAGE, "setup_py": FIND + "setup(install_requires=['six'])\n"}, ""),
    ],
)
def test_dependencies_that_are_not_installed_are_named(
    tmp_path: Path, files: dict[str, str], unread: str
) -> None:
    notes = requirements_file.parse(make(tmp_path, **files), "m").notes
    expected = (
        f"the dependencies in {unread} are not installed: write the line -e . into requirements.txt "
        "(or make m/requirements.txt an empty file, if the image's packages are enough)"
    )
    assert notes == ((expected,) if unread else ())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "requirements.txt").touch()
    assert requirements_file.parse(tmp_path, "m").notes == ()


@pytest.mark.parametrize(
    ("files", "names", "lines"),
    [
        ({"setup_py": FIND + "setup(name='a', install_requires=['six'])\n"}, ("setup.py",), ("six",)),
        ({"setup_cfg": "[metadata]\nname = a\n[options]\ninstall_requires =\n  six\n"}, ("setup.cfg",), ("six",)),
        (
            {"setup_py": FIND + "setup(name='a', install_requires=\"\"\"\n  six  # old\n\n  # more\n  idna\n\"\"\")\n"},
            ("setup.py",),
            ("six", "idna"),
        ),
        (
            {"setup_cfg": "[metadata]\nname = a\n[options]\ninstall_requires = six # old\n  idna>=1 # new\n"},
            ("setup.cfg",),
            ("six", "idna>=1"),
        ),
        (
            {"setup_cfg": "[metadata]\nname = a\n[options]\ninstall-requires = six; idna\n"},
            ("setup.cfg",),
            ("six", "idna"),
        ),
        (
            {
                "pyproject_toml": "[build-system]\nrequires = ['setuptools']\n",
                "setup_cfg": "[metadata]\nversion = 2\n",
                "setup_py": FIND + "setup(name='a', install_requires=['six', 'idna'])\n",
            },
            ("setup.py", "pyproject.toml", "setup.cfg"),
            ("six", "idna"),
        ),
    ],
)  # fmt: skip
def test_dependencies_of_setup_files_are_installed(
    tmp_path: Path, files: dict[str, str], names: tuple[str, ...], lines: tuple[str, ...]
) -> None:
    requirements = requirements_file.parse(make(tmp_path, **files), "m")
    assert (requirements.files, requirements.lines, requirements.problems) == (names, lines, ())
    assert requirements.package is not None and requirements.package.folder == "src"
    # A requirements.txt counts before them.
    (tmp_path / "requirements.txt").write_text("numpy\n")
    assert requirements_file.parse(tmp_path, "m").lines == ("numpy",)
