"""Files of environment variables (`--env-file`): KEY=VALUE a line, quotes, comments; nothing is expanded."""

import re
from collections.abc import Mapping

from train_classifier.core.options import show_option
from train_classifier.core.text import quoted
from train_classifier.request import flags

MOST_BYTES = 4 << 20
#: Most problems that are reported for one file.
MOST_PROBLEMS = 20
_ASSIGNMENT = re.compile(r"(?:export[ \t]+)?([^\s=#'\"]+)[ \t]*(=?)[ \t]*")
_SINGLE = re.compile(r"'([^']*)'", re.DOTALL)
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$", "\n": ""}


def parse(content: bytes, name: str, environ: Mapping[str, str] | None) -> tuple[dict[str, str], list[str]]:
    """Return the variables of a file and its problems; a KEY alone gets its value from `environ`.

    Without `environ`, for an untrusted file, a KEY alone is a problem. 'single quotes' are literal,
    "double quotes" support \\n, \\t, \\" and \\\\; both may span lines. No problem contains a value.
    """
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    variables: dict[str, str] = {}
    problems: list[str] = []
    position = counted = 0
    line = 1
    while position < len(text):
        if len(problems) > MOST_PROBLEMS:
            problems[MOST_PROBLEMS:] = [f"{name}: there are more problems; mend these first"]
            break
        line += text.count("\n", counted, position)
        counted = position
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        start = position + len(text[position:end]) - len(text[position:end].lstrip(" \t"))
        position = end + 1
        if start == end or text[start] == "#":
            continue
        match = _ASSIGNMENT.match(text, start, end)
        if not match:
            problems.append(f"{name}: line {line}: wanted KEY=VALUE")
            continue
        key = match[1]
        try:
            flags.variable(key)
            if not match[2]:
                if match.end() != end and not text[match.end() : end].lstrip().startswith("#"):
                    raise ValueError(f"wanted {key}=VALUE")
                if environ is None:
                    raise ValueError(
                        f"{key} has no value, and a file of the repository takes none of your variables; "
                        f"write {key}=VALUE there, or give {show_option('environment')} {key}"
                    )
                if key not in environ:
                    raise ValueError(f"{key} has no value, and none in the environment of the caller")
                value = environ[key]
            else:
                value, value_end = _value(text, match.end(), end)
                end = text.find("\n", value_end)
                end = len(text) if end < 0 else end
                position = end + 1
                if text[value_end:end].strip() and not text[value_end:end].lstrip().startswith("#"):
                    raise ValueError(f"text follows the closing quote of {key}")
            variables[key] = flags.variable_value(key, value)
        except ValueError as error:
            problems.append(f"{name}: line {line}: {error}")
    return variables, problems


def _value(text: str, start: int, end: int) -> tuple[str, int]:
    """Return the value that starts at `start`, and its end."""
    if text[start : start + 1] in ("'", '"'):
        quote = text[start]
        match = (_SINGLE if quote == "'" else _DOUBLE).match(text, start)
        if not match:
            raise ValueError(f"a {quoted(quote)} is never closed")
        if quote == "'":
            return match[1], match.end()
        return re.sub(
            r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[0]), match[1], flags=re.DOTALL
        ), match.end()
    # A match starts only at the first of several blanks; otherwise a long run of them takes quadratic time.
    return re.sub(r"(?:^|(?<![ \t])[ \t]+)#.*", "", text[start:end]).rstrip(" \t"), end
