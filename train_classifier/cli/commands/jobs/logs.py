"""`train-classifier logs`."""

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core.errors import ExitCode


@click.command()
@parameters.job_or_last
@click.option("-f", "--follow", is_flag=True, help="Until the job ends; Ctrl-C only leaves.")
@parameters.inventory
@parameters.host
def logs(job: str, follow: bool, inventory: str | None, host: str | None) -> int:
    """Write a job's log to standard output: its bytes, nothing added.

    \b
    JOB is a job's id, a unique beginning of it, or last, the default.

    \b
    Example:
      train-classifier logs -f last | grep loss
    """
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    try:
        patience = parameters.patience_s()
        return jobs.show_logs(hosts(inventory, host), job, follow, patience, Console(quiet=True))
    except KeyboardInterrupt:
        return ExitCode.OUT_OF_TOUCH if follow else ExitCode.CANCELLED
