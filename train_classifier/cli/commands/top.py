"""`train-classifier top`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command()
@parameters.watch
@parameters.inventory
@parameters.host
@parameters.json_mode
def top(watch: bool, inventory: str | None, host: str | None, json_mode: bool) -> int:
    """Show each card of all hosts: its use, the job that has it, and who waits.

    \b
    Jobs of all users, as far as every user of Docker may see them.

    \b
    Example:
      train-classifier top --watch
    """
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.runs import card_display

    targets = hosts(inventory, host)
    if watch:
        from train_classifier.cli.runs.watch import repeat

        return repeat(lambda console: card_display.show(targets, console), json_mode)
    return card_display.show(targets, Console(json_mode=json_mode))
