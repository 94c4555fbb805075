"""What a pyproject.toml says of packages and of Python."""

import dataclasses
import re
from typing import Any

from train_classifier.core.project import poetry, toml_reader

#: Settings of uv that say where packages come from, or which versions are possible.
_UV_SETTINGS = {
    "sources", "index", "index-url", "extra-index-url", "find-links", "no-index", "prerelease",
    "constraint-dependencies", "override-dependencies",
}  # fmt: skip
MOST_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True)
class Project:
    """The part of a pyproject.toml that says which packages it needs."""

    dependencies: tuple[str, ...] = ()
    #: The files of requirements that setuptools takes the dependencies from.
    dependency_files: tuple[str, ...] = ()
    #: Names of settings below `tool.uv` that change what is installed.
    uv_settings: tuple[str, ...] = ()
    #: All tables of the file; `project` also where only Poetry's own say the same.
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)
    #: The dependencies are Poetry's own.
    is_poetry: bool = False


def read(text: str, folder: str = "") -> Project:
    """Return what the pyproject.toml in a folder of the repository asks for.

    Raises ValueError with a phrase for what cannot be read.
    """
    tables = toml_reader.read(text)
    is_poetry = _take_poetry(tables, folder)
    dependencies = table_at(tables, "project").get("dependencies", [])
    files = []
    if "dependencies" in texts(table_at(tables, "project").get("dynamic", [])):
        dynamic = table_at(tables, "tool", "setuptools", "dynamic", "dependencies").get("file", [])
        files = texts([dynamic] if isinstance(dynamic, str) else dynamic)
    settings = tuple(name for name in table_at(tables, "tool", "uv") if name in _UV_SETTINGS)
    return Project(tuple(texts(dependencies)), tuple(files), settings, tables, is_poetry)


def _take_poetry(tables: dict[str, Any], folder: str) -> bool:
    """Put what Poetry's own tables say into `project`; tell whether the dependencies are from them.

    Poetry 2 takes from `project` what is there, and the other fields from its own tables.
    """
    own, project = table_at(tables, "tool", "poetry"), table_at(tables, "project")
    back_end = table_at(tables, "build-system").get("build-backend")
    if not own or ("project" in tables and not str(back_end).startswith("poetry.")):
        return False
    dependencies = texts(project.get("dependencies") or [])
    if dependencies:
        poetry.check_places(own, dependencies)
        return False
    made = poetry.project(own, folder)
    dynamic = [name for name in texts(project.get("dynamic", [])) if not made.get(name)]
    tables["project"] = {**made, **{name: value for name, value in project.items() if value}}
    tables["project"]["dynamic"] = dynamic
    return True


def required_python(text: str) -> str:
    """Return the range in `requires-python`, or in Poetry's `python`; "" without one. Raises ValueError."""
    tables = toml_reader.read(text)
    for value in (
        table_at(tables, "project").get("requires-python"),
        table_at(tables, "tool", "poetry", "dependencies").get("python"),
    ):
        if isinstance(value, str) and value:
            return value
    return ""


def normal_name(name: str) -> str:
    """Return a distribution's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def table_at(tables: Any, *keys: str) -> dict[str, Any]:
    """Return a table by its dotted key; an empty one when it is missing or something else."""
    for key in keys:
        tables = tables.get(key) if isinstance(tables, dict) else None
    return tables if isinstance(tables, dict) else {}


def texts(value: Any) -> list[str]:
    """Return a list of texts. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("`dependencies` is not a list of texts")
    return value
