"""`train-classifier status`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command()
@parameters.job_or_last
@parameters.watch
@parameters.inventory
@parameters.host
@parameters.json_mode
def status(job: str, watch: bool, inventory: str | None, host: str | None, json_mode: bool) -> int:
    """Show a job's state, phases and result.

    \b
    JOB is the id of a job or group, a beginning of it, or last, the default.

    \b
    Example:
      train-classifier status last
    """
    from train_classifier.cli import job_display
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    targets = hosts(inventory, host)
    if watch:
        from train_classifier.cli.runs.watch import repeat

        return repeat(lambda console: job_display.show_status(targets, job, console), json_mode)
    return job_display.show_status(targets, job, Console(json_mode=json_mode))
