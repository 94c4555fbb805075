"""The commands, flags and settings in the sentences of the docs are valid. Lines of commands: cli/test_use.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from train_classifier.cli import app
from train_classifier.core import options
from train_classifier.request import flags, settings_file

ROOT = Path(__file__).parents[3]
#: All pages but those for developers, which name flags of many programs.
PAGES = [
    ROOT / "README.md",
    ROOT / ".agents/skills/train-classifier/SKILL.md",
    *(page for page in (ROOT / "docs").glob("*.md") if page.stem not in ("architecture", "performance")),
]
COMMANDS = {name: app.app.get_command(click.Context(app.app), name) for name in app.COMMANDS}
#: Flags of other programs: ansible-playbook, scripts/test, GitHub's runner.
FOREIGN = {"--check", "--diff", "--tags", "--ask-vault-pass", "--full", "--disableupdate"}
#: Values that stand for one of the reader's own.
PLACEHOLDER = re.compile(r"[A-Z]{2}|[|=@…]|K=V|3\.N|\bN\b")


def spans(page: Path) -> list[str]:
    """The code inside the sentences of a page."""
    text = re.sub(r"^```[^`]*^```$|^    .*$", "", page.read_text(), flags=re.MULTILINE)
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", text)]


def cases(pattern: str) -> list[object]:
    places = {(page.name, span) for page in PAGES for span in spans(page) if re.match(pattern, span)}
    return [pytest.param(span, id=f"{name}: {span}") for name, span in sorted(places)]


@pytest.mark.parametrize("command", cases(r"train-classifier [a-z]"))
def test_command_has_these_arguments(command: str) -> None:
    own, _ = app._split(shlex.split(command)[1:])
    name, *arguments = own
    with COMMANDS[name].make_context(name, arguments):
        pass


@pytest.mark.parametrize("flag", cases(r"--?[a-z]"))
def test_flag_exists_and_takes_the_value(flag: str) -> None:
    name, _, value = flag.partition(" ")
    if name in FOREIGN or re.match(r"-[a-z]{2}|-e ", flag):
        return
    commands = [
        one for command in COMMANDS.values() for one in (command, *getattr(command, "commands", {}).values())
    ]
    parameters = {option: each for command in commands for each in command.params for option in each.opts}
    assert name in parameters, f"no command has {name}"
    option = options.BY_NAME.get(parameters[name].name or "")
    if value and option and not PLACEHOLDER.search(value):
        flags.parse(option.name, [value] if option.kind in options.LISTS else value)


@pytest.mark.parametrize("line", cases(r"[a-z_]+ = "))
def test_setting_is_accepted(line: str, tmp_path: Path) -> None:
    (tmp_path / options.SETTINGS_FILE).write_text(f"[defaults]\n{line}\n")
    settings = settings_file.load(tmp_path)
    assert settings.of("m") and not list(settings_file.refusals(settings))
