"""Settings files, a repository's and the caller's own: keys, problems as sentences, the JSON schema."""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from train_classifier.core import regular_file
from train_classifier.core.errors import BadInput
from train_classifier.core.text import printable, quoted, show_bytes
from train_classifier.request import flags
from train_classifier.request.flags import SETTINGS_FILE as FILE
from train_classifier.request.flags import Checkout, merged

MOST_BYTES = flags.MOST_SETTINGS
#: Python's parser needs quadratic time for the parts of a key, and has no limit of nesting.
MOST_DOTS = 100
MOST_DEPTH = 20
#: Most problems that are reported for one file.
MOST_PROBLEMS = 20

_SIZE = {"type": ["string", "integer"], "minimum": 0, "examples": ["8GiB", "500MB", "512m"]}
_DURATION = {"type": ["string", "number"], "minimum": 0, "examples": ["6h", "1h30m", "90s", 90]}
_NAME = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}


#: Keys that need TOML's own type in a file, although a flag gives them as text.
_TYPES: dict[str, tuple[type, ...]] = {
    "allow_empty": (bool,),
    "pids": (int,),
    "gpus": (int,),
    "cpus": (int, float),
}
_WORDS = {"gpus": ("auto",), "cpus": (flags.NONE,)}


def _option(schema: dict[str, Any], description: str) -> Any:
    return Field(default=None, description=description, json_schema_extra=schema)


