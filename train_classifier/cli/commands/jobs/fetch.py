"""`train-classifier fetch`."""

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.request import units


@click.command()
@parameters.job_or_last
@parameters.output
@click.option("--max-size", metavar="SIZE", help="Pack artefacts that stayed on the host up to this size.")
@parameters.inventory
@parameters.host
@parameters.json_mode
def fetch(
    job: str,
    output: str | None,
    max_size: str | None,
    inventory: str | None,
    host: str | None,
    json_mode: bool,
) -> int:
    """Bring the archive of a finished job; what stayed on the host is packed first.

    \b
    JOB is the id of a job or group, a beginning of it, or last, the default.

    \b
    Example:
      train-classifier fetch 20260131-120000-0123abcd -o results.tar.gz
    """
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    destination, patience = jobs.find_output(output), parameters.patience_s()
    (most,) = parameters.parse_values(("--max-size", units.size, max_size))
    return jobs.fetch(hosts(inventory, host), job, destination, most, patience, Console(json_mode=json_mode))
