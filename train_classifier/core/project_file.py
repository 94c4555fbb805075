"""What a pyproject.toml says of packages. Python reads TOML from 3.11 on; the worker runs with 3.9."""

import dataclasses
import json
import re
from collections.abc import Iterator

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


@dataclasses.dataclass(frozen=True)
class Project:
    """The part of a pyproject.toml that says which packages it needs."""

    dependencies: tuple[str, ...] = ()
    #: Names of settings below `tool.uv` that change what is installed.
    uv_settings: tuple[str, ...] = ()


def read(text: str) -> Project:
    """Return what a pyproject.toml asks for. Raises ValueError with a phrase for what cannot be read."""
    table: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    settings: dict[str, None] = {}
    for statement in _statements(text):
        if statement[0] == "[":
            table = path = _names(statement)
        else:
            end = statement.index("=") if "=" in statement else len(statement)
            path = (*table, *_names(statement[:end]))
            if path == ("project",):
                raise ValueError("`project` is not written as a table")
            if path == ("project", "dependencies"):
                dependencies = tuple(_list(statement[end + 1 :]))
        if path[:2] == ("tool", "uv") and path[2:] and path[2] in _UV_SETTINGS:
            settings[path[2]] = None
    return Project(dependencies, tuple(settings))


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
