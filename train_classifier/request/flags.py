"""The parser of each option's values, shared by flags, environment variables, settings files and the role.

Every parser gets the raw value and returns the parsed one, or raises ValueError with one sentence.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train_classifier.core import image_reference, job, options
from train_classifier.core.options import Kind, Option
from train_classifier.core.text import printable, quoted, show_bytes
from train_classifier.request import units

#: The longest text of an option: a path (PATH_MAX), a host, an image.
MOST_TEXT = 4096
#: Shortest secret. Masking a shorter one would hide half of the log, and it could still be guessed.
LEAST_SECRET = 4

_IMAGE_FORMS = "write name, name:tag or registry/name:tag@sha256:…, for example python:3.11-slim"


def text(value: Any) -> str:
    """Return text that is not empty and holds no NUL."""
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not text; put it in quotes")
    if not value.strip():
        raise ValueError("the value is empty")
    if "\0" in value:
        raise ValueError(f"{quoted(value)} holds a NUL")
    if len(value) > MOST_TEXT:
        raise ValueError(f"{quoted(value)} is longer than {MOST_TEXT} characters")
    return value


def boolean(value: Any) -> bool:
    """Return true or false; as text also 1/0, yes/no and on/off."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else None
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{quoted(value)} is not true or false")


def image(value: Any) -> str:
    """Return an image reference that follows the registries' grammar."""
    reference = text(value)
    if image_reference.problem(reference) is None:
        return reference
    name = reference.partition("@")[0]
    if re.search(r"\s", reference):
        why = "it holds white space"
    elif re.match(r"[a-z]+://", reference):
        why = "it is a URL: leave out what stands before the registry's name"
    elif name != reference and image_reference.problem(name) is None:
        why = "what follows @ is not sha256: and 64 lower-case hex digits"
    elif image_reference.problem(reference.lower()) is None:
        why = "names of images are written in lower case"
    else:
        why = "it does not follow the grammar of image references"
    raise ValueError(f"{quoted(reference)} is not an image reference: {why}; {_IMAGE_FORMS}")


def python(value: Any) -> str:
    """Return a version of Python."""
    if not isinstance(value, str):
        raise ValueError(f'{quoted(value)} is not text: write it in quotes, as "3.10"')
    if value.strip() not in options.PYTHONS:
        raise ValueError(f"{quoted(value)} is not one of {', '.join(options.PYTHONS)}")
    return value.strip()


def gpus(value: Any) -> int | str:
    """Return a number of GPUs, or "auto"."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    most = int(options.BY_NAME["gpus"].most or 0)
    try:
        return units.whole(value, 0, most)
    except ValueError:
        raise ValueError(f"{quoted(value)} is not a number of GPUs; write 0 to {most}, or auto") from None


def variable(name: Any) -> str:
    """Return the name of an environment variable or a secret."""
    if not isinstance(name, str) or not job.NAME.match(name):
        raise ValueError(
            f"{quoted(name)} is not the name of a variable: letters, digits and _, no digit first"
        )
    return name


def variable_value(name: str, value: Any) -> str:
    """Return the value of an environment variable of the job. The value itself is never in the message."""
    if not isinstance(value, str):
        raise ValueError(f"the value of {name} is not text; put it in quotes")
    if "\0" in value:
        raise ValueError(f"the value of {name} holds a NUL, which no environment variable can")
    if len(name) + len(value.encode("utf-8", "surrogateescape")) + 2 > job.MOST_STRING:
        raise ValueError(f"the value of {name} is over 128 KiB, the kernel's limit; put it into a file")
    return value


def environment(value: Any) -> dict[str, str]:
    """Return a table of environment variables."""
    if not isinstance(value, dict):
        raise ValueError('wanted a table, for example environment = { EPOCHS = "3" }')
    return {variable(name): variable_value(name, item) for name, item in value.items()}


def secrets(value: Any) -> tuple[str, ...]:
    """Return the names of secrets, each once."""
    if not isinstance(value, list | tuple):
        raise ValueError('wanted a list of names, for example secrets = ["HF_TOKEN"]')
    for name in value:
        if isinstance(name, str) and "=" in name:
            raise ValueError(
                f"secret {quoted(name.partition('=')[0] + '=…')} carries a value: "
                "name the variable only, and set it in the environment"
            )
    return tuple(dict.fromkeys(variable(name) for name in value))


def data_folder(path: Any, name: Any) -> job.DataFolder:
    """Return one data folder of the host."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise ValueError(f"data folder {quoted(path)} is not an absolute path of the host")
    if ".." in path.split("/"):
        raise ValueError(f"data folder {quoted(path)} holds '..': write the path without it")
    if len(path) > MOST_TEXT:
        raise ValueError(f"data folder {quoted(path)} is longer than {MOST_TEXT} characters")
    if not isinstance(name, str) or not job.DATA_NAME.match(name):
        raise ValueError(
            f"data name {quoted(name)}: wanted letters, digits, dot, _ and -, as in /mnt/digits:digits"
        )
    # The host checks again, with links resolved.
    plain = "/" + os.path.normpath(path).lstrip("/")
    if plain == "/":
        raise ValueError(f"data folder {quoted(path)} is the host's whole file system; no job may read it")
    for folder in job.SYSTEM_FOLDERS:
        if f"{plain}/".startswith(f"{folder}/"):
            raise ValueError(f"data folder {quoted(path)} is part of {folder}; no job may read it")
    return job.DataFolder(path, name)


