"""Words and numbers for people: sizes, times, tables."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Optional, Union

#: A phase that takes less would read 0.0 s and is not listed.
SHORTEST_S = 0.05
#: A column of a table is not made narrower than this.
LEAST_COLUMN = 6
#: Control characters that must not reach a terminal in untrusted text, those of bidirectional text too.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: The same, but for the colours that we set.
_CONTROL_BUT_COLOURS = re.compile(
    r"\x1b(?!\[[0-9;]{1,8}m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
#: Terminal escape sequences: colours and cursor movements, window titles and links, short ones.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
#: A login in the address of a server: all up to the last @ before the path, or a password that has a slash;
#: and USER:PASSWORD@ in an address without its scheme, which no digest of an image follows.
_LOGINS = (
    re.compile(r"(?P<scheme>(?:ssh)?://)(?P<login>[^/\s]*|[^/\s:@\[]{0,99}:(?![0-9]{1,5}/)\S{0,299})@"),
    re.compile(
        r"(?<![^\s/'\"`=(<,+])(?P<scheme>)(?P<login>[^\s/:@'\"`]{1,99}:(?!//)[^\s/]{1,499})@(?!sha256:)"
    ),
)
#: A value in the query of an address: tokens and signatures have many names. Behind ; and # only some are.
_QUERY_VALUE = re.compile(
    r"(?:(?<=[?&])|(?<=&amp;))(?!(?:egg|subdirectory|amp;\w+)=)(?P<name>[\w.%~:\[\]-]{1,99}=)"
    r"(?!\$\{)(?:'[^'\s]*'|\"[^\"\s]*\"|[^\s&#'\"`]+)"
    r"|(?<=[;#])(?P<secret>[\w.-]{0,40}(?:token|secret|passw|auth|api_?key|signature)[\w.-]{0,40}=)"
    r"(?!=)[^\s&#'\"`/]+",
    re.IGNORECASE,
)
#: An address, up to what may end it in a sentence, and a query that is a value without a name.
_ADDRESS = re.compile(
    r"(?<=://)(?P<server>[^\s/?#'\"`]{0,999})(?P<path>[^\s?#'\"`]{0,4000})"
    r"(?P<query>\?[^\s=&#'\"`]{8,}(?![^\s#'\"`]))?"
)
#: A part of a path that may be a token: no hash of a commit or a file, and with letters and digits in a row.
_PATH_TOKEN = re.compile(
    r"(?<=/)(?!(?:[0-9a-f]{40}|[0-9a-f]{60}|[0-9a-f]{64})(?:/|\Z))[\w~=-]{16,500}(?=/|\Z)", re.ASCII
)
_RANDOM = re.compile(r"(?=(?:[A-Za-z]{0,13}[0-9]){2})(?=[0-9]{0,13}[A-Za-z])[A-Za-z0-9]{14}")
#: What is a secret wherever it stands: tokens of well-known services, headers, logins of escaped addresses.
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?P<kind>gh[oprsu]_|github_pat_|gl[a-z]{2,6}-|hf_|npm_|sk-|xox[a-z]-|pypi-|eyJ)"
    r"(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{18,}(?:\.[A-Za-z0-9_-]{10,}){0,2}"
    r"|(?<=\b[Bb]asic )(?=[A-Za-z+/]*[0-9=])[A-Za-z0-9+/=]{8,}"
    r"|(?<=\b[Bb]earer )(?=[A-Za-z._~+/-]*[0-9=])[A-Za-z0-9._~+/=-]{8,}"
    r"|(?P<header>(?i:\b(?:authorization|[a-z]{1,20}-token|x-(?:[a-z]{1,20}-){0,3}(?:key|api)))['\"]?: {0,3}"
    r"['\"]?(?i:token |basic |bearer )?)(?=[^\s'\"]{0,500}[0-9=])[^\s'\"]{8,}"
    r"|(?<=%3A%2F%2F)[^\s/@]{1,500}?(?=%40)|(?<=%3a%2f%2f)[^\s/@]{1,500}?(?=%40)"
)


def number(value: object) -> str:
    """Return a metric as people read it: whole numbers whole, others to six digits."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.6g}"
    return str(int(value)) if isinstance(value, float) else short(value, 28)


def short(text: object, most: int) -> str:
    """Return text of at most that many characters."""
    words = str(text)
    return words if len(words) <= most else words[: most - 1] + "…"


def nearest(word: str, words: Iterable[str]) -> Optional[str]:
    """Return the word that a misspelt one may mean: the shortest that begins like it, else a similar one."""
    # Imported only here: the worker, which starts often, does not need it.
    import difflib

    known = list(words)
    longer = [each for each in known if len(word) > 2 and each.startswith(word)]
    similar = sorted(longer, key=len) or difflib.get_close_matches(word, known, n=1)
    return similar[0] if similar else None


