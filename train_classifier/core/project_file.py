"""What a pyproject.toml says of packages. Python reads TOML from 3.11 on; the worker runs with 3.9."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from train_classifier.core import regular_file

# Each alternative takes linear time: a text that does not end is left as a quote, which is an error.
_TOKEN = re.compile(
    r"(?P<blank>[ \t\r]+|\#[^\n]*)"
    r"|(?P<long>\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5})"
    r"|(?P<text>(?!\"{3}|'{3})(?:\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'))"
    r"|[A-Za-z0-9_-]+|.",
    re.DOTALL,
)
#: Settings of uv that say where packages come from, or which versions are possible.
_UV_SETTINGS = {
    "sources", "index", "index-url", "extra-index-url", "find-links", "no-index", "prerelease",
    "constraint-dependencies", "override-dependencies",
}  # fmt: skip
#: Build back ends of packages that are Python code alone, unless the settings below say otherwise.
_BACK_ENDS = (
    "setuptools.build_meta", "hatchling.build", "flit_core.buildapi", "poetry.core.masonry.api",
    "pdm.backend", "uv_build",
)  # fmt: skip
#: Settings with which a build makes or moves modules, or says more than the file.
_BUILD_SETTINGS = (
    ("build-system", "backend-path"), ("project", "entry-points"), ("tool", "setuptools", "ext-modules"),
    ("tool", "setuptools", "cmdclass"), ("tool", "setuptools", "package-dir"),
    ("tool", "setuptools_scm", "write_to"), ("tool", "setuptools_scm", "version_file"),
    ("tool", "hatch", "build"), ("tool", "hatch", "metadata"), ("tool", "poetry", "build"),
    ("tool", "poetry", "packages"), ("tool", "pdm", "build"), ("tool", "uv", "build-backend"),
    ("tool", "setuptools-rust"), ("tool", "versioningit", "write"),
)  # fmt: skip
#: Where setuptools and hatchling look for packages: read, if they are at the top or in src/.
_FIND = ("tool", "setuptools", "packages", "find", "where")
_SDIST = ("tool", "hatch", "build", "targets", "sdist")
_HOOKS = ("tool", "hatch", "build", "hooks")
_WHEEL = ("tool", "hatch", "build", "targets", "wheel", "packages")
#: What a setup.py beside a complete pyproject.toml may say.
_SETUP = re.compile(
    r"\s*(?:from setuptools import setup|import setuptools)\s+(?:setuptools\.)?setup\(\)\s*\Z"
)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?\Z")
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}(?:(?:a|b|rc|\.post|\.dev)[0-9]{1,9})?\Z")
#: The version of a package that says its own in another way than in its pyproject.toml.
UNKNOWN_VERSION = "0+unknown"
MOST_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True)
class Project:
    """The part of a pyproject.toml that says which packages it needs."""

    dependencies: tuple[str, ...] = ()
    #: Names of settings below `tool.uv` that change what is installed.
    uv_settings: tuple[str, ...] = ()
    name: str = ""
    version: str = ""
    #: What `dynamic` says that the build says.
    dynamic: tuple[str, ...] = ()
    extras: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    #: The modules are at the top or in src/, and the build changes none.
    is_plain: bool = False


@dataclasses.dataclass(frozen=True)
class OwnPackage:
    """The repository as a package that jobs import from their own copy."""

    name: str
    version: str
    #: The folder of its modules, relative to the repository: "" or "src".
    folder: str


def own_package(root: Path, project: Project) -> Optional[OwnPackage]:
    """Return the repository as a package, if its pyproject.toml says all that its build would say."""
    version = UNKNOWN_VERSION if "version" in project.dynamic else project.version
    if (
        not project.is_plain
        or not _NAME.match(project.name)
        or not (version == UNKNOWN_VERSION or _VERSION.match(version))
        or {"dependencies", "optional-dependencies", "entry-points"} & set(project.dynamic)
        or not _is_plain_setup(root)
    ):
        return None
    source = root / "src"
    has_source = (
        os.path.isdir(source) and not os.path.islink(source) and not os.path.lexists(source / "__init__.py")
    )
    module = re.sub(r"[-_.]+", "_", project.name)
    for folder in ("src", "") if has_source else ("",):
        for name in (module, module.lower()):
            if os.path.isfile(root / folder / name / "__init__.py") or os.path.isfile(
                root / folder / f"{name}.py"
            ):
                return OwnPackage(project.name, version, folder)
    # Modules of another name than the project's are found in src/ alone: at the top they may be anywhere.
    return OwnPackage(project.name, version, "src") if has_source else None


def _is_plain_setup(root: Path) -> bool:
    """Tell whether setup.py and setup.cfg, where there are any, add nothing to pyproject.toml."""
    texts = {}
    for name in ("setup.py", "setup.cfg"):
        try:
            texts[name] = regular_file.read(root / name, MOST_BYTES, within=os.path.realpath(root)).decode()
        except FileNotFoundError:
            texts[name] = ""
        except (OSError, ValueError):
            return False
    setup = re.sub(r"#[^\n]*", "", texts["setup.py"])
    adds = re.search(r"^\[(?:options|metadata|build_ext|files)", texts["setup.cfg"], re.MULTILINE)
    return not adds and (not setup.strip() or bool(_SETUP.match(setup)))


def read(text: str) -> Project:
    """Return what a pyproject.toml asks for. Raises ValueError with a phrase for what cannot be read."""
    table: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    settings: dict[str, None] = {}
    package_fields: dict[tuple[str, ...], list[str]] = {}
    is_plain = True
    for statement in _statements(text):
        value: list[str] = []
        if statement[0] == "[":
            table = path = _names(statement)
            # A hook works without any setting, too.
            is_plain = is_plain and path[: len(_HOOKS)] != _HOOKS and path[-2:-1] != ("hooks",)
        else:
            end = statement.index("=") if "=" in statement else len(statement)
            path, value = (*table, *_names(statement[:end])), statement[end + 1 :]
            if path == ("project",):
                raise ValueError("`project` is not written as a table")
            if path == ("project", "dependencies"):
                dependencies = tuple(_list(value))
            elif path[:1] in (("project",), ("build-system",)):
                package_fields[path] = value
            is_plain = is_plain and _is_plain(path, value)
        if path[:2] == ("tool", "uv") and path[2:] and path[2] in _UV_SETTINGS:
            settings[path[2]] = None
    project = Project(dependencies, tuple(settings))
    return _with_package(project, package_fields) if is_plain and not settings else project


def _with_package(project: Project, fields: dict[tuple[str, ...], list[str]]) -> Project:
    """Return the project with the fields of its own package; as it is if one of them cannot be read."""
    try:
        texts = {
            key: _text(fields[path][0]) if path in fields else ""
            for key, path in (
                ("name", ("project", "name")),
                ("version", ("project", "version")),
                ("back end", ("build-system", "build-backend")),
            )
        }
        extras = {
            path[2]: tuple(_list(value))
            for path, value in fields.items()
            if path[:2] == ("project", "optional-dependencies") and len(path) == 3
        }
        dynamic = tuple(_list(fields.get(("project", "dynamic"), ["[", "]"])))
    except (ValueError, IndexError):
        return project
    return dataclasses.replace(
        project,
        name=texts["name"],
        version=texts["version"],
        dynamic=dynamic,
        extras=extras,
        is_plain=(texts["back end"] or _BACK_ENDS[0]) in _BACK_ENDS
        and ("project", "optional-dependencies") not in fields,
    )


def _is_plain(path: tuple[str, ...], value: list[str]) -> bool:
    """Tell whether a setting leaves the modules at the top or in src/, as they are."""
    if path in (_FIND, _WHEEL):
        places = [token.strip("\"'") for token in value if token[0] in "\"'"]
        if path == _FIND:
            return places in (["src"], ["."])
        return all(re.fullmatch(r"(?:src/)?[A-Za-z0-9_]+", place) for place in places)
    if path[: len(_SDIST)] == _SDIST:
        return True
    changes = any(path[: len(setting)] == setting for setting in _BUILD_SETTINGS)
    # A table that is written in braces could hold such a setting.
    holds = "{" in value and any(setting[: len(path)] == path for setting in (*_BUILD_SETTINGS, _FIND))
    return not changes and not holds


def _statements(text: str) -> Iterator[list[str]]:
    """Yield the tokens of each table's head and of each `key = value`, without blanks and comments."""
    depth, statement = 0, []
    for match in _TOKEN.finditer(f"{text}\n"):
        token = match[0]
        if token in ("'", '"'):
            raise ValueError("a text in quotes does not end")
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        if token != "\n":
            if not match["blank"]:
                statement.append(token)
        elif depth <= 0 and statement:
            yield statement
            statement = []
    if statement:
        raise ValueError("a bracket does not close")


def _names(tokens: list[str]) -> tuple[str, ...]:
    """Return the parts of a dotted key."""
    return tuple(_text(token) if token[0] in "\"'" else token for token in tokens if token not in "[].")


def _list(tokens: list[str]) -> Iterator[str]:
    """Yield the texts of a list."""
    if tokens[:1] != ["["] or tokens[-1] != "]":
        raise ValueError("`dependencies` is not a list")
    inside = tokens[1:-1]
    if any(separator != "," for separator in inside[1::2]):
        raise ValueError("`dependencies` is not a list of texts")
    for token in inside[::2]:
        yield _text(token)


def _text(token: str) -> str:
    if token[:3] in ('"""', "'''") or token[0] not in "\"'":
        raise ValueError("`dependencies` is not a list of plain texts")
    return token[1:-1] if token[0] == "'" else str(json.loads(token))