def data(value: Any) -> tuple[job.DataFolder, ...]:
    """Return data folders from a list of HOST_DIR:NAME or a table NAME = HOST_DIR."""
    if isinstance(value, dict | list | tuple) and len(value) > options.MOST_DATA:
        raise ValueError(f"{len(value)} folders are more than the {options.MOST_DATA} that a job may have")
    if isinstance(value, dict):
        return tuple(data_folder(path, name) for name, path in value.items())
    if not isinstance(value, list | tuple):
        raise ValueError(
            'wanted a list such as ["/mnt/digits:digits"] or a table such as { digits = "/mnt/digits" }'
        )
    folders = []
    for item in value:
        path, colon, name = item.rpartition(":") if isinstance(item, str) else ("", "", "")
        if not colon:
            raise ValueError(f"{quoted(item)} is not HOST_DIR:NAME, for example /mnt/digits:digits")
        folders.append(data_folder(path, name))
    names = [folder.name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"data name {quoted(name)} is given twice")
    return tuple(folders)


def results_folders(value: Any) -> tuple[str, ...]:
    """Return folders of results in the repository, each once."""
    if not isinstance(value, list | tuple):
        raise ValueError('wanted a list of folders, for example artefacts = ["outputs"]')
    if len(value) > options.MOST_RESULTS:
        raise ValueError(f"{len(value)} folders are more than the {options.MOST_RESULTS} that a job may have")
    folders = []
    for item in value:
        # What stands before `..` may be a link: such a path is refused as it is.
        is_plain = isinstance(item, str) and ".." not in item.split("/")
        folder = os.path.normpath(item) if is_plain else item
        problem = job.results_folder_problem(folder)
        if problem:
            raise ValueError(f"folder of results {quoted(item)} {problem}; write a path such as outputs")
        folders.append(folder)
    return tuple(dict.fromkeys(folders))


def resume(value: Any) -> str:
    """Return a job id or "last"."""
    if value == "last" or (isinstance(value, str) and job.JOB_ID.match(value)):
        return str(value)
    raise ValueError(f"{quoted(value)} is not a job id such as 20250131-120000-0123abcd, nor last")


def _choice(value: Any, option: Option) -> str:
    if value in option.words:
        return str(value)
    raise ValueError(f"{quoted(value)} is not one of {', '.join(option.words)}")


def _duration(value: Any, option: Option) -> float:
    seconds = units.duration(value)
    if not (option.least or 0) <= seconds <= (option.most or 0):
        raise ValueError(f"{quoted(value)} is not from {option.least:g} to {option.most:g} seconds")
    return seconds


def _size(value: Any, option: Option) -> int:
    count = units.size(value)
    if count < (option.least or 0):
        least = show_bytes(option.least or 0)
        raise ValueError(f"{quoted(value)} is {show_bytes(count)}, less than {least}; {units.SIZE_FORMS}")
    return count


_PARSERS: dict[Kind, Callable[[Any, Option], Any]] = {
    Kind.TEXT: lambda value, _: text(value),
    Kind.IMAGE: lambda value, _: image(value),
    Kind.BOOLEAN: lambda value, _: boolean(value),
    Kind.CHOICE: _choice,
    Kind.GPUS: lambda value, _: gpus(value),
    Kind.PYTHON: lambda value, _: python(value),
    Kind.WHOLE: lambda value, option: units.whole(value, int(option.least or 0), int(option.most or 0)),
    Kind.DECIMAL: lambda value, option: units.decimal(value, option.least or 0, option.most or 0),
    Kind.SIZE: _size,
    Kind.VRAM: lambda value, _: units.vram_mib(value),
    Kind.DURATION: _duration,
    Kind.JOB: lambda value, _: resume(value),
    Kind.ENVIRONMENT: lambda value, _: environment(value),
    Kind.NAMES: lambda value, _: secrets(value),
    Kind.FOLDERS: lambda value, _: data(value),
    Kind.PATHS: lambda value, _: results_folders(value),
}
#: What `parse` reads; the others are read where they are used: a model, the model's arguments, files.
PARSED = tuple(
    option.name
    for option in options.OPTIONS
    if option.kind in _PARSERS
    and option.name not in ("model", "repo", "inventory")
    and not option.action_only
)


def parse(name: str, value: Any) -> Any:
    """Return the parsed value of an option; None for `none`. Raises ValueError with one sentence."""
    option = options.BY_NAME[name]
    if option.lifted and isinstance(value, str) and value.strip().lower() == options.NONE:
        return None
    return _PARSERS[option.kind](value, option)


def own_settings(environ: Mapping[str, str]) -> Path | None:
    """Return the path of the caller's own settings file (XDG base directories); None without a home."""
    base = Path(environ.get("XDG_CONFIG_HOME") or "")
    if not base.is_absolute():
        home = Path(environ.get("HOME") or "")
        if not home.is_absolute():
            return None
        base = home / ".config"
    return base / "train-classifier" / "config.toml"


def show_own_settings(environ: Mapping[str, str]) -> str:
    """Return how messages name the caller's own settings file."""
    is_elsewhere = environ.get("XDG_CONFIG_HOME", "").startswith("/")
    return printable(str(own_settings(environ))) if is_elsewhere else options.OWN_SETTINGS


def merged(key: str, lower: Any, higher: Any) -> Any:
    """Return the value of a key that two levels set: tables and lists add up by name, the higher wins."""
    if lower is None:
        return higher
    if key == "environment":
        return {**lower, **higher}
    if key in ("secrets", "artefacts"):
        return tuple(dict.fromkeys([*lower, *higher]))
    if key == "data":
        return tuple({folder.name: folder for folder in [*lower, *higher]}.values())
    return higher
