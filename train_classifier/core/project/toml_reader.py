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


def read(text: str) -> dict[str, Any]:
    """Return the tables of a text. Raises ValueError with a phrase for what is not TOML."""
    document: dict[str, Any] = {}
    table = document
    for number, statement in _statements(text.replace("\r\n", "\n")):
        try:
            if statement[0] == "[":
                table = _table(document, statement)
            else:
                end = statement.index("=")
                value, used = _value(statement, end + 1, 0)
                if used != len(statement):
                    raise ValueError
                _set(table, _keys(statement[:end]), value)
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {number} is not TOML") from error
    return document


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line and tokens of each table's head and each `key = value`, without blanks and comments."""
    depth, began, number = 0, 1, 1
    statement: list[str] = []
    for match in _TOKEN.finditer(f"{text}\n"):
        token = match[0]
        if token in ("'", '"'):
            raise ValueError("a text in quotes does not end")
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
        raise ValueError("a bracket does not close")


def _table(document: dict[str, Any], head: list[str]) -> dict[str, Any]:
    """Return the table that `[head]` or `[[head]]` begins."""
    is_element = head[1] == "["
    keys = _keys(head[2:-2] if is_element else head[1:-1])
    if head[-1] != "]" or (is_element and head[-2] != "]"):
        raise ValueError
    *parents, last = keys
    parent = _below(document, parents)
    if not is_element:
        return _below(parent, [last])
    elements = parent.setdefault(last, [])
    if not isinstance(elements, list):
        raise ValueError
    elements.append({})
    element: dict[str, Any] = elements[-1]
    return element


def _below(table: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return the table at a dotted key, created where it is missing; of a list of tables, the last."""
    found: Any = table
    for key in keys:
        found = found.setdefault(key, {})
        found = found[-1] if isinstance(found, list) and found else found
        if not isinstance(found, dict):
            raise ValueError
    result: dict[str, Any] = found
    return result


def _set(table: dict[str, Any], keys: list[str], value: Any) -> None:
    *parents, last = keys
    parent = _below(table, parents)
    if last in parent:
        raise ValueError
    parent[last] = value


def _keys(tokens: list[str]) -> list[str]:
    """Return the parts of a dotted key."""
    if not tokens or len(tokens) > 2 * MOST_DEPTH or any(dot != "." for dot in tokens[1::2]):
        raise ValueError
    if len(tokens) % 2 == 0:
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
    if token == "[":
        return _list(tokens, start + 1, depth)
    if token == "{":
        return _inline_table(tokens, start + 1, depth)
    end = start
    while end < len(tokens) and tokens[end] not in ",]}":
        if tokens[end][0] in "\"'[{=":
            raise ValueError
        end += 1
    if end == start:
        raise ValueError
    return {"true": True, "false": False}.get(token) if end == start + 1 else None, end


def _list(tokens: list[str], position: int, depth: int) -> tuple[list[Any], int]:
    values = []
    while tokens[position] != "]":
        value, position = _value(tokens, position, depth + 1)
        values.append(value)
        if tokens[position] == ",":
            position += 1
        elif tokens[position] != "]":
            raise ValueError
    return values, position + 1


def _inline_table(tokens: list[str], position: int, depth: int) -> tuple[dict[str, Any], int]:
    table: dict[str, Any] = {}
    while tokens[position] != "}":
        end = position
        while tokens[end] != "=":
            end += 1
        value, after = _value(tokens, end + 1, depth + 1)
        _set(table, _keys(tokens[position:end]), value)
        position = after
        if tokens[position] == ",":
            position += 1
        elif tokens[position] != "}":
            raise ValueError
    return table, position + 1


def _text(token: str) -> str:
    """Return the text of a token in quotes. Raises ValueError for an escape that TOML has not."""
    quotes = 3 if token[:3] in ('"""', "'''") else 1
    inside = token[quotes:-quotes]
    if quotes == 3 and inside.startswith("\n"):
        inside = inside[1:]
    return inside if token[0] == "'" else _unescaped(inside)


def _unescaped(text: str) -> str:
    def replace(match: "re.Match[str]") -> str:
        code = match["code"]
        if code:
            return chr(int(code[1:], 16))
        return _LETTERS[match["letter"]] if match["letter"] else ""

    # What is no escape of TOML is no key of the table of letters.
    try:
        return _ESCAPE.sub(replace, text)
    except (KeyError, OverflowError) as error:
        raise ValueError from error
