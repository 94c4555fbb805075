"""Settings files, a repository's and the caller's own: keys, and problems as sentences."""

import dataclasses
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from train_classifier.ansible_bridge.inventory import PLAIN_HOST
from train_classifier.core import job, options, regular_file
from train_classifier.core.errors import BadInput
from train_classifier.core.options import SETTINGS, Checkout, Kind, Option
from train_classifier.core.options import SETTINGS_FILE as FILE
from train_classifier.core.text import nearest, printable, quoted, show_bytes
from train_classifier.request import flags
from train_classifier.request.flags import merged

MOST_BYTES = 1 << 20
#: Python's parser needs quadratic time for the parts of a key, and has no limit of nesting.
MOST_DOTS = 100
MOST_DEPTH = 20
#: Most problems that are reported for one file.
MOST_PROBLEMS = 20

#: Kinds that need TOML's own type in a file, although a flag gives them as text, and their words.
_TYPES: dict[Kind, tuple[tuple[type, ...], str | None]] = {
    Kind.BOOLEAN: ((bool,), None),
    Kind.WHOLE: ((int,), None),
    Kind.GPUS: ((int,), "auto"),
    Kind.DECIMAL: ((int, float), options.NONE),
}
_TABLES = ("defaults", "models")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a settings file sets: for every model, and for one model by its name, which wins."""

    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    #: Of the caller's own file only: the hosts where no inventory is named.
    hosts: tuple[str, ...] = ()

    def of(self, model: str | None) -> dict[str, Any]:
        """Return the values for a model: its own override the defaults; tables and lists are merged."""
        values = dict(self.defaults)
        for key, value in self.models.get(model or "", {}).items():
            values[key] = merged(key, values.get(key), value)
        return values


def load(repository: Path) -> Settings:
    """Read the repository's train-classifier.toml; without one every setting is its default.

    Raises BadInput with one sentence per problem: the file, the table, the key. `refused` returns the values
    that the file may not set.
    """
    path = repository / FILE
    if not os.path.lexists(path):
        return Settings()
    top = os.path.realpath(repository)
    return parse(_content(lambda: regular_file.read(path, MOST_BYTES, within=top), FILE))


def load_own(path: Path, repository: Path | None = None) -> Settings:
    """Read the caller's own settings file; without one every setting is its default.

    It may set everything. So it must belong to the caller, no other user may be able to write to it, and it
    must not be in `repository`. A link to it is followed, because dotfiles are often kept elsewhere.
    Raises BadInput with one sentence per problem.
    """
    name = printable(str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise BadInput(f"{name}: cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    real_path = Path("/proc/self/fd", str(descriptor)).readlink()
    content = _content(lambda: regular_file.read_open(descriptor, MOST_BYTES), name)
    if status.st_uid != os.geteuid():
        raise BadInput(
            f"{name}: belongs to uid {status.st_uid} and not to you (uid {os.geteuid()}): it is not used; "
            "remove it, or make it yours"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadInput(f"{name}: others may write to it, so that it is not used: chmod go-w {name}")
    if repository is not None and real_path.is_relative_to(repository):
        raise BadInput(
            f"{name}: lies in the repository {printable(str(repository))}, which may be anybody's: it is not "
            "used; keep it elsewhere"
        )
    return parse(content, name)


def _content(read: Callable[[], bytes], name: str) -> bytes:
    try:
        return read()
    except OSError as error:
        raise BadInput(f"{name}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from error


def refusals(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each value that a checkout may not set."""
    tables = {
        "defaults": settings.defaults,
        **{f"models.{name}": table for name, table in settings.models.items()},
    }
    for name, table in tables.items():
        for key, value in sorted(table.items()):
            reason = refusal(name, key, value)
            if reason is not None:
                yield f"{FILE}: [{name}] {key}: {reason}"


def refusal(table: str, key: str, value: Any) -> str | None:
    """Return why a checkout may not set an option to this value; None when it may (`Option.checkout`)."""
    rule, most = options.BY_NAME[key].checkout, options.default(key)
    if rule is Checkout.NOTHING and value:
        return f"a repository does not name variables of yours; {_advice(table, key, value)}"
    if rule is Checkout.LOWER and value > most:
        return f"a repository sets at most {show_bytes(most)}; {_advice(table, key, value)}"
    if rule is Checkout.NAME and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", value):
        return f"{quoted(value)} is not the name of one host; a repository sets nothing else"
    return None


def _advice(table: str, key: str, value: Any) -> str:
    return options.advice(table, key, value, flags.show_own_settings(os.environ))


