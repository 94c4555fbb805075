"""`train-classifier exec`."""

from collections.abc import Sequence

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core.errors import BadInput


@click.command(name="exec")
@parameters.job
@parameters.inventory
@parameters.host
@click.pass_obj
def exec_(after_dashes: Sequence[str] | None, job: str, inventory: str | None, host: str | None) -> int:
    """Run a command in the container of a running job, in this terminal.

    \b
    The command runs as the job does, with its GPUs and within its limits, and
    without its secrets. Its own exit status is returned.

    \b
    Example:
      train-classifier exec last -- nvidia-smi
    """
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.inside import enter

    if not after_dashes:
        raise BadInput("no command is given", hint=f"train-classifier exec {job} -- COMMAND")
    return enter.run_inside(hosts(inventory, host), job, after_dashes)
