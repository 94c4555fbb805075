"""`train-classifier fetch`."""

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core.errors import BadInput
from train_classifier.request import units


@click.command()
@parameters.job_or_last
@click.argument("paths", metavar="[PATH…]", nargs=-1)
@click.option(
    "-o", "--output", metavar="FILE|DIR", help="Where the archive goes, or the folder of single files."
)
@click.option("--force", is_flag=True, help="Replace single files that are here already.")
@click.option("--max-size", metavar="SIZE", help="Pack artefacts that stayed on the host up to this size.")
@parameters.inventory
@parameters.host
@parameters.json_mode
def fetch(
    job: str,
    paths: tuple[str, ...],
    output: str | None,
    force: bool,
    max_size: str | None,
    inventory: str | None,
    host: str | None,
    json_mode: bool,
) -> int:
    """Bring the archive of a finished job, or files of it; what stayed on the host is packed first.

    \b
    JOB is the id of a job or group, a beginning of it, or last, the default.
    PATH is a file or folder in the archive, such as artefacts/model.keras;
    it comes alone, below the current folder or the one in --output.

    \b
    Examples:
      train-classifier fetch 20260131-120000-0123abcd -o results.tar.gz
      train-classifier fetch last artefacts/model.keras job/manifest.json
    """
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    # No id has these.
    if set("./") & set(job):
        raise BadInput(
            f"{job} is no job", hint=f"Name the job before the path: train-classifier fetch last {job}"
        )
    console = Console(json_mode=json_mode)
    patience = parameters.patience_s()
    (most,) = parameters.parse_values(("--max-size", units.size, max_size))
    if paths:
        fetched = jobs.find_files(paths, output, force)
        return jobs.fetch_files(hosts(inventory, host), job, fetched, most, patience, console)
    if force:
        raise BadInput("--force is for single files: the archive replaces one of its name anyway")
    destination = jobs.find_output(output)
    return jobs.fetch(hosts(inventory, host), job, destination, most, patience, console)
