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
@click.option("--all-users", is_flag=True, help="Also the waiting and running jobs of other users.")
@parameters.watch
@parameters.json_mode
def list_(
    inventory: str | None,
    host: str | None,
    everything: bool,
    all_users: bool,
    watch: bool,
    json_mode: bool,
) -> int:
    """List jobs of all hosts of the inventory.

    \b
    Of another user's job only state, model, user and GPUs are shown, and only
    while it waits for a GPU or has a container.

    \b
    A host that cannot be asked is named on standard error.

    \b
    Example:
      train-classifier list -i hosts.yml --all --json
    """
    from train_classifier.cli import job_display
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    targets = hosts(inventory, host)
    if watch:
        from train_classifier.cli.runs.watch import repeat

        return repeat(
            lambda console: job_display.show_list(targets, everything, all_users, console), json_mode
        )
    return job_display.show_list(targets, everything, all_users, Console(json_mode=json_mode))
