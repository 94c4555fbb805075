"""The value of every option of a run: flag, variable, own settings, the repository's, in that order."""

import dataclasses
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train_classifier.core import options, regular_file
from train_classifier.core.errors import BadInput
from train_classifier.core.options import Checkout, Kind, show_option
from train_classifier.core.text import nearest, printable, quoted
from train_classifier.request import checkout, env_file, flags, settings_file
from train_classifier.request.flags import merged

#: The origin of a value.
FROM_FLAG, FROM_VARIABLE, FROM_OWN, FROM_FILE = "flag", "variable", "own file", "file"
_PREFIX = options.VARIABLE_PREFIX
#: Variables of this program that are not options.
_INTERNAL = ("HOST_JSON", "IMAGE_SOURCE", "JOB", "PROBE", "READER", "SINK")
#: How several items are separated in one variable.
_SEPARATORS = {Kind.FOLDERS: "\n,", Kind.PATHS: "\n,", Kind.NAMES: "\n, \t"}


@dataclasses.dataclass
class OptionValues:
    """The values that were set, by key, and the origin of each."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origin: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    #: The hosts of the caller's own settings file.
    hosts: tuple[str, ...] = ()

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a value; it overrides or extends that of a lower level."""
        self.values[key] = merged(key, self.values.get(key), value)
        self.origin[key] = origin


def gather(
    request: Mapping[str, Any],
    environ: Mapping[str, str],
    cwd: Path,
    model: str | None,
    repository: Path | None,
    own_settings: Path | None,
) -> OptionValues:
    """Return the values of a request and the problems of all levels."""
    values = OptionValues()
    if repository is not None:
        _from_file(values, repository, model)
    if own_settings is not None:
        _from_own_file(values, own_settings, repository, model)
    _from_variables(values, environ, cwd, repository)
    _from_flags(values, request, environ, cwd, repository)
    return values


