"""`provision`: runs site.yml on an inventory with ansible-playbook itself, for its familiar output."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import rich_click as click

from train_classifier.ansible_bridge import content
from train_classifier.ansible_bridge import inventory as inventories
from train_classifier.ansible_bridge.playbook import ansible_environment
from train_classifier.cli import parameters
from train_classifier.cli.console import is_terminal
from train_classifier.core import options
from train_classifier.core.errors import BadInput, ExitCode, NotReady
from train_classifier.core.text import printable, quoted

#: The group whose hosts site.yml prepares.
GROUP = "training"
#: Arguments with which ansible-playbook changes nothing.
CHANGE_NOTHING = ("--check", "-C", "--syntax-check", "--list-hosts", "--list-tasks", "--list-tags")


@click.command(
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", metavar="[-- ARGS…]", nargs=-1, required=False)
@parameters.inventory
@parameters.host
@click.option("--yes", is_flag=True, help="Do not ask before this machine itself is changed.")
@click.pass_obj
def provision(
    after_dashes: Sequence[str] | None,
    arguments: Sequence[str],
    inventory: str | None,
    host: str | None,
    yes: bool,
) -> int:
    """Make the inventory's hosts training servers: run site.yml on them.

    \b
    Without an inventory this machine is made one; on a terminal you are asked
    first. ARGS are arguments for ansible-playbook.

    \b
    Example:
      train-classifier provision -i hosts.yml --host gpu-1 -- --check --diff
    """
    return run_site(inventory, host, [*arguments, *(after_dashes or ())], ask=not yes)


def run_site(
    inventory: str | None, host: str | None, arguments: Sequence[str], ask: bool = False
) -> ExitCode:
    """Run site.yml and return 0, 3 when a host could not be made ready, or 6 when the answer is no.

    With `ask`, and on a terminal, a change of this machine that no inventory names needs a yes.

    Raises BadInput when there is no inventory, or no host of the group `training` in it, and NotReady when
    this machine lacks what Ansible needs.
    """
    root = content.root()
    host = host if host is not None else os.environ.get(options.variable("host")) or None
    inventory_path = inventories.resolve(inventory, os.environ, Path.cwd())
    if inventory_path is None and host not in (None, inventories.THIS_MACHINE):
        raise BadInput(
            f"provision --host {quoted(host)} needs --inventory FILE, which says how to reach that host",
            hint="inventory/example in the repository is one to copy.",
        )
    is_named = inventory_path is not None
    if inventory_path is None:
        # A checkout has an inventory of this machine alone.
        inventory_path = str(root / "inventory" / "local")
        if not Path(inventory_path).exists():
            raise BadInput(
                "provision needs --inventory FILE.",
                hint="inventory/example in the repository is one to copy.",
            )
    names = inventories.host_names(inventory_path, f"{GROUP}:&{host}" if host else GROUP)
    if not names:
        place = f"{quoted(host)} in" if host else "in"
        raise BadInput(
            f"there is no host of group {GROUP} {place} inventory {quoted(inventory_path)}: "
            "nothing would be done",
            hint=f"Put the hosts into a group of that name: {GROUP}: {{hosts: {{gpu-1: }}}}",
        )
    hosts = ", ".join(map(printable, names)) if is_named else f"this machine, {socket.gethostname()}"
    sys.stderr.write(f"Hosts to change: {hosts}\n")
    sys.stderr.flush()
    ask = ask and not is_named and not set(arguments) & set(CHANGE_NOTHING)
    if ask and is_terminal(sys.stdin) and not click.confirm("No inventory is given. Go on?", err=True):
        return ExitCode.CANCELLED
    program = Path(sys.executable).with_name("ansible-playbook")
    limit = ["--limit", host] if host else []
    command = [str(program), "-i", inventory_path, *limit, *arguments, str(root / "site.yml")]
    try:
        status = subprocess.run(command, env=ansible_environment(root), check=False).returncode
    except FileNotFoundError as error:
        raise NotReady(f"{program} is missing.", "Install train-classifier again.") from error
    except KeyboardInterrupt:
        return ExitCode.CANCELLED
    if status == 0:
        return ExitCode.TRAINED
    return ExitCode.BAD_INPUT if status in (1, 5) else ExitCode.NOT_READY
