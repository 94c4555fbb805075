"""What a pyproject.toml says of packages and of Python."""

import dataclasses
from typing import Any

from train_classifier.core.project import package_sources, poetry, toml_reader
from train_classifier.core.project.package_sources import PackageSources
from train_classifier.core.project.tables import table_at, texts

MOST_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True)
class Project:
    """The part of a pyproject.toml that says which packages it needs."""

    dependencies: tuple[str, ...] = ()
    #: The files of requirements that setuptools takes the dependencies from.
    dependency_files: tuple[str, ...] = ()
    #: Where the dependencies come from: they stand in it, too.
    sources: PackageSources = dataclasses.field(default_factory=PackageSources)
    #: Why they cannot be said; a lock says it.
    sources_problem: str = ""
    #: All tables of the file; `project` also where only Poetry's own say the same.
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)
    #: The dependencies are Poetry's own.
    is_poetry: bool = False


def read(text: str, folder: str = "") -> Project:
    """Return what the pyproject.toml in a folder of the repository asks for.

    Raises ValueError with a phrase for what cannot be read.
    """
    tables = toml_reader.read(text)
    _take_flit(tables)
    uses_poetry = _uses_poetry(tables)
    is_poetry = uses_poetry and _take_poetry(tables, folder)
    dependencies = table_at(tables, "project").get("dependencies", [])
    files = []
    if "dependencies" in texts(table_at(tables, "project").get("dynamic", [])):
        dynamic = table_at(tables, "tool", "setuptools", "dynamic", "dependencies").get("file", [])
        files = texts([dynamic] if isinstance(dynamic, str) else dynamic)
    sources, problem = PackageSources(), ""
    try:
        sources = package_sources.read(tables, texts(dependencies), folder)
        if uses_poetry:
            own = tuple(poetry.indexes(table_at(tables, "tool", "poetry")))
            sources = dataclasses.replace(sources, indexes=(*sources.indexes, *own))
    except ValueError as error:
        problem = str(error)
    return Project(tuple(texts(dependencies)), tuple(files), sources, problem, tables, is_poetry)


def _take_flit(tables: dict[str, Any]) -> None:
    """Put what flit's own table says, which it had before PEP 621, into `project`."""
    own = table_at(tables, "tool", "flit", "metadata")
    if own and "project" not in tables:
        tables["project"] = {
            "name": own.get("dist-name") or own.get("module"),
            "dynamic": ["version"],
            "dependencies": own.get("requires", []),
            "optional-dependencies": table_at(own, "requires-extra"),
            "scripts": table_at(tables, "tool", "flit", "scripts"),
        }


def _uses_poetry(tables: dict[str, Any]) -> bool:
    """Tell whether Poetry's own tables count."""
    back_end = table_at(tables, "build-system").get("build-backend")
    own = table_at(tables, "tool", "poetry")
    return bool(own) and ("project" not in tables or str(back_end).startswith("poetry."))


def _take_poetry(tables: dict[str, Any], folder: str) -> bool:
    """Put what Poetry's own tables say into `project`; tell whether the dependencies are from them.

    Poetry 2 takes from `project` what is there, and the other fields from its own tables.
    """
    own, project = table_at(tables, "tool", "poetry"), table_at(tables, "project")
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
