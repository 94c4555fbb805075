"""Checks of a request that need no repository: the output, the secrets, the model's arguments."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train_classifier.core.job import ARCHIVE_MAGIC, MOST_STRING
from train_classifier.core.options import SETTINGS_FILE, show_option
from train_classifier.core.text import printable, quoted
from train_classifier.request import flags

_SECRET_WORDS = ("TOKEN", "PASSW", "SECRET", "API_KEY", "APIKEY", "PRIVATE_KEY", "CREDENTIAL")


def output(text: str, base: Path, checkout: bool = False) -> tuple[Path, list[str]]:
    """Return the archive's absolute path and what is wrong with it; relative paths start at `base`.

    An output that a `checkout` names must be in `base`, its top, and replaces nothing but an archive.
    """
    subject = f"output {quoted(text)}" + (f" of the repository's {SETTINGS_FILE}" if checkout else "")
    try:
        path = base / (text if checkout else Path(text).expanduser())
        # Resolve only the folder, not the name: an archive that is a symbolic link is replaced itself.
        folder = path.parent.resolve()
        # Check the place first: otherwise a message could ask for a folder that is refused afterwards.
        problems = _outside_problems(subject, path, folder, base) if checkout else []
        problems = problems or _output_problems(subject, text, path, folder)
        if checkout:
            problems = problems or _replaced_problems(subject, path)
        return folder / path.name, problems
    except (OSError, ValueError, RuntimeError) as error:
        return base / "artefacts.tar.gz", [f"{subject}: {getattr(error, 'strerror', None) or error}"]


def _output_problems(subject: str, text: str, path: Path, folder: Path) -> list[str]:
    if text.endswith("/") or path.is_dir():
        inside = quoted(text.rstrip("/") + "/artefacts.tar.gz")
        return [f"{subject} is a folder; name a file in it, such as {inside}"]
    # A missing folder is made when the archive arrives.
    present = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not present.is_dir():
        return [f"{subject}: {printable(str(present))} is not a folder"]
    if not os.access(present, os.W_OK | os.X_OK):
        return [f"{subject}: this user may not write to {printable(str(present))}"]
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return [f"{subject} is no regular file and will not be replaced"]
    # The received part of a failed job's archive has both the name and, twice, the job's id in its name.
    if len(os.fsencode(path.name)) > 170:
        return [f"{subject}: the name is longer than 170 bytes"]
    return []


def _outside_problems(subject: str, path: Path, folder: Path, top: Path) -> list[str]:
    # A path of a repository is not expanded: ~ would make a folder of that name.
    if not folder.is_relative_to(top) or (*folder.relative_to(top).parts, "")[0].startswith("~"):
        return [f"{subject} leads out of the repository; to have it there, give {show_option('output')}"]
    if ".git" in (folder / path.name).relative_to(top).parts:
        return [f"{subject} lies in git's folder; name another file"]
    return []


def _replaced_problems(subject: str, path: Path) -> list[str]:
    if path.is_symlink() or not path.exists():
        return []
    with path.open("rb") as file:
        start = file.read(2)
    if start and start != ARCHIVE_MAGIC:
        return [f"{subject} exists and is no archive: name another file, or remove it"]
    return []


def results_folders(folders: Iterable[str], top: Path) -> list[str]:
    """Return what is wrong with folders of results in the repository at `top`; missing ones are valid."""
    problems = []
    for folder in folders:
        path = top
        for part in folder.split("/"):
            path /= part
            try:
                is_result = path.is_dir() or (path == top / folder and path.is_file())
                is_wrong = path.is_symlink() or (path.exists() and not is_result)
            except OSError as error:
                problems.append(f"{show_option('artefacts')} {quoted(folder)}: {error.strerror}")
                break
            if is_wrong:
                kind = "a link" if path.is_symlink() else "no folder"
                where = printable(str(path.relative_to(top)))
                problems.append(
                    f"{show_option('artefacts')} {quoted(folder)}: {where} is {kind}; name a folder"
                )
                break
    return problems


def secrets(chosen: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the values of the named secrets, and problems; a problem never contains a value."""
    values: dict[str, str] = {}
    problems = []
    for name in chosen.get("secrets", ()):
        value = environ.get(name)
        if value is None:
            problems.append(f"secret {name} is not set in the environment: export it, or leave it out")
        elif not value.strip():
            problems.append(f"secret {name} is empty: set it, or leave it out")
        elif len(value.strip()) < flags.LEAST_SECRET:
            least = flags.LEAST_SECRET
            problems.append(f"secret {name} is shorter than {least} characters, too short to mask in a log")
        else:
            try:
                values[name] = flags.variable_value(name, value)
            except ValueError as error:
                problems.append(f"secret {name}: {error}")
        if name in chosen.get("environment", {}):
            problems.append(f"{name} is given both as a secret and as an environment variable: drop one")
    return values, problems


def arguments(values: Sequence[str]) -> list[str]:
    """Return what is wrong with the model's arguments."""
    problems = []
    for number, argument in enumerate(values, 1):
        if "\0" in argument:
            problems.append(f"argument {number} of the model holds a NUL")
        elif len(os.fsencode(argument)) >= MOST_STRING:
            problems.append(f"argument {number} of the model is over 128 KiB, the kernel's limit: use a file")
    return problems


def oddities(chosen: Mapping[str, Any], secret: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """Return warnings about values that are valid but probably not intended."""
    warnings = []
    environment = chosen.get("environment", {})
    if chosen.get("gpus") == 0 and chosen.get("min_vram"):
        warnings.append("min_vram has no effect without a GPU")
    for name, value in environment.items():
        if value and any(word in name.upper() for word in _SECRET_WORDS):
            warnings.append(
                f"{name} is recorded with the job in clear; {show_option('secrets')} {name} would mask it"
            )
    for name, value in secret.items():
        if len(value) >= 8 and any(value in text for text in (*arguments, *environment.values())):
            warnings.append(f"the value of secret {name} also stands in clear in an argument or variable")
    return warnings