def without_escapes(text: str) -> str:
    """Return text without terminal escape sequences."""
    return _ESCAPES.sub("", text)


def hide_logins(text: str) -> str:
    """Return text with *** for the logins in its addresses, also in their queries.

    A user of ssh and names of variables stay.
    """

    def hide(match: "re.Match[str]") -> str:
        login = match["login"]
        is_user = match["scheme"].startswith("ssh") and ":" not in login
        # Our own hints write … for a part of an address.
        is_variables = login == "…" or re.fullmatch(r"(?:\$\{\w{1,100}\}:?){1,2}", login)
        return match[0] if is_user or is_variables else f"{match['scheme']}***@"

    if "@" in text:
        for pattern in _LOGINS:
            text = pattern.sub(hide, text)
    text = _QUERY_VALUE.sub(lambda match: f"{match['name'] or match['secret']}***", text)
    if "://" in text:
        text = _ADDRESS.sub(_without_tokens, text)
    return _TOKENS.sub(lambda match: f"{match['kind'] or match['header'] or ''}***", text)


def _without_tokens(address: "re.Match[str]") -> str:
    """Return an address without what may be a token in its path, or a query that is only a value."""
    server, escaped, rest = address["server"].rpartition("%40")

    def hide(match: "re.Match[str]") -> str:
        return "***" if _RANDOM.search(match[0]) else match[0]

    path = _PATH_TOKEN.sub(hide, address["path"])
    query = address["query"] and "?***"
    return f"{'***' if escaped else server}{escaped}{rest}{path}{query or ''}"


def clean(text: object) -> str:
    """Return text without control characters; newlines and tabs stay."""
    return _CONTROL.sub("�", str(text))


def clean_coloured(text: str) -> str:
    """Return text without control characters; colours, newlines and tabs stay."""
    return _CONTROL_BUT_COLOURS.sub("�", text)


def _cell(value: object) -> str:
    """Return a cell of a table: one line, whatever a name in it holds."""
    return "" if value is None else clean(value).replace("\n", " ").replace("\t", " ")


def table(
    rows: Sequence[Sequence[object]],
    head: Optional[Sequence[str]] = None,
    right: Sequence[int] = (),
    width: Optional[int] = None,
    shortened_first: Optional[int] = None,
) -> str:
    """Return rows as aligned columns; those numbered in `right` are flush right.

    Where the lines would be longer than `width`, the widest columns after the first are shortened, the one
    of the number `shortened_first` before all others.
    """
    every = [list(map(_cell, row)) for row in ([head] if head else []) + list(rows)]
    if not every:
        return ""
    widths = [max(len(row[column]) for row in every) for column in range(len(every[0]))]
    if width is not None and shortened_first is not None:
        room = widths[shortened_first] + width - table_width(widths)
        widths[shortened_first] = min(max(room, LEAST_COLUMN), widths[shortened_first])
    while width is not None and table_width(widths) > width and max(widths[1:], default=0) > LEAST_COLUMN:
        widths[widths.index(max(widths[1:]), 1)] -= 1
    lines = []
    for row in every:
        parts = [
            cell.rjust(size) if column in right else cell.ljust(size)
            for column, (cell, size) in enumerate(
                (short(cell, size), size) for cell, size in zip(row, widths)
            )
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def table_width(widths: Sequence[int]) -> int:
    """Return the columns of a table whose cells have these widths."""
    return sum(widths) + 2 * (len(widths) - 1)


def hanging(start: str, words: object, width: Optional[int]) -> str:
    """Return words behind `start`, continued below themselves where a line would be longer than `width`."""
    if width is None:
        return f"{start}{clean(words)}"
    return textwrap.fill(
        clean(words),
        max(width, len(start) + 30),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def printable(text: Union[str, bytes]) -> str:
    """Return text that is safe on a terminal: control characters, bidi marks and broken UTF-8 as escapes."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def quoted(value: object) -> str:
    """Return a value for a sentence, in quotes when it is text, shortened when it is long."""
    try:
        # Only the beginning of a long text is needed.
        text = hide_logins(value[:2000])[:200] if isinstance(value, str) else str(value)
        quotation = f"'{printable(text)}'" if isinstance(value, str) else printable(text)
    except (ValueError, RecursionError):
        # Python cannot print an integer of more than 4,300 digits, or a value that is nested too deep.
        return "a value too long to show"
    return quotation if len(quotation) <= 120 else f"{quotation[:117]}..."


def show_bytes(count: float) -> str:
    """Return a count of bytes for people, in binary units."""
    if count == 1:
        return "1 byte"
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_seconds(seconds: float) -> str:
    """Return a duration for people: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if not 0 <= seconds < 1e12:
        return "an unknown time"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"
