"""`train-classifier attach`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command()
@parameters.job_or_last
@parameters.output
@parameters.inventory
@parameters.host
@parameters.json_mode
def attach(job: str, output: str | None, inventory: str | None, host: str | None, json_mode: bool) -> int:
    """Follow a job from its first byte, fetch its artefacts, and return its exit code. Ctrl-C only leaves.

    \b
    JOB is the id of a job or group, a beginning of it, or last, the default.

    \b
    Example:
      train-classifier attach last --output results.tar.gz
    """
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    destination, patience = jobs.find_output(output), parameters.patience_s()
    console = Console(json_mode=json_mode)
    return jobs.attach(hosts(inventory, host), job, destination, patience, console)
