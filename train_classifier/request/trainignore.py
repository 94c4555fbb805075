"""`.trainignore`: the files that a push leaves out, and those that `!` includes again; gitignore's syntax.

The file is untrusted, so no pattern may cost more than its length times the path's. Each becomes a regular
expression without backtracking between its wildcards: `*` and `**` match as little as possible, and this is
final, because a later wildcard can match the rest itself.
"""

import dataclasses
import os
import re
from pathlib import Path

from train_classifier.core import regular_file
from train_classifier.core.text import printable

FILE = ".trainignore"
MOST_BYTES = 1 << 20
#: Most bytes of all patterns with wildcards: each of them is tried on every path.
MOST_WILDCARDS = 64 << 10
_SPECIAL = re.compile(rb"[*?\[\\]")
_CLASSES = {
    b"alnum": rb"0-9A-Za-z", b"alpha": rb"A-Za-z", b"blank": rb" \t", b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9", b"graph": rb"!-~", b"lower": rb"a-z", b"print": rb" -~",
    b"punct": rb"!-/:-@\[-`{-~", b"space": rb" \t\n\r", b"upper": rb"A-Z", b"xdigit": rb"0-9A-Fa-f",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Rule:
    number: int
    #: Includes again what an earlier line leaves out.
    negated: bool
    folders_only: bool
    #: Matches the last part of a path, in any folder.
    name_only: bool
    expression: "re.Pattern[bytes] | None"


class TrainIgnore:
    """The patterns of the file at the repository's top; false when there are none."""

    def __init__(self, repository: Path) -> None:
        self.problems: list[str] = []
        #: Rules without a wildcard, by the name or the path that they match.
        self._literal: dict[tuple[bool, bytes], list[_Rule]] = {}
        self._wildcards: list[_Rule] = []
        #: The parts of the whole paths that are included again; None means any number of parts.
        self._negations: list[list[re.Pattern[bytes] | None]] = []
        self._total = 0
        size = 0
        for number, line in enumerate(self._read(repository / FILE), 1):
            size += self._add(number, line)
        if size > MOST_WILDCARDS:
            self.problems.append(
                f"{FILE} has over {MOST_WILDCARDS >> 10} KiB of patterns with wildcards: name folders instead"
            )
            self._wildcards.clear()

    def __bool__(self) -> bool:
        return self._total > 0

    def _read(self, path: Path) -> list[bytes]:
        if not os.path.lexists(path):
            return []
        try:
            content = regular_file.read(path, MOST_BYTES, within=os.path.realpath(path.parent))
        except OSError as error:
            self.problems.append(f"{FILE} cannot be read: {error.strerror}")
            return []
        except ValueError as error:
            self.problems.append(f"{FILE} {error}")
            return []
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return [line.removesuffix(b"\r") for line in lines]

    def _add(self, number: int, line: bytes) -> int:
        """Add the rule of a line; return the bytes that count towards the limit."""
        if line.startswith(b"#"):
            return 0
        pattern = _without_trailing_spaces(line)
        if not pattern:
            return 0
        try:
            return self._add_rule(number, pattern)
        except ValueError:
            quotation = printable(pattern[:100]) + ("…" if len(pattern) > 100 else "")
            self.problems.append(f"{FILE}: line {number}: '{quotation}' is no pattern of gitignore's syntax")
            return 0

    def _add_rule(self, number: int, pattern: bytes) -> int:
        negated = pattern.startswith(b"!")
        pattern = pattern[negated:]
        folders_only = pattern.endswith(b"/")
        pattern = pattern.removesuffix(b"/")
        if not pattern or b"\0" in pattern:
            raise ValueError("it names nothing")
        name_only = b"/" not in pattern
        pattern = pattern.removeprefix(b"/")
        self._total += 1
        wildcard = _SPECIAL.search(pattern)
        rule = _Rule(
            number, negated, folders_only, name_only,
            _compile(pattern, wildcard.start(), name_only) if wildcard else None,
        )  # fmt: skip
        if wildcard:
            self._wildcards.append(rule)
        else:
            self._literal.setdefault((name_only, pattern), []).append(rule)
        if negated and not name_only:
            self._add_negation(pattern)
        return len(pattern) if wildcard else 0

    def _add_negation(self, pattern: bytes) -> None:
        parts = pattern.split(b"/")
        while parts and parts[0] == b"**":
            del parts[0]
        if len(parts) > 1:
            self._negations.append(
                [None if set(part) == {42} and len(part) > 1 else _compile(part, 0, True) for part in parts]
            )

    def decide(self, path: bytes, folder: bool) -> bool | None:
        """Return True for left out, False for included again by `!`, None for not named.

        A decision for a folder also applies to its content, but the caller must apply it.
        """
        name = path.rpartition(b"/")[2]
        rules = [*self._literal.get((True, name), ()), *self._literal.get((False, path), ())]
        best = max((rule for rule in rules if folder or not rule.folders_only), key=_number, default=None)
        for rule in reversed(self._wildcards):
            if best is not None and rule.number < best.number:
                break
            if rule.folders_only and not folder:
                continue
            assert rule.expression is not None
            if rule.expression.match(name if rule.name_only else path):
                best = rule
                break
        return None if best is None else not best.negated

    def reaches_into(self, folder: bytes) -> bool:
        """Return whether a line such as `!venv/keep.txt` includes something below a left-out folder."""
        parts = folder.split(b"/")
        return any(_may_match_below(pattern, parts) for pattern in self._negations)


def _number(rule: _Rule) -> int:
    return rule.number


def _may_match_below(pattern: list["re.Pattern[bytes] | None"], parts: list[bytes]) -> bool:
    for expression, part in zip(pattern, parts, strict=False):
        if expression is None:
            return True
        if not expression.match(part):
            return False
    return len(pattern) > len(parts)


def _without_trailing_spaces(line: bytes) -> bytes:
    end = len(line)
    while end and line[end - 1 : end] == b" ":
        end -= 1
    escapes = len(line[:end]) - len(line[:end].rstrip(b"\\"))
    # An odd number of backslashes: the last one keeps the first space.
    return line[: end + 1] if escapes % 2 else line[:end]


def _compile(pattern: bytes, literal: int, name_only: bool) -> "re.Pattern[bytes]":
    """Return a pattern as a regular expression for the whole of a path.

    `literal` bytes are before the first wildcard: git compares them separately, so the rest is matched as
    if it were at the beginning of a path. Raises ValueError for a pattern that no path can match.
    """
    # Each unit matches one byte of a path; the wildcards are between the lists.
    units: list[list[bytes]] = [[b""]]
    at = 0
    while at < len(pattern):
        letter = pattern[at : at + 1]
        if letter == b"*":
            end = at
            while pattern[end : end + 1] == b"*":
                end += 1
            before = at <= literal or pattern[at - 1 : at] == b"/"
            crosses = not name_only and end - at > 1 and before
            if crosses and pattern[end : end + 1] == b"/":
                units.append([b""])
                end += 1
            elif crosses and end == len(pattern):
                units[-1][-1] += rb".*+"
            else:
                units[-1].append(b"")
            at = end
            continue
        if letter == b"?":
            item, at = b"[^/]", at + 1
        elif letter == b"[":
            item, at = _bracket(pattern, at)
        else:
            at += letter == b"\\"
            if at == len(pattern):
                raise ValueError("a backslash ends it")
            item, at = re.escape(pattern[at : at + 1]), at + 1
        units[-1][-1] += item
    expression = b""
    for number, (first, *chunks) in enumerate(units):
        last = number == len(units) - 1
        text = first
        for index, chunk in enumerate(chunks):
            final = last and index == len(chunks) - 1
            text += rb"[^/]*?" + chunk + rb"\Z" if final else rb"(?>[^/]*?" + chunk + rb")"
        if last and not chunks:
            text += rb"\Z"
        if number == 0:
            expression += text
        else:
            expression += (
                (rb"(?:[^/]*+/)*?" if last else rb"(?>(?:[^/]*+/)*?") + text + (b"" if last else rb")")
            )
    return re.compile(expression, re.DOTALL)


def _bracket(pattern: bytes, start: int) -> tuple[bytes, int]:
    """Return the expression of a bracket, and where it ends. Raises ValueError for one that never matches."""
    at = start + 1
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    first, items, before = at, b"", b""
    while True:
        letter = pattern[at : at + 1]
        if not letter:
            raise ValueError("a bracket is never closed")
        if letter == b"]" and at > first:
            break
        if letter == b"-" and before and pattern[at + 1 : at + 2] not in (b"", b"]"):
            at += 1 + (pattern[at + 1 : at + 2] == b"\\")
            letter = pattern[at : at + 1]
            if letter < before:
                raise ValueError("a range ends before it begins")
            items += b"-" + _byte(letter)
            before = b""
        elif (
            letter == b"[" and pattern[at + 1 : at + 2] == b":" and (close := pattern.find(b"]", at + 2)) > 0
        ):
            name = pattern[at + 2 : close - 1]
            if close > at + 2 and pattern[close - 1 : close] == b":":
                if name not in _CLASSES:
                    raise ValueError("no such class of letters")
                items += _CLASSES[name]
                at, before = close, b""
            else:
                items, before = items + _byte(letter), letter
        else:
            at += letter == b"\\"
            letter = pattern[at : at + 1]
            if not letter:
                raise ValueError("a bracket is never closed")
            items, before = items + _byte(letter), letter
        at += 1
    return (rb"(?!/)[^" if negated else rb"(?!/)[") + items + b"]", at + 1


def _byte(letter: bytes) -> bytes:
    return b"\\x%02x" % letter[0]
