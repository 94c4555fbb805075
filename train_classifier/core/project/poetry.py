"""What `[tool.poetry]` says of a package and of what it requires, in the form of `[project]` (PEP 621).

Poetry's own words: https://python-poetry.org/docs/dependency-specification/
"""

import functools
import os
import re
from collections.abc import Iterator
from typing import Any, Optional

_CLAUSE = re.compile(
    r"\s*(?P<operator>\^|~=|~|==?=?|!=|<>|>=|<=|>|<|)\s*v?"
    r"(?:(?P<release>[0-9]{1,9}(?:\.[0-9]{1,9}){0,5})"
    r"(?P<rest>\.\*|(?:[-._]?[a-z]{1,7}[-._]?[0-9]{0,9}){0,3}(?:\+[a-z0-9.]{1,40})?)|\*)\s*(?:,|(?=\s)|\Z)",
    re.ASCII,
)
#: Most requirements of all extras together, and most characters of a range.
MOST_LINES = 20000
MOST_RANGE = 1000
_OPERATORS = {"": "==", "=": "==", "<>": "!="}
#: Keys of a dependency that change nothing of what is installed, and those that are read.
_IGNORED = {"develop", "optional"}
_PLACES = ("git", "path", "file", "url")
_READ = {
    *_IGNORED, *_PLACES, "version", "extras", "markers", "python", "platform", "allow-prereleases",
    "branch", "tag", "rev", "subdirectory", "source",
}  # fmt: skip
_SSH_ADDRESS = re.compile(r"(?P<host>[\w.-]+@[\w.-]+):(?P<path>[^\s/]\S*)\Z")


def project(poetry: dict[str, Any], folder: str = "") -> dict[str, Any]:
    """Return the table `[project]` of a project in `folder` of the repository that has Poetry's own.

    An extra that cannot be read is left out. Raises ValueError with a phrase for other dependencies that
    cannot be read.
    """
    dependencies = _table(poetry, "dependencies")
    required = [name for name, value in dependencies.items() if name != "python" and not _is_optional(value)]
    values = [dependencies[name] for name in required]
    named = [value.get("source") for value in values if isinstance(value, dict)]
    for source in _sources(poetry):
        if source.get("priority") != "explicit" or source.get("name", "") in named:
            raise ValueError(
                f"tool.poetry.source {source.get('name')!r} is not followed (as a line of requirements.txt: "
                f"--extra-index-url {source.get('url')})"
            )
    lines = [line for name in required for line in _lines(name, dependencies[name], folder)]
    extras = _extras(_table(poetry, "extras"), dependencies, folder)
    table = {"dependencies": lines, "optional-dependencies": extras, "version": poetry.get("version", "")}
    # Without package mode it is no package.
    if poetry.get("package-mode") is not False:
        table["name"] = poetry.get("name", "")
    return {**table, "scripts": _table(poetry, "scripts"), "entry-points": _table(poetry, "plugins")}


def names_with_prereleases(poetry: dict[str, Any]) -> list[str]:
    """Return the dependencies of which Poetry would take a pre-release before an older release."""
    return [
        name
        for name, value in _table(poetry, "dependencies").items()
        if isinstance(value, dict) and value.get("allow-prereleases") is True
    ]


def _extras(extras: dict[str, Any], dependencies: dict[str, Any], folder: str) -> dict[str, list[str]]:
    """Return the requirements of each extra that can be read."""
    lines_of = functools.lru_cache(None)(lambda name: _lines(name, dependencies[name], folder))
    result = {}
    count = 0
    for extra, names in extras.items():
        try:
            result[extra] = [line for name in dict.fromkeys(names) for line in lines_of(name)]
        except (ValueError, KeyError, TypeError):
            continue
        count += len(result[extra])
        if count > MOST_LINES:
            raise ValueError(f"the extras in tool.poetry have more than {MOST_LINES} dependencies")
    return result


def packages(poetry: dict[str, Any]) -> dict[str, Any]:
    """Return `packages` as settings of setuptools. Raises ValueError for those that cannot be said so."""
    entries = [(entry.get("include", ""), entry.get("from", "."), len(entry)) for entry in poetry["packages"]]
    folders = {folder for _, folder, _ in entries}
    # A pattern, another `to`, or a format is left to a build.
    is_plain = all(
        re.fullmatch(r"\w+", name) and count == 1 + (folder != ".") for name, folder, count in entries
    )
    if not is_plain or len(folders) != 1:
        raise ValueError("packages in tool.poetry are not read")
    return {"packages": [name for name, _, _ in entries], "package-dir": {"": folders.pop()}}


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    value = tables.get(name)
    return value if isinstance(value, dict) else {}


