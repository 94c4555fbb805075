"""`train-classifier shell`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command()
@parameters.job_or_last
@parameters.inventory
@parameters.host
def shell(job: str, inventory: str | None, host: str | None) -> int:
    """Open a shell in the container of a running job.

    \b
    JOB is a job's id, a unique beginning of it, or last, the default.

    \b
    Example:
      train-classifier shell last
    """
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.inside import enter

    return enter.run_inside(hosts(inventory, host), job, enter.SHELL)
