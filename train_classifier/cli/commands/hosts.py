"""`train-classifier hosts`: the hosts of the caller's own settings file."""

import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core.errors import BadInput, ExitCode
from train_classifier.core.text import quoted


@click.group()
def hosts() -> None:
    """Name the hosts that commands use where no inventory is given.

    \b
    They are kept in your own settings file, ~/.config/train-classifier/config.toml.
    With several of them a job goes to the first that has a free GPU.

    \b
    Examples:
      train-classifier hosts add gpu-1
      train-classifier train mnist
    """


@hosts.command()
@click.argument("name", metavar="HOST")
@click.option("--unchecked", is_flag=True, help="Also a host that is not ready.")
@parameters.json_mode
def add(name: str, unchecked: bool, json_mode: bool) -> int:
    """Add a host that ssh knows, once it is ready: `doctor` finds no fault.

    \b
    With --json it prints what doctor prints; ready is null if nothing was checked.

    \b
    Example:
      train-classifier hosts add gpu-1
    """
    from train_classifier.ansible_bridge import inventory
    from train_classifier.cli.commands.doctor import check_hosts
    from train_classifier.cli.console import Console

    if not inventory.PLAIN_HOST.match(name):
        hint = "Who logs in, and on which port, belongs in ~/.ssh/config: Host NAME, then User and Port."
        raise BadInput(
            f"{quoted(name)} is not the name of one host", hint=hint if set("@:") & set(name) else None
        )
    if inventory.ssh_host_inventory(name) is None:
        raise BadInput(f"ssh knows no host {name}, in its configuration or by DNS", hint=f"try: ssh {name}")
    path = _own_file()
    console = Console(json_mode=json_mode)
    if not unchecked:
        targets = inventory.hosts(f"{name},", name)
        code = check_hosts([target.connect(own_session=True) for target in targets], "auto", console)
        if code:
            console.say(
                f"{name} was not added. A host that can be reached becomes ready by: "
                f"train-classifier provision --inventory {name},"
            )
            return code
    elif json_mode:
        console.out(json.dumps({"ready": None, "exit_code": 0, "hosts": []}))
    added = _change(path, lambda names: names if name in names else [*names, name])
    console.say(
        f"{name} is in {path}: train-classifier train MODEL" if added else f"{name} was there already"
    )
    return ExitCode.TRAINED


@hosts.command()
@click.argument("name", metavar="HOST")
def remove(name: str) -> int:
    """Take a host out of the list; its jobs and what is on it stay.

    \b
    Example:
      train-classifier hosts remove gpu-1
    """
    from train_classifier.cli.console import Console

    path = _own_file()
    if not _change(path, lambda names: [each for each in names if each != name]):
        raise BadInput(f"{quoted(name)} is not in {path}")
    Console().say(f"{name} is no longer in {path}")
    return ExitCode.TRAINED


@hosts.command(name="list")
@parameters.json_mode
def list_(json_mode: bool) -> int:
    """Print the names, one a line; `doctor` says how they are.

    \b
    Example:
      train-classifier hosts list
    """
    from train_classifier.cli.console import Console
    from train_classifier.request import settings_file

    names = settings_file.load_own(_own_file()).hosts
    console = Console(json_mode=json_mode)
    if json_mode:
        console.out(json.dumps(list(names)))
    for name in () if json_mode else names:
        console.out(name)
    if not names:
        console.say("No hosts: jobs run on this machine. Add one: train-classifier hosts add HOST")
    return ExitCode.TRAINED


def _own_file() -> Path:
    from train_classifier.request.flags import own_settings

    path = own_settings(os.environ)
    if path is None:
        raise BadInput("there is no home for your own settings file: HOME is not set")
    return path


def _change(path: Path, change: Callable[[list[str]], list[str]]) -> bool:
    """Change the list of hosts and nothing else of the file; return whether it changed.

    Raises BadInput for a file that cannot be read or written, and for one that is not the caller's.
    """
    import tomlkit

    from train_classifier.request import settings_file

    names = list(settings_file.load_own(path).hosts)
    changed = change(names)
    if changed == names:
        return False
    # Dotfiles are often links to files kept elsewhere.
    real = Path(os.path.realpath(path))
    try:
        real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = real.read_text(encoding="utf-8-sig") if real.exists() else ""
        document = tomlkit.parse(before)
        document.pop("hosts", None)
        # A plain key stands before the first table.
        text = f"hosts = {json.dumps(changed)}\n" if changed else ""
        rest = tomlkit.dumps(document).lstrip("\n")
        text += ("\n" if text and rest else "") + rest
        mode = stat.S_IMODE(real.stat().st_mode) if real.exists() else 0o600
        with tempfile.TemporaryDirectory(dir=real.parent) as folder:
            new = Path(folder, real.name)
            new.write_text(text, encoding="utf-8")
            new.chmod(mode)
            new.replace(real)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from error
    return True
