"""Reads TOML. Python itself does from 3.11 on; the worker runs with 3.9.

Takes linear time for any text, which tomllib does not. Texts, truth values, lists and tables are read; all
other values (numbers, times) are None.
"""

import re
from collections.abc import Iterator
from typing import Any

# Each alternative takes linear time: a text that does not end is left as a quote, which is an error.
_TOKEN = re.compile(
    r"(?P<blank>[ \t]+|\#[^\n]*)"
    r"|(?P<long>\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5})"
    r"|(?P<text>(?!\"{3}|'{3})(?:\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'))"
    r"|[A-Za-z0-9_-]+|.",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPE = re.compile(
    r"\\(?:(?P<code>u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|x[0-9A-Fa-f]{2})|[ \t]*\n\s*|(?P<letter>.))", re.DOTALL
)
_LETTERS = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}
#: Most parts of a dotted key, and most lists and tables within each other.
MOST_DEPTH = 30


class NotToml(ValueError):
    """The text is not TOML; the error says where, as a phrase."""


def read(text: str) -> dict[str, Any]:
    """Return the tables of a text. Raises NotToml."""
    document: dict[str, Any] = {}
    table = document
    for number, statement in _statements(text.replace("\r\n", "\n")):
        try:
            if statement[0] == "[":
                table = _table(document, statement)
            elif _set_key(table, statement, 0, 0) != len(statement):
                raise ValueError
        except (ValueError, IndexError) as error:
            raise NotToml(f"line {number} is not TOML") from error
    return document


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line and tokens of each table's head and each `key = value`, without blanks and comments."""
    depth, began, number = 0, 1, 1
    statement: list[str] = []
    for match in _TOKEN.finditer(f"{text}\n"):
        token = match[0]
        if token in ("'", '"'):
            raise NotToml("a text in quotes does not end")
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        if token != "\n":
            if not match["blank"]:
                began = began if statement else number
                statement.append(token)
        elif depth <= 0 and statement:
            yield began, statement
            statement = []
        number += token.count("\n")
    if statement:
        raise NotToml("a bracket does not close")


def _table(document: dict[str, Any], head: list[str]) -> dict[str, Any]:
    """Return the table that `[head]` or `[[head]]` begins."""
    is_element = head[1] == "["
    keys = _keys(head[2:-2] if is_element else head[1:-1])
    if head[-1] != "]" or (is_element and head[-2] != "]"):
        raise ValueError
    if not is_element:
        return _below(document, keys)
    elements = _below(document, keys[:-1]).setdefault(keys[-1], [])
    if not isinstance(elements, list):
        raise ValueError
    elements.append({})
    return _below(document, keys)


def _below(table: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return the table at a dotted key, created where it is missing; of a list of tables, the last."""
    value: Any = table
    for key in keys:
        value = value.setdefault(key, {})
        value = value[-1] if isinstance(value, list) and value else value
        if not isinstance(value, dict):
            raise ValueError
    result: dict[str, Any] = value
    return result


def _set_key(table: dict[str, Any], tokens: list[str], start: int, depth: int) -> int:
    """Set the key of the `key = value` that begins at `start`; return where the next token is."""
    equals = tokens.index("=", start)
    *parents, last = _keys(tokens[start:equals])
    value, end = _value(tokens, equals + 1, depth)
    parent = _below(table, parents)
    if last in parent:
        raise ValueError
    parent[last] = value
    return end


def _keys(tokens: list[str]) -> list[str]:
    """Return the parts of a dotted key."""
    if len(tokens) % 2 == 0 or len(tokens) > 2 * MOST_DEPTH or set(tokens[1::2]) - {"."}:
        raise ValueError
    return [_key(token) for token in tokens[::2]]


def _key(token: str) -> str:
    if token[0] in "\"'" and token[:3] not in ('"""', "'''"):
        return _text(token)
    if not _BARE_KEY.match(token):
        raise ValueError
    return token


def _value(tokens: list[str], start: int, depth: int) -> tuple[Any, int]:
    """Return the value that begins at `start`, and where the next token is."""
    token = tokens[start]
    if depth > MOST_DEPTH:
        raise ValueError
    if token[0] in "\"'":
        return _text(token), start + 1
    if token in ("[", "{"):
        return _list_or_table(tokens, start, depth + 1)
    end = start
    while end < len(tokens) and tokens[end] not in ",]}":
        if tokens[end][0] in "\"'[{=":
            raise ValueError
        end += 1
    if end == start:
        raise ValueError
    return {"true": True, "false": False}.get(token) if end == start + 1 else None, end


def _list_or_table(tokens: list[str], start: int, depth: int) -> tuple[Any, int]:
    values: list[Any] = []
    table: dict[str, Any] = {}
    is_list, position = tokens[start] == "[", start + 1
    close = "]" if is_list else "}"
    while tokens[position] != close:
        if is_list:
            value, position = _value(tokens, position, depth)
            values.append(value)
        else:
            position = _set_key(table, tokens, position, depth)
        if tokens[position] == ",":
            position += 1
        elif tokens[position] != close:
            raise ValueError
    return values if is_list else table, position + 1


def _text(token: str) -> str:
    """Return the text of a token in quotes. Raises ValueError for an escape that TOML has not."""
    is_long = token[:3] in ('"""', "'''")
    inside = token[3:-3].removeprefix("\n") if is_long else token[1:-1]

    def replace(match: "re.Match[str]") -> str:
        code = match["code"]
        if code:
            return chr(int(code[1:], 16))
        return _LETTERS[match["letter"]] if match["letter"] else ""

    # What is no escape of TOML is no key of the table of letters.
    try:
        return inside if token[0] == "'" else _ESCAPE.sub(replace, inside)
    except (KeyError, OverflowError) as error:
        raise ValueError from error