def unread_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable with our prefix that sets nothing, because it is misspelt."""
    suffixes = [
        option.environment_variable.removeprefix(_PREFIX)
        for option in options.OPTIONS
        if not option.action_only
    ]
    warnings = []
    for name in sorted(environ):
        suffix = name.removeprefix(_PREFIX)
        if not name.startswith(_PREFIX) or suffix in suffixes or suffix in _INTERNAL:
            continue
        near = nearest(suffix.upper(), suffixes)
        hint = f"; did you mean {_PREFIX}{near}?" if near else ": no option has this name"
        warnings.append(f"{printable(name)} is not read{hint}")
    return warnings


def _from_file(values: OptionValues, repository: Path, model: str | None) -> None:
    try:
        settings = settings_file.load(repository)
    except BadInput as error:
        values.problems += error.problems
        return
    values.problems += settings_file.refusals(settings)
    values.warnings += settings_file.unknown_models(settings, checkout.models(repository))
    for key, value in settings.of(model).items():
        if settings_file.refusal("", key, value) is not None:
            continue
        if options.BY_NAME[key].checkout is Checkout.LISTED:
            value = tuple(dataclasses.replace(folder, from_checkout=True) for folder in value)
        values.put(key, value, FROM_FILE)


def _from_own_file(values: OptionValues, path: Path, repository: Path | None, model: str | None) -> None:
    # Without a file there, or a way to it, every setting is its default.
    if not os.path.lexists(path):
        return
    try:
        settings = settings_file.load_own(path, repository)
    except BadInput as error:
        values.problems += error.problems
        return
    values.hosts = settings.hosts
    for key, value in settings.of(model).items():
        values.put(key, value, FROM_OWN)


def _from_variables(
    values: OptionValues, environ: Mapping[str, str], cwd: Path, repository: Path | None
) -> None:
    values.warnings += unread_variables(environ)
    files = _items(environ.get(options.variable("env_file"), ""), "\n")
    _environment_files(values, files, environ, cwd, repository, FROM_VARIABLE)
    for key in flags.PARSED:
        name = options.variable(key)
        # An unset input of a workflow is an empty variable.
        text = environ.get(name, "").strip() if key != "environment" else environ.get(name, "")
        if not text.strip():
            continue
        if key == "environment":
            variables, problems = env_file.parse(os.fsencode(text), name, environ)
            values.problems += problems
            values.put(key, variables, FROM_VARIABLE)
            continue
        separators = _SEPARATORS.get(options.BY_NAME[key].kind)
        _parse(values, key, _items(text, separators) if separators else text, name, FROM_VARIABLE)


def _from_flags(
    values: OptionValues,
    request: Mapping[str, Any],
    environ: Mapping[str, str],
    cwd: Path,
    repository: Path | None,
) -> None:
    _environment_files(values, list(request.get("env_file") or ()), environ, cwd, repository, FROM_FLAG)
    for key in flags.PARSED:
        raw = request.get(key)
        if raw is None or (options.BY_NAME[key].kind in options.LISTS and not raw):
            continue
        if key == "environment" and not isinstance(raw, Mapping):
            table, problems = _assignments(raw, environ)
            values.problems += problems
            values.put(key, table, FROM_FLAG)
            continue
        _parse(values, key, dict(raw) if isinstance(raw, Mapping) else raw, show_option(key), FROM_FLAG)


def _parse(values: OptionValues, key: str, raw: Any, label: str, origin: str) -> None:
    # Parse each item separately, so that one bad item does not hide the others and their problems.
    listed = options.BY_NAME[key].kind in _SEPARATORS
    parts = [[item] for item in raw] if listed and isinstance(raw, list | tuple) else [raw]
    items: list[Any] = []
    for part in parts:
        try:
            parsed = flags.parse(key, part)
        except ValueError as error:
            values.problems.append(f"{label}: {error}")
            continue
        if key == "data" and {folder.name for folder in parsed} & {folder.name for folder in items}:
            values.problems.append(f"{label}: data name {quoted(parsed[0].name)} is given twice")
        if listed:
            items.extend(parsed)
        else:
            values.put(key, parsed, origin)
    if items:
        values.put(key, tuple(items), origin)


def _assignments(raw: Any, environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that `--env K=V` and `--env K` (the caller's own value) set."""
    variables, problems = {}, []
    for item in raw:
        name, equals, value = item.partition("=")
        try:
            flags.variable(name)
            if not equals and name not in environ:
                raise ValueError(f"{name} has no value, and none in the environment; write {name}=VALUE")
            variables[name] = flags.variable_value(name, value if equals else environ[name])
        except ValueError as error:
            problems.append(f"{show_option('environment')}: {error}")
    return variables, problems


def _environment_files(
    values: OptionValues,
    names: list[str],
    environ: Mapping[str, str],
    cwd: Path,
    repository: Path | None,
    origin: str,
) -> None:
    for name in names:
        label = f"{show_option('env_file')} {quoted(name)}"
        try:
            path = cwd / Path(name).expanduser()
            in_checkout = repository is not None and _is_in(path, repository)
            content = regular_file.read(path, env_file.MOST_BYTES, pipe=True)
        except (OSError, ValueError, RuntimeError) as error:
            values.problems.append(f"{label}: {getattr(error, 'strerror', None) or error}")
            continue
        variables, problems = env_file.parse(content, label, None if in_checkout else environ)
        values.problems += problems
        values.put("environment", variables, origin)


def _is_in(path: Path, repository: Path) -> bool:
    """Return whether a file is in the repository. Raises ValueError for a link in it that leads out."""
    real = Path(os.path.realpath(path)).is_relative_to(repository)
    folder = Path(os.path.realpath(path.parent))
    if not real and (
        folder.is_relative_to(repository) or Path(os.path.normpath(path)).is_relative_to(repository)
    ):
        raise ValueError("leads out of the repository by a link; name the file itself")
    return real


def _items(text: str, separators: str) -> list[str]:
    for separator in separators:
        text = text.replace(separator, "\n")
    return [item.strip() for item in text.split("\n") if item.strip()]


def split_arguments(text: str) -> tuple[str, ...]:
    """Return the model's arguments from one line, split as a shell would. Raises BadInput."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BadInput(f"{options.variable('arguments')}: {str(error).lower()}") from error
