"""What `[tool.poetry]` says of a package and of what it requires, in the form of `[project]` (PEP 621).

Poetry's own words: https://python-poetry.org/docs/dependency-specification/
"""

import functools
import os
import re
from collections.abc import Iterator
from typing import Any, Optional

from train_classifier.core.project import package_index
from train_classifier.core.project.package_index import PackageIndex
from train_classifier.core.project.tables import normal_name, table_at
from train_classifier.core.text import hide_logins

_CLAUSE = re.compile(
    r"\s*(?P<operator>\^|~=|~|==?=?|!=|<>|>=|<=|>|<|)\s*v?"
    r"(?:(?P<release>[0-9]{1,9}(?:\.[0-9]{1,9}){0,5})"
    r"(?P<rest>(?:\.[*x]){1,3}|(?:[-._]?[a-z]{1,7}[-._]?[0-9]{0,9}){0,3}(?:\+[a-z0-9.]{1,40})?)|\*)\s*(?:,|(?=\s)|\Z)",
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
    dependencies = table_at(poetry, "dependencies")
    required = {
        name: [entry for entry in _entries(value) if not _is_optional(entry)]
        for name, value in dependencies.items()
        if name.lower() != "python"
    }
    _check_sources(poetry, [entry for entries in required.values() for entry in entries])
    lines = [line for name, entries in required.items() for line in _lines(name, entries, folder)]
    extras = _extras(poetry, dependencies, folder)
    table = {"dependencies": lines, "optional-dependencies": extras, "version": poetry.get("version", "")}
    # Without package mode it is no package.
    if poetry.get("package-mode") is not False:
        table["name"] = poetry.get("name", "")
    return {**table, "scripts": table_at(poetry, "scripts"), "entry-points": table_at(poetry, "plugins")}


def _check_sources(poetry: dict[str, Any], entries: list[Any]) -> None:
    """Raise ValueError with a phrase for an index that is not followed, and for one that is not there."""
    for source in _sources(poetry):
        if source.get("priority") != "explicit":
            raise ValueError(
                f"tool.poetry.source {source.get('name')!r} is not followed, unless its priority is "
                f"'explicit' (or as a line of requirements.txt: --extra-index-url {source.get('url')})"
            )
    _check_names(_addresses(poetry), entries)


def _check_names(addresses: dict[str, object], entries: list[Any]) -> None:
    """Raise ValueError with a phrase if an entry names an index that is not there."""
    for name in filter(None, map(_source_name, entries)):
        if name not in addresses:
            raise ValueError(f"a dependency names the source {name!r}, which tool.poetry.source lacks")


def indexes(poetry: dict[str, Any]) -> list[PackageIndex]:
    """Return the index of each package that has one of its own. Raises ValueError with a phrase."""
    addresses = _addresses(poetry)
    result = []
    for name, value in table_at(poetry, "dependencies").items():
        where = f"tool.poetry.dependencies.{name[:100]}"
        for entry in _entries(value):
            source = _source_name(entry)
            if source in addresses:
                index = f"tool.poetry.source {source[:100]!r}"
                address = package_index.checked_address(addresses[source], index)
                try:
                    marker = _marker(entry)
                except (ValueError, TypeError):
                    # It is in no list of requirements either.
                    continue
                result.append(package_index.for_package(name, address, marker, where))
    return result


def _addresses(poetry: dict[str, Any]) -> dict[str, object]:
    """Return the addresses of the project's own indexes by name."""
    return {str(source.get("name", "")).lower(): source.get("url") for source in _sources(poetry)}


def _source_name(entry: Any) -> str:
    """Return the index that a dependency names; "" for the usual one."""
    name = entry.get("source") if isinstance(entry, dict) else None
    return "" if not isinstance(name, str) or name.lower() == "pypi" else name.lower()


def check_places(poetry: dict[str, Any], dependencies: list[str]) -> None:
    """Raise ValueError with a phrase if Poetry takes dependencies of `[project]` from places of its own."""
    required = {normal_name(re.split(r"[^\w.-]", text.strip(), maxsplit=1)[0]) for text in dependencies}
    entries = {
        name: [entry for entry in _entries(value) if isinstance(entry, dict)]
        for name, value in table_at(poetry, "dependencies").items()
        if normal_name(name) in required
    }
    _check_sources(poetry, [entry for each in entries.values() for entry in each])
    for name, each in entries.items():
        if any(set(_PLACES) & set(entry) for entry in each):
            raise ValueError(
                f"tool.poetry.dependencies says where {name!r} is from, which is not followed beside project"
            )


def names_with_prereleases(poetry: dict[str, Any]) -> list[str]:
    """Return the dependencies of which Poetry would take a pre-release before an older release."""
    return [
        name
        for name, value in table_at(poetry, "dependencies").items()
        if re.fullmatch(r"[\w.-]+", name, re.ASCII)
        and any(isinstance(each, dict) and each.get("allow-prereleases") is True for each in _entries(value))
    ]


def _extras(poetry: dict[str, Any], dependencies: dict[str, Any], folder: str) -> dict[str, list[str]]:
    """Return the requirements of each extra that can be read."""
    values = {normal_name(name): (name, _entries(value)) for name, value in dependencies.items()}
    addresses = _addresses(poetry)

    @functools.lru_cache(None)
    def lines_of(name: str) -> Optional[list[str]]:
        try:
            _check_names(addresses, values[name][1])
            return _lines(*values[name], folder)
        except (ValueError, KeyError):
            return None

    result: dict[str, list[str]] = {}
    count = 0
    for extra, names in table_at(poetry, "extras").items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            continue
        lists = [lines_of(name) for name in dict.fromkeys(map(normal_name, names))]
        if None in lists:
            continue
        result[extra] = [line for lines in lists for line in lines or ()]
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


def _sources(poetry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the indexes that a project names, without the usual one."""
    sources = poetry.get("source")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and str(source.get("name", "")).lower() != "pypi":
            yield source


def _entries(value: Any) -> list[Any]:
    """Return the forms of a dependency: one, or several with a marker each."""
    return value if isinstance(value, list) and value else [value]


def _is_optional(value: Any) -> bool:
    return isinstance(value, dict) and value.get("optional") is True


def _lines(name: str, entries: list[Any], folder: str) -> list[str]:
    """Return the requirement of each form of a dependency."""
    try:
        return [_line(name, each, folder) for each in entries]
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
    extra = f"[{','.join(extras)}]" if extras else ""
    marker = _marker(table)
    if set(_PLACES) & set(table):
        return f"{name}{extra} @ {place(table, folder)}" + (f" ; {marker}" if marker else "")
    range_ = ",".join(_clauses(table.get("version", "*")))
    return f"{name}{extra}{range_}" + (f" ; {marker}" if marker else "")


def _marker(table: dict[str, Any]) -> str:
    """Return the marker of a form of a dependency; "" without one."""
    markers = [
        f"({table['markers']})" if table.get("markers") else "",
        _python_marker(table["python"]) if "python" in table else "",
        f"sys_platform == '{table['platform']}'" if "platform" in table else "",
    ]
    return " and ".join(filter(None, markers))


def place(table: dict[str, Any], folder: str) -> str:
    """Return where a package is that is not found by its name."""
    subdirectory = f"#subdirectory={table['subdirectory']}" if "subdirectory" in table else ""
    if "git" in table:
        address = table["git"][4:] if table["git"].startswith("git+") else table["git"]
        ssh = _SSH_ADDRESS.match(address)
        address = f"ssh://{ssh['host']}/{ssh['path']}" if ssh else address
        reference = next((table[key] for key in ("rev", "tag", "branch") if key in table), "")
        return f"git+{address}" + (f"@{reference}" if reference else "") + subdirectory
    if "url" in table:
        return f"{table['url']}{subdirectory.replace('#', '&') if '#' in table['url'] else subdirectory}"
    path = os.path.normpath(os.path.join(folder, table.get("path") or table.get("file") or ""))
    return path if path.startswith((".", "/")) else f"./{path}"


def _clauses(text: str) -> list[str]:
    """Return the clauses of PEP 440 for a range; [] for any version."""
    clauses: list[str] = []
    position = 0
    text = " ".join(text.split())
    while position < len(text):
        match = _CLAUSE.match(text.lower(), position) if len(text) <= MOST_RANGE else None
        clause = _clause(match["operator"], match["release"], match["rest"] or "") if match else None
        if match is None or clause is None:
            shown = hide_logins(text)[:100]
            raise ValueError(f"the version {shown!r}, which is not read (one range, as in '>=1.2,<3')")
        position = match.end()
        clauses += clause
    return clauses


def _clause(operator: str, release: Optional[str], rest: str) -> Optional[list[str]]:
    """Return the clauses of PEP 440 for one of Poetry; None for one without a plain meaning."""
    if release is None:
        return []
    is_wildcard = rest.endswith((".*", ".x"))
    numbers = [int(number) for number in release.split(".")]
    if operator == "^":
        # The first number that is not zero stays.
        kept = next((index for index, number in enumerate(numbers[:3]) if number), min(len(numbers), 3) - 1)
    elif operator == "~":
        kept = min(len(numbers), 2) - 1
    elif is_wildcard and operator in (">=", "<"):
        return [f"{operator}{release}"]
    elif (is_wildcard and operator in (">", "<=", "~=", "===")) or (operator == "~=" and len(numbers) < 2):
        return None
    else:
        operator = _OPERATORS.get(operator, operator)
        # A range has no local part (PEP 440).
        rest = ".*" if is_wildcard else rest
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
