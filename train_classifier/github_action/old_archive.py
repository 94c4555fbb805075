"""Removes the archive of an earlier run, so that a failing run does not deliver it again.

Standard library only: the action's launcher needs it before anything else is installed.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train_classifier.core import options, regular_file
from train_classifier.core.job import ARCHIVE_MAGIC
from train_classifier.core.options import SETTINGS_FILE

OUTPUT: str = options.default("output")
#: The same limits as in the check of the settings.
MAX_BYTES = 1 << 20
MAX_DOTS = 100


def archive_path(environment: Mapping[str, str], cwd: Path) -> Path:
    """Return where the archive of a step with this environment goes, as `request.build` finds it.

    Raises ValueError when the repository's settings, which may name the path, cannot be read.
    """
    if output := _input(environment, "OUTPUT"):
        return _path(output, cwd)
    try:
        top = (cwd / (_input(environment, "REPO") or ".")).resolve(strict=True)
    except (OSError, RuntimeError):
        return cwd / OUTPUT
    model = _input(environment, "MODEL") or environment.get("MODEL", "")
    setting = _output_setting(top, model.rstrip("/"))
    if setting is None:
        return cwd / OUTPUT
    path = Path(os.path.realpath(top / Path(setting).parent), Path(setting).name)
    if not path.is_relative_to(top):
        raise ValueError(f"{SETTINGS_FILE}: output leads out of the repository")
    return path


def _input(environment: Mapping[str, str], name: str) -> str:
    """Return an input of the step; `with:` overrides the environment, and empty means not set."""
    return (
        environment.get(f"TRAIN_CLASSIFIER_INPUT_{name}", "").strip()
        or environment.get(f"TRAIN_CLASSIFIER_{name}", "").strip()
    )


def _path(text: str, base: Path) -> Path:
    try:
        path = base / Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"output {text!r}: {error}") from error
    # The name is not resolved: a link is removed itself, not its target.
    return Path(os.path.realpath(path.parent), path.name)


def _output_setting(top: Path, model: str) -> str | None:
    """Return `output` of the repository's settings; None when it is not set."""
    try:
        text = regular_file.read(top / SETTINGS_FILE, MAX_BYTES, within=str(top)).decode("utf-8-sig")
        if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
            raise ValueError("a line has too many dots")
        settings = tomllib.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{SETTINGS_FILE} cannot be read: {error}") from error
    models = settings.get("models")
    tables = [settings.get("defaults"), models.get(model) if isinstance(models, dict) else None]
    output: Any = None
    for table in tables:
        if isinstance(table, dict):
            output = table.get("output", output)
    if output is not None and (not isinstance(output, str) or not output.strip() or "\0" in output):
        raise ValueError(f"{SETTINGS_FILE}: output is not a path")
    return output


def remove(path: Path) -> None:
    """Remove an archive, or a link in its place, but nothing else.

    Raises ValueError for a file that is not an archive, OSError when it cannot be removed.
    """
    if path.is_symlink():
        path.unlink()
    elif path.is_file():
        with path.open("rb") as file:
            start = file.read(2)
        if start and start != ARCHIVE_MAGIC:
            raise ValueError(f"output {path.name} exists and is no archive: name another file")
        path.unlink()
