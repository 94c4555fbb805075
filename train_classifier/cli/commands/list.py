"""`train-classifier list`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command(name="list")
@parameters.inventory
@parameters.host
@click.option(
    "-a",
    "--all",
    "everything",
    is_flag=True,
    help="Every job, not only those at work and the newest twenty.",
)
@parameters.json_mode
def list_(inventory: str | None, host: str | None, everything: bool, json_mode: bool) -> int:
    """List jobs of all hosts of the inventory.

    \b
    A host that cannot be asked is named on standard error.

    \b
    Example:
      train-classifier list -i hosts.yml --all --json
    """
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    return jobs.show_list(hosts(inventory, host), everything, Console(json_mode=json_mode))