class Table(BaseModel):
    """Settings of a training run."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: Any = _option({"type": "string", "examples": ["python:3.11-slim"]}, "Image to train in.")
    gpus: Any = _option(
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 64}, {"const": "auto"}]},
        "Number of GPUs; 0 is the CPU; auto takes a GPU if the host has one.",
    )
    min_vram: Any = _option(
        {"type": ["string", "integer"], "minimum": 0, "examples": ["8GiB", 6000]},
        "GPU memory that must be free on each card; a plain number counts MiB.",
    )
    gpu_check: Any = _option(
        {"enum": ["framework", "device", "off"]},
        "How far the GPU is proven before training: the framework sees it, the device is there, not at all.",
    )
    timeout: Any = _option(_DURATION, "Time limit of training; none lifts it.")
    wait: Any = _option(_DURATION, "Longest wait for a GPU; none lifts it.")
    grace: Any = _option(_DURATION, "Time between SIGTERM and SIGKILL when a job is stopped.")
    memory: Any = _option(_SIZE, "Memory limit of the container; none lifts it.")
    cpus: Any = _option(
        {"anyOf": [{"type": "number", "minimum": 0.01, "maximum": 4096}, {"const": "none"}]},
        "CPUs the container may use; none lifts the limit.",
    )
    shm_size: Any = _option(_SIZE, "Size of /dev/shm, which data loaders of PyTorch use.")
    pids: Any = _option(
        {"type": "integer", "minimum": 16, "maximum": 1 << 22}, "Most processes and threads in the container."
    )
    network: Any = _option({"enum": ["full", "none"]}, "Network of the container during training.")
    environment: Any = _option(
        {"type": "object", "propertyNames": _NAME, "additionalProperties": {"type": "string"}},
        "Environment variables of the model.",
    )
    secrets: Any = _option(
        {"type": "array", "items": _NAME},
        "Names of environment variables of the caller that the model gets and the log masks. "
        "Only in the caller's own settings file; a repository's is refused.",
    )
    data: Any = _option(
        {
            "anyOf": [
                {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^/.*:[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
                },
                {"type": "object", "additionalProperties": {"type": "string", "pattern": "^/"}},
            ]
        },
        "Folders of the host, readable at /data/NAME: a list of HOST_DIR:NAME or a table NAME = HOST_DIR. "
        "In a repository's file only below the folders that the host lists (data_roots).",
    )
    output: Any = _option(
        {"type": "string"},
        "Where the archive goes. A repository's file names a path in the repository, relative to its top.",
    )
    allow_empty: Any = _option({"type": "boolean"}, "A model that writes no new artefact has not failed.")
    log_max: Any = _option(_SIZE, "Longest log that is kept whole; beyond it head and tail stay.")
    artefacts_max: Any = _option(_SIZE, "Most bytes of artefacts/ that are packed; more stays on the host.")
    push_limit: Any = _option(_SIZE, "Most bytes of sources that are pushed.")
    host: Any = _option({"type": "string"}, "Host of the inventory to train on.")

    @field_validator("*", mode="before")
    @classmethod
    def _parsed(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        kinds = _TYPES.get(name)
        if kinds and value not in _WORDS.get(name, ()):
            if isinstance(value, str):
                raise ValueError(f"{quoted(value)} is text; write it without quotes")
            if not isinstance(value, kinds):
                raise ValueError(f"{quoted(value)} is of the wrong type")
        return flags.SETTINGS[name](value)


class Settings(BaseModel):
    """Settings of train-classifier for the models of one repository."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    defaults: Annotated[Table, Field(description="Settings of every model of this repository.")] = Table()
    models: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")], Table],
        Field(description="Settings of one model, by its name; they win over the defaults."),
    ] = {}

    def of(self, model: str | None) -> dict[str, Any]:
        """Return the values for a model: its own override the defaults; tables and lists are merged."""
        tables = [self.defaults, *([self.models[model]] if model in self.models else [])]
        values: dict[str, Any] = {}
        for table in tables:
            for key in table.model_fields_set:
                values[key] = merged(key, values.get(key), getattr(table, key))
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
    found = os.fstat(descriptor)
    place = Path("/proc/self/fd", str(descriptor)).readlink()
    content = _content(lambda: regular_file.read_open(descriptor, MOST_BYTES), name)
    if found.st_uid != os.geteuid():
        raise BadInput(
            f"{name}: belongs to uid {found.st_uid} and not to you (uid {os.geteuid()}): it is not used; "
            "remove it, or make it yours"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadInput(f"{name}: others may write to it, so that it is not used: chmod go-w {name}")
    if repository is not None and place.is_relative_to(repository):
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


def refused(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each value that a checkout may not set."""
    tables = {
        "defaults": settings.defaults,
        **{f"models.{name}": table for name, table in settings.models.items()},
    }
    for name, table in tables.items():
        for key in sorted(table.model_fields_set):
            reason = refusal(name, key, getattr(table, key))
            if reason is not None:
                yield f"{FILE}: [{name}] {key}: {reason}"


def refusal(table: str, key: str, value: Any) -> str | None:
    """Return why a checkout may not set an option to this value; None when it may (`flags.CHECKOUT`)."""
    rule = flags.CHECKOUT[key]
    if rule is Checkout.NOTHING and value:
        return f"a repository does not name variables of yours; {flags.move(table, key, value)}"
    if rule is Checkout.LOWER and value > flags.LIMITS[key]:
        most = show_bytes(flags.LIMITS[key])
        return f"a repository sets at most {most}; {flags.move(table, key, value)}"
    if rule is Checkout.NAME and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", value):
        return f"{quoted(value)} is not the name of one host; a repository sets nothing else"
    return None


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
    problem = _beyond(raw)
    if problem:
        raise BadInput(f"{name}: {problem}")
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        sentences = [_sentence(problem, name) for problem in error.errors(include_url=False)[:MOST_PROBLEMS]]
        if error.error_count() > MOST_PROBLEMS:
            sentences.append(f"{name}: there are more problems; mend these first")
        raise BadInput(*sentences) from error


def _beyond(raw: dict[str, Any]) -> str | None:
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
        what, line, column = match[1], match[2], match[3]
    else:
        # "(at end of document)" has no line and column.
        what = re.sub(r" \(at end of document\)$", "", message)
        lines = content.decode("utf-8-sig", "replace").split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    return f"{name}: line {line}, column {column}: {printable(what[:1].lower() + what[1:])}"


def _nearest(word: str, known: list[str]) -> str:
    word = word.replace("-", "_").lower()
    begun = [key for key in known if len(word) > 2 and key.startswith(word)]
    near = begun or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"


def _sentence(problem: Any, name: str) -> str:
    location = [str(part) for part in problem["loc"]]
    if location[0] not in Settings.model_fields:
        known = list(Settings.model_fields)
        hint = (
            "; put it below [defaults] or [models.NAME]"
            if location[0] in Table.model_fields
            else _nearest(location[0], known)
        )
        return f"{name}: unknown table or key {quoted(location[0])}{hint}"
    depth = 1 if location[0] == "defaults" else 2
    table = ".".join(printable(part) for part in location[:depth])
    key = location[depth] if len(location) > depth else None
    if key == "[key]":
        return f"{name}: [{table}]: {quoted(location[1])} is no name of a model, which is a Python package"
    if problem["type"] == "extra_forbidden":
        return f"{name}: [{table}]: unknown key {quoted(key)}{_nearest(str(key), sorted(Table.model_fields))}"
    if key is None:
        return f"{name}: {table} is {quoted(problem['input'])}, wanted a table: write [{table}]"
    reason = problem.get("ctx", {}).get("error", problem["msg"])
    return f"{name}: [{table}] {printable(key)}: {reason}"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, as published in docs/train-classifier.schema.json."""
    schema = Settings.model_json_schema()
    for table in (schema, *schema["$defs"].values()):
        for key in table["properties"].values():
            for noise in ("default", "title"):
                key.pop(noise, None)
    schema["properties"]["models"]["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "train-classifier.schema.json",
        **schema,
        "title": FILE,
        "description": "Settings of train-classifier for the models of one repository.",
    }


def unknown_models(settings: Settings, models: list[str]) -> list[str]:
    """Return a warning for every [models.NAME] that names no model of the repository."""
    found = []
    for name in settings.models:
        if name not in models:
            near = difflib.get_close_matches(name, models, n=1)
            hint = f"; did you mean [models.{near[0]}]?" if near else ""
            found.append(f"{FILE}: [models.{name}] names no model of this repository{hint}")
    return found
