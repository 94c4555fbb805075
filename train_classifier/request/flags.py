"""One parser per option of a training run, shared by flags, environment variables and settings files.

Every parser gets the raw value and returns the parsed one, or raises ValueError with one sentence.
Standard library only: `--help` must not wait for pydantic.
"""

import enum
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train_classifier.core import image_reference, job
from train_classifier.core.text import quoted
from train_classifier.request import units

#: The settings file, at the top of a repository.
SETTINGS_FILE = "train-classifier.toml"
#: The archive, unless another name is given.
OUTPUT = "artefacts.tar.gz"
#: Most bytes of a settings file; a larger file is another kind of file, named by mistake.
MOST_SETTINGS = 1 << 20
#: The longest text of an option: a path (PATH_MAX), a host, an image.
MOST_TEXT = 4096
#: Lifts a limit that a lower level sets: `--timeout none`.
NONE = "none"
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
    wanted = text(value)
    if image_reference.problem(wanted) is None:
        return wanted
    name = wanted.partition("@")[0]
    if re.search(r"\s", wanted):
        why = "it holds white space"
    elif re.match(r"[a-z]+://", wanted):
        why = "it is a URL: leave out what stands before the registry's name"
    elif name != wanted and image_reference.problem(name) is None:
        why = "what follows @ is not sha256: and 64 lower-case hex digits"
    elif image_reference.problem(wanted.lower()) is None:
        why = "names of images are written in lower case"
    else:
        why = "it does not follow the grammar of image references"
    raise ValueError(f"{quoted(wanted)} is not an image reference: {why}; {_IMAGE_FORMS}")


