"""`train-classifier cancel`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command()
@parameters.job
@parameters.inventory
@parameters.host
@parameters.json_mode
def cancel(job: str, inventory: str | None, host: str | None, json_mode: bool) -> int:
    """Stop a job. What it wrote so far is packed and can be fetched.

    \b
    JOB is the id of a job or group, a beginning of it, or last.

    \b
    Example:
      train-classifier cancel last
    """
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    return jobs.cancel(hosts(inventory, host), job, Console(json_mode=json_mode))