def parse(content: bytes, name: str = FILE) -> Settings:
    """Read the text of a settings file. Raises BadInput with one sentence per problem, `name` in each."""
    try:
        text = content.decode("utf-8-sig")
        for number, line in enumerate(text.split("\n"), 1):
            if line.count(".") > MOST_DOTS:
                raise BadInput(f"{name}: line {number}: has more than {MOST_DOTS} dots")
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line_number = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise BadInput(f"{name}: line {line_number}, column {column}: not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(_syntax(str(error), content, name)) from error
    except ValueError as error:
        # Python cannot read an integer of more than 4,300 digits, or a date outside of its calendar.
        digits = re.search(r"[0-9][0-9_]{4299}", text)
        line_number = text.count("\n", 0, digits.start()) + 1 if digits else 0
        where = f"line {line_number}: the number is" if digits else "it holds a value that is"
        raise BadInput(f"{name}: {where} beyond all limits") from error
    except RecursionError as error:
        raise BadInput(f"{name}: nests too deep") from error
    problem = _size_problem(raw)
    if problem:
        raise BadInput(f"{name}: {problem}")
    settings, problems = _read(raw, own=name != FILE)
    if problems:
        sentences = [f"{name}: {problem}" for problem in problems]
        if name == FILE:
            sentences += refusals(settings)
        if len(sentences) > MOST_PROBLEMS:
            sentences[MOST_PROBLEMS:] = [f"{name}: there are more problems; correct these first"]
        raise BadInput(*sentences)
    return settings


def _read(raw: dict[str, Any], own: bool) -> tuple[Settings, list[str]]:
    """Return the parsed settings and the problems of a whole file."""
    problems = []
    hosts = raw.get("hosts", ()) if own else ()
    if not isinstance(hosts, list | tuple) or not all(map(_is_host, hosts)):
        problems.append(f'hosts is {quoted(hosts)}, wanted a list of names that ssh knows, as ["gpu-1"]')
        hosts = ()
    tables = {"defaults": raw.get("defaults", {})}
    for key in raw:
        if key == "hosts" and not own:
            problems.append(f"a repository names no hosts; {options.OWN_SETTINGS} does")
        elif key not in _TABLES and key != "hosts":
            hint = (
                "; put it below [defaults] or [models.NAME]"
                if key in SETTINGS
                else _did_you_mean(key, _TABLES)
            )
            problems.append(f"unknown table or key {quoted(key)}{hint}")
    models = raw.get("models", {})
    if isinstance(models, dict):
        for name, table in models.items():
            if job.MODEL.match(name):
                tables[f"models.{name}"] = table
            else:
                problems.append(f"[models]: {quoted(name)} is not the name of a model, a Python package")
    else:
        problems.append(f"models is {quoted(models)}, wanted a table: write [models]")
    parsed = {name: _read_table(name, table, problems) for name, table in tables.items()}
    defaults = parsed.pop("defaults")
    models = {name.partition(".")[2]: table for name, table in parsed.items()}
    return Settings(defaults, models, tuple(dict.fromkeys(hosts))), problems


def _is_host(name: Any) -> bool:
    return isinstance(name, str) and bool(PLAIN_HOST.match(name))


def _read_table(name: str, table: Any, problems: list[str]) -> dict[str, Any]:
    """Return the parsed values of one table; its problems are added to `problems`."""
    values: dict[str, Any] = {}
    if not isinstance(table, dict):
        problems.append(f"{name} is {quoted(table)}, wanted a table: write [{name}]")
        return values
    for key, value in table.items():
        if key not in SETTINGS:
            problems.append(f"[{name}]: unknown key {quoted(key)}{_did_you_mean(key, sorted(SETTINGS))}")
            continue
        try:
            _check_type(SETTINGS[key], value)
            values[key] = flags.parse(key, value)
        except ValueError as error:
            problems.append(f"[{name}] {key}: {error}")
    return values


def _check_type(option: Option, value: Any) -> None:
    types, word = _TYPES.get(option.kind, ((object,), None))
    if option.kind in _TYPES and isinstance(value, str) and value != word:
        parsed = flags.parse(option.name, value)
        correct = json.dumps(options.NONE if parsed is None else parsed)
        raise ValueError(f"{quoted(value)} is text; write {option.name} = {correct}")
    if not isinstance(value, (*types, str)):
        raise ValueError(f"{quoted(value)} is of the wrong type")


def _size_problem(raw: dict[str, Any]) -> str | None:
    """Return a sentence about a value that is larger or deeper than any setting; None if there is none."""
    pending: list[tuple[str, Any, int]] = [("", raw, 0)]
    while pending:
        where, value, depth = pending.pop()
        if depth > MOST_DEPTH:
            return "nests too deep"
        if isinstance(value, dict):
            pending += [(f"{where}.{key}" if where else key, each, depth + 1) for key, each in value.items()]
        elif isinstance(value, list):
            pending += [(where, each, depth + 1) for each in value]
        elif isinstance(value, int) and abs(value) >= 1 << 63:
            return f"{quoted(where)} is a number beyond 64 bits, which TOML does not have"
    return None


def _syntax(message: str, content: bytes, name: str) -> str:
    match = re.search(r"^(.*?) \(at line (\d+), column (\d+)\)$", message, re.DOTALL)
    if match:
        problem, line, column = match[1], match[2], match[3]
    else:
        # "(at end of document)" has no line and column.
        problem = re.sub(r" \(at end of document\)$", "", message)
        lines = content.decode("utf-8-sig", "replace").split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    return f"{name}: line {line}, column {column}: {printable(problem[:1].lower() + problem[1:])}"


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    near = nearest(word.replace("-", "_").lower(), words)
    return f"; did you mean '{near}'?" if near else f"; known are {', '.join(words)}"


def unknown_models(settings: Settings, models: list[str]) -> list[str]:
    """Return a warning for every [models.NAME] that names no model of the repository."""
    warnings = []
    for name in settings.models:
        if name not in models:
            near = nearest(name, models)
            hint = f"; did you mean [models.{near}]?" if near else ""
            warnings.append(f"{FILE}: [models.{name}] names no model of this repository{hint}")
    return warnings
