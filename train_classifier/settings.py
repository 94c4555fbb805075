"""train-classifier.toml: its models, its problems as sentences, and its JSON schema."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from train_classifier import options
from train_classifier.errors import BadInput
from train_classifier.options import SETTINGS_FILE as FILE
from train_classifier.options import merged
from train_classifier.units import printable, quoted

#: A settings file beyond this is something else by mistake.
MOST_BYTES = 1 << 20

_SIZE = {"type": ["string", "integer"], "minimum": 0, "examples": ["8GiB", "500MB", "512m"]}
_DURATION = {"type": ["string", "number"], "minimum": 0, "examples": ["6h", "1h30m", "90s", 90]}
_NAME = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}


#: What a file must say with TOML's own type, though a flag says it as text.
_TYPES: dict[str, tuple[type, ...]] = {
    "allow_empty": (bool,),
    "pids": (int,),
    "gpus": (int,),
    "cpus": (int, float),
}
_WORDS = {"gpus": ("auto",), "cpus": (options.NONE,)}


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
        "Names of environment variables of the caller that the model gets and the log masks.",
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
        "Folders of the host, readable at /data/NAME: a list of HOST_DIR:NAME or a table NAME = HOST_DIR.",
    )
    output: Any = _option({"type": "string"}, "Where the archive goes; relative to the repository's top.")
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
        return options.SETTINGS[name](value)


class Settings(BaseModel):
    """Settings of train-classifier for the models of one repository."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    defaults: Annotated[Table, Field(description="Settings of every model of this repository.")] = Table()
    models: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")], Table],
        Field(description="Settings of one model, by its name; they win over the defaults."),
    ] = {}

    def of(self, model: str | None) -> dict[str, Any]:
        """Return the values that hold for a model: its own win over the defaults, tables and lists add up."""
        tables = [self.defaults, *([self.models[model]] if model in self.models else [])]
        values: dict[str, Any] = {}
        for table in tables:
            for key in table.model_fields_set:
                values[key] = merged(key, values.get(key), getattr(table, key))
        return values


def load(repository: Path) -> Settings:
    """Read the repository's train-classifier.toml; without one every setting is its default.

    Raises BadInput with one sentence per problem: the file, the table, the key.
    """
    path = repository / FILE
    try:
        if path.is_symlink() or path.exists():
            if not path.is_file():
                raise BadInput(f"{FILE}: is not a regular file")
            if path.stat().st_size > MOST_BYTES:
                raise BadInput(f"{FILE}: is over 1 MiB, which no settings file is")
            return parse(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{FILE}: cannot be read: {error.strerror}") from error
    return Settings()


def parse(content: bytes) -> Settings:
    """Read the text of a settings file. Raises BadInput with one sentence per problem."""
    try:
        raw = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise BadInput(f"{FILE}: line {line}, column {column}: not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(_syntax(str(error), content)) from error
    except RecursionError as error:
        raise BadInput(f"{FILE}: nests too deep") from error
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise BadInput(*(_sentence(problem) for problem in error.errors(include_url=False))) from error


def _syntax(message: str, content: bytes) -> str:
    match = re.search(r"^(.*?) \(at line (\d+), column (\d+)\)$", message, re.DOTALL)
    if match:
        what, line, column = match[1], match[2], match[3]
    else:
        # "(at end of document)" carries no numbers.
        what = re.sub(r" \(at end of document\)$", "", message)
        lines = content.decode("utf-8-sig", "replace").split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    return f"{FILE}: line {line}, column {column}: {printable(what[:1].lower() + what[1:])}"


def _nearest(word: str, known: list[str]) -> str:
    word = word.replace("-", "_").lower()
    begun = [key for key in known if len(word) > 2 and key.startswith(word)]
    near = begun or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"


def _sentence(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if location[0] not in Settings.model_fields:
        known = list(Settings.model_fields)
        hint = (
            "; put it below [defaults] or [models.NAME]"
            if location[0] in Table.model_fields
            else _nearest(location[0], known)
        )
        return f"{FILE}: unknown table or key {quoted(location[0])}{hint}"
    depth = 1 if location[0] == "defaults" else 2
    table = ".".join(printable(part) for part in location[:depth])
    key = location[depth] if len(location) > depth else None
    if key == "[key]":
        return f"{FILE}: [{table}]: {quoted(location[1])} is no name of a model, which is a Python package"
    if problem["type"] == "extra_forbidden":
        return f"{FILE}: [{table}]: unknown key {quoted(key)}{_nearest(str(key), sorted(Table.model_fields))}"
    if key is None:
        return f"{FILE}: {table} is {quoted(problem['input'])}, wanted a table: write [{table}]"
    reason = problem.get("ctx", {}).get("error", problem["msg"])
    return f"{FILE}: [{table}] {printable(key)}: {reason}"


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
