"""`provision`: site.yml on an inventory, by ansible-playbook itself, so that people see what they know."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from train_classifier import content
from train_classifier.errors import BadInput, ExitCode, NotReady
from train_classifier.playbook import ansible_environment


def provision(inventory: str | None, host: str | None, arguments: Sequence[str]) -> ExitCode:
    """Run site.yml and return 0, or 3 when a host could not be made ready."""
    root = content.root()
    if inventory is None:
        inventory = str(root / "inventory" / "local")
        if not Path(inventory).exists():
            raise BadInput(
                "provision needs --inventory FILE.",
                hint="inventory/example in the repository is one to copy.",
            )
    elif not Path(inventory).exists():
        raise BadInput(f"There is no inventory {inventory}.")
    program = Path(sys.executable).with_name("ansible-playbook")
    limit = ["--limit", host] if host else []
    command = [str(program), "-i", inventory, *limit, *arguments, str(root / "site.yml")]
    try:
        status = subprocess.run(
            command, env={**os.environ, **ansible_environment(root)}, check=False
        ).returncode
    except FileNotFoundError as error:
        raise NotReady(f"{program} is missing.", "Install train-classifier[provision].") from error
    except KeyboardInterrupt:
        return ExitCode.CANCELLED
    if status == 0:
        return ExitCode.TRAINED
    return ExitCode.BAD_INPUT if status in (1, 5) else ExitCode.NOT_READY
