"""The JSON schema of the settings file, from the table of options; `scripts/options` writes it."""

import re
from typing import Any

from train_classifier.core import job, options
from train_classifier.core.options import SETTINGS, SETTINGS_FILE, Kind, Option


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, as published in docs/train-classifier.schema.json."""
    table = {
        "type": "object",
        "description": "Settings of a training run.",
        "additionalProperties": False,
        "properties": {
            name: {"description": option.help, **_schema(option)} for name, option in SETTINGS.items()
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "train-classifier.schema.json",
        "title": SETTINGS_FILE,
        "description": "Settings of train-classifier for the models of one repository.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "defaults": {"$ref": "#/$defs/Table"},
            "models": {
                "description": "Settings of one model, by its name; they win over the defaults.",
                "type": "object",
                "propertyNames": {"pattern": _pattern(job.MODEL)},
                "additionalProperties": {"$ref": "#/$defs/Table"},
            },
        },
        "$defs": {"Table": table},
    }


def _pattern(expression: re.Pattern[str]) -> str:
    return "^" + expression.pattern.replace(r"\Z", "$")


def _schema(option: Option) -> dict[str, Any]:
    """Return the JSON schema of a value as it stands in TOML."""
    bounds = {"minimum": option.least, "maximum": option.most}
    name = {"type": "string", "pattern": _pattern(job.NAME)}
    folder = _pattern(job.DATA_NAME)[1:]
    schemas: dict[Kind, dict[str, Any]] = {
        Kind.BOOLEAN: {"type": "boolean"},
        Kind.CHOICE: {"enum": list(option.words)},
        Kind.PYTHON: {"enum": list(options.PYTHONS)},
        Kind.GPUS: {"anyOf": [{"type": "integer", **bounds}, {"const": "auto"}]},
        Kind.WHOLE: {"type": "integer", **bounds},
        Kind.DECIMAL: {"anyOf": [{"type": "number", **bounds}, {"const": options.NONE}]},
        Kind.SIZE: {"type": ["string", "integer"], "minimum": 0, "examples": ["8GiB", "500MB", "512m"]},
        Kind.VRAM: {"type": ["string", "integer"], "minimum": 0, "examples": ["8GiB", 6000]},
        Kind.DURATION: {"type": ["string", "number"], "minimum": 0, "examples": ["6h", "1h30m", "90s", 90]},
        Kind.ENVIRONMENT: {
            "type": "object",
            "propertyNames": name,
            "additionalProperties": {"type": "string"},
        },
        Kind.NAMES: {"type": "array", "items": name},
        Kind.PATHS: {"type": "array", "items": {"type": "string", "pattern": "^[^/~-]"}},
        Kind.FOLDERS: {
            "anyOf": [
                {"type": "array", "items": {"type": "string", "pattern": f"^/.*:{folder}"}},
                {"type": "object", "additionalProperties": {"type": "string", "pattern": "^/"}},
            ]
        },
    }
    return schemas.get(option.kind, {"type": "string"})