def _sources(poetry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the indexes that a project names, without the usual one."""
    sources = poetry.get("source")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and str(source.get("name", "")).lower() != "pypi":
            yield source


def _is_optional(value: Any) -> bool:
    return isinstance(value, dict) and value.get("optional") is True


def _lines(name: str, value: Any, folder: str) -> list[str]:
    """Return the requirements of a dependency: one, or several with a marker each."""
    try:
        return [_line(name, each, folder) for each in (value if isinstance(value, list) else [value])]
    except ValueError as error:
        raise ValueError(f"{name!r} in tool.poetry.dependencies has {error}") from error


def _line(name: str, value: Any, folder: str) -> str:
    table = {"version": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise ValueError("no version")
    unknown = sorted(set(table) - _READ)
    texts = [text for key, text in table.items() if key not in ("extras", "allow-prereleases", *_IGNORED)]
    extras = table.get("extras", [])
    if not isinstance(extras, list):
        raise ValueError("extras that are no list")
    if unknown or not all(isinstance(text, str) for text in [*texts, *extras]):
        raise ValueError(
            f"the key {unknown[0]!r}, which is not read" if unknown else "a value that is no text"
        )
    if table.get("source", "pypi").lower() != "pypi":
        raise ValueError("a source, which is not followed")
    extra = f"[{','.join(extras)}]" if extras else ""
    markers = [
        f"({table['markers']})" if table.get("markers") else "",
        _python_marker(table["python"]) if "python" in table else "",
        f"sys_platform == '{table['platform']}'" if "platform" in table else "",
    ]
    marker = " and ".join(filter(None, markers))
    if any(place in table for place in _PLACES):
        return f"{name}{extra} @ {_place(table, folder)}" + (f" ; {marker}" if marker else "")
    range_ = ",".join(_clauses(table.get("version", "*")))
    return f"{name}{extra}{range_}" + (f" ; {marker}" if marker else "")


def _place(table: dict[str, Any], folder: str) -> str:
    """Return where a package is that is not found by its name."""
    subdirectory = f"#subdirectory={table['subdirectory']}" if "subdirectory" in table else ""
    if "git" in table:
        ssh = _SSH_ADDRESS.match(table["git"])
        address = f"ssh://{ssh['host']}/{ssh['path']}" if ssh else table["git"]
        reference = next((table[key] for key in ("rev", "tag", "branch") if key in table), "")
        return f"git+{address}" + (f"@{reference}" if reference else "") + subdirectory
    if "url" in table:
        return f"{table['url']}{subdirectory}"
    path = os.path.normpath(os.path.join(folder, table.get("path") or table.get("file") or ""))
    return path if path.startswith((".", "/")) else f"./{path}"


def _clauses(text: str) -> list[str]:
    """Return the clauses of PEP 440 for a range; [] for any version."""
    clauses: list[str] = []
    position = 0
    text = " ".join(text.split())
    while position < len(text):
        match = _CLAUSE.match(text, position)
        if match is None or len(text) > MOST_RANGE:
            raise ValueError(f"the version {text[:100]!r}, which is not read (one range, as in '>=1.2,<3')")
        position = match.end()
        clauses += _clause(match["operator"], match["release"], match["rest"] or "")
    return clauses


def _clause(operator: str, release: Optional[str], rest: str) -> list[str]:
    if release is None:
        return []
    is_wildcard = rest == ".*"
    numbers = [int(number) for number in release.split(".")]
    if operator == "^":
        # The first number that is not zero stays.
        kept = next((index for index, number in enumerate(numbers[:3]) if number), min(len(numbers), 3) - 1)
    elif operator == "~":
        kept = min(len(numbers), 2) - 1
    else:
        operator = _OPERATORS.get(operator, operator)
        # A range has no local part (PEP 440).
        return [f"{operator}{release}{rest if operator in ('==', '!=', '===') else rest.partition('+')[0]}"]
    end = ".".join(map(str, [*numbers[:kept], numbers[kept] + 1]))
    return [f">={release}{'' if is_wildcard else rest.partition('+')[0]}", f"<{end}"]


def _python_marker(text: str) -> str:
    """Return the marker for the versions of Python that a dependency is for."""
    ranges = []
    for part in re.split(r"\|\|?", text):
        clauses = []
        for clause in _clauses(part):
            operator, version = re.match(r"([<>=!~]+)(.*)", clause).groups()  # type: ignore[union-attr]
            is_series = operator in ("==", "!=") and version.count(".") == 1 and "*" not in version
            clauses.append(f"python_{'' if is_series else 'full_'}version {operator} '{version}'")
        ranges.append(" and ".join(clauses))
    if not all(ranges):
        return ""
    return f"({' or '.join(ranges)})" if len(ranges) > 1 else ranges[0]