def gpus(value: Any) -> int | str:
    """Return a number of GPUs, or "auto"."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return units.whole(value, 0, job.MOST_GPUS)
    except ValueError:
        raise ValueError(
            f"{quoted(value)} is not a number of GPUs; write 0 to {job.MOST_GPUS}, or auto"
        ) from None


def _choice(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value in words:
            return str(value)
        raise ValueError(f"{quoted(value)} is not one of {', '.join(words)}")

    return parse


def _or_none(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def parse_or_none(value: Any) -> Any:
        return None if isinstance(value, str) and value.strip().lower() == NONE else parse(value)

    return parse_or_none


def _seconds(least: float, most: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        seconds = units.duration(value)
        if not least <= seconds <= most:
            raise ValueError(f"{quoted(value)} is not from {least:g} to {most:g} seconds")
        return seconds

    return parse


def _bytes(least: int, words: str) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        count = units.size(value)
        if count < least:
            raise ValueError(f"{quoted(value)} is {count} bytes, less than {words}; {units.SIZE_FORMS}")
        return count

    return parse


def variable(name: Any) -> str:
    """Return the name of an environment variable or a secret."""
    if not isinstance(name, str) or not job.NAME.match(name):
        raise ValueError(
            f"{quoted(name)} is no name of an environment variable: letters, digits and _, no digit first"
        )
    return name


def variable_value(name: str, value: Any) -> str:
    """Return the value of an environment variable of the job. The value itself is never in the message."""
    if not isinstance(value, str):
        raise ValueError(f"the value of {name} is not text; put it in quotes")
    if "\0" in value:
        raise ValueError(f"the value of {name} holds a NUL, which no environment variable can")
    # A string of one environment variable is limited by the kernel (MAX_ARG_STRLEN, 32 pages of 4 KiB).
    if len(name) + len(value.encode("utf-8", "surrogateescape")) + 2 > 131072:
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
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"data folder {quoted(path)} is not an absolute path of the host")
    if len(path) > MOST_TEXT:
        raise ValueError(f"data folder {quoted(path)} is longer than {MOST_TEXT} characters")
    if not isinstance(name, str) or not job.DATA_NAME.match(name):
        raise ValueError(
            f"data name {quoted(name)}: wanted letters, digits, dot, _ and -, as in /mnt/digits:digits"
        )
    return job.DataFolder(path, name)


def data(value: Any) -> tuple[job.DataFolder, ...]:
    """Return data folders from a list of HOST_DIR:NAME or a table NAME = HOST_DIR."""
    if isinstance(value, dict | list | tuple) and len(value) > job.MOST_DATA:
        raise ValueError(f"{len(value)} folders are more than the {job.MOST_DATA} that a job may have")
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


def resume(value: Any) -> str:
    """Return a job id or "last"."""
    if value == "last" or (isinstance(value, str) and job.JOB_ID.match(value)):
        return str(value)
    raise ValueError(f"{quoted(value)} is not a job id such as 20250131-120000-0123abcd, nor last")


#: Parsers of everything that train-classifier.toml may set, by key.
SETTINGS: dict[str, Callable[[Any], Any]] = {
    "image": image,
    "gpus": gpus,
    "min_vram": units.vram_mib,
    "gpu_check": _choice("framework", "device", "off"),
    "timeout": _or_none(_seconds(1, units.MOST_SECONDS)),
    "wait": _or_none(_seconds(0, units.MOST_SECONDS)),
    "grace": _seconds(0, 3600),
    "memory": _or_none(_bytes(6 << 20, "the 6 MiB that a container needs")),
    "cpus": _or_none(lambda value: units.decimal(value, 0.01, 4096)),
    "shm_size": units.size,
    "pids": lambda value: units.whole(value, 16, 1 << 22),
    "network": _choice("full", "none"),
    "environment": environment,
    "secrets": secrets,
    "data": data,
    "output": text,
    "allow_empty": boolean,
    "log_max": _bytes(4096, "the least log of 4096 bytes"),
    "artefacts_max": units.size,
    "push_limit": units.size,
    "host": text,
}


class Checkout(enum.Enum):
    """What the settings file of a repository may set for an option.

    A checkout is untrusted: it may change only its own container.
    """

    ANY = "any value"
    #: A host by its name, no pattern.
    NAME = "the name of a host"
    #: A path in the repository, after links are resolved.
    INSIDE = "a path inside the repository"
    #: Folders that the host allows in data_roots of its host.json.
    LISTED = "folders that the host lists"
    #: Not more than the default, because the worker does this on the host, outside of the container.
    LOWER = "a lower limit"
    NOTHING = "nothing"


#: What a repository's settings file may set, by key.
CHECKOUT: dict[str, Checkout] = {
    "image": Checkout.ANY,
    "gpus": Checkout.ANY,
    "min_vram": Checkout.ANY,
    "gpu_check": Checkout.ANY,
    "timeout": Checkout.ANY,
    "wait": Checkout.ANY,
    "grace": Checkout.ANY,
    "memory": Checkout.ANY,
    "cpus": Checkout.ANY,
    "shm_size": Checkout.ANY,
    "pids": Checkout.ANY,
    "network": Checkout.ANY,
    "environment": Checkout.ANY,
    "secrets": Checkout.NOTHING,
    "data": Checkout.LISTED,
    "output": Checkout.INSIDE,
    "allow_empty": Checkout.ANY,
    "log_max": Checkout.LOWER,
    "artefacts_max": Checkout.LOWER,
    "push_limit": Checkout.ANY,
    "host": Checkout.NAME,
}
#: A repository's settings file cannot raise a limit above these.
LIMITS = {"log_max": job.DEFAULT_LOG_MAX_BYTES, "artefacts_max": job.DEFAULT_ARTEFACTS_MAX_BYTES}
#: Parsers of options that only a flag or an environment variable may set.
REQUEST: dict[str, Callable[[Any], Any]] = {
    "lease": _seconds(5, units.MOST_SECONDS),
    "patience": _seconds(0, units.MOST_SECONDS),
    "resume": resume,
    "detach": boolean,
}
#: Flags whose name differs from their key.
FLAGS = {"environment": "--env", "secrets": "--secret", "arguments": "--"}
#: Environment variables whose name differs from their key.
VARIABLES = {"environment": "ENV"}


def flag(name: str) -> str:
    """Return the command line's flag for an option."""
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def variable_of(name: str) -> str:
    """Return the environment variable that sets an option."""
    return "TRAIN_CLASSIFIER_" + VARIABLES.get(name, name.upper())


def own_settings(environ: Mapping[str, str]) -> Path | None:
    """Return the path of the caller's own settings file (XDG base directories); None without a home."""
    base = Path(environ.get("XDG_CONFIG_HOME") or "")
    if not base.is_absolute():
        home = Path(environ.get("HOME") or "")
        if not home.is_absolute():
            return None
        base = home / ".config"
    return base / "train-classifier" / "config.toml"


def move(table: str, key: str, value: tuple[str, ...] | int) -> str:
    """Return the advice for a line that is not allowed in a table of a repository's settings file."""
    items = value if isinstance(value, tuple) else (value,)
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    flags = " ".join(f"{flag(key)} {item}" for item in items)
    return f"move the line '{line}' below [{table}] of your own settings, {job.OWN_SETTINGS}, or give {flags}"


def merged(key: str, lower: Any, higher: Any) -> Any:
    """Return the value of a key that two levels set: tables and lists add up by name, the higher wins."""
    if lower is None:
        return higher
    if key == "environment":
        return {**lower, **higher}
    if key == "secrets":
        return tuple(dict.fromkeys([*lower, *higher]))
    if key == "data":
        return tuple({folder.name: folder for folder in [*lower, *higher]}.values())
    return higher
