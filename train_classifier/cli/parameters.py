"""Arguments and flags of the commands. Those of `train` are made from the table of options."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from train_classifier.core import options
from train_classifier.core.errors import BadInput
from train_classifier.core.options import Kind, Option
from train_classifier.request import flags

inventory = click.option(
    "-i", "--inventory", metavar="FILE", help="Ansible inventory of the hosts. Without one: this machine."
)
host = click.option("--host", metavar="HOST", help="A host of the inventory.")
json_mode = click.option(
    "--json", "json_mode", is_flag=True, help="One JSON value on standard output, all else on standard error."
)
watch = click.option("-w", "--watch", is_flag=True, help="Show it again every 2 seconds, until Ctrl-C.")
job = click.argument("job", metavar="JOB")
job_or_last = click.argument("job", metavar="[JOB]", default="last")


def click_parameter(option: Option) -> Callable[[Any], Any]:
    """Return the click parameter of an option; a value that is not given is None, or empty."""
    if option.positional:
        many = option.kind in options.LISTS
        complete = complete_model if option.name in ("model", "arguments") else None
        return click.argument(
            option.name,
            metavar=option.metavar,
            nargs=-1 if many else 1,
            required=False,
            shell_complete=complete,
        )
    default = f" [default: {option.default_text}]" if option.default_text else ""
    return click.option(
        *(option.flags or (option.flag,)),
        option.name,
        metavar=option.metavar or None,
        # Only True: with False click reads "--memory -1" as a flag without its value.
        is_flag=option.kind is Kind.BOOLEAN or None,
        multiple=option.kind in options.LISTS,
        help=option.help.replace("`", "") + default,
    )


output = click_parameter(options.BY_NAME["output"])


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option of a training run."""
    for option in reversed(options.OPTIONS):
        if not option.action_only:
            command = click_parameter(option)(command)
    return command


def complete_model(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete the names of models in the repository."""
    folder = str(context.params.get("repo") or ".")
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.startswith(incomplete)
                and entry.name.isidentifier()
                and Path(entry.path, "__main__.py").is_file()
            ]
    except OSError:
        return []
    return sorted(names)


def parse_values(*values: tuple[str, Callable[[str], Any], str | None]) -> list[Any]:
    """Return the values of (name, parser, text), None where not given. Raises BadInput with every problem."""
    results, problems = [], []
    for name, parse, text in values:
        try:
            results.append(None if text is None else parse(text))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise BadInput(*problems)
    return results


def patience_s() -> float:
    """Return the seconds that a command goes on without a connection, of the environment or the default."""
    variable = options.variable("patience")
    text = os.environ.get(variable) or None
    (seconds,) = parse_values((variable, lambda value: flags.parse("patience", value), text))
    return float(options.default("patience") if seconds is None else seconds)
