"""`train-classifier clean`."""

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core.text import quoted
from train_classifier.request import units


def _age(text: str) -> float:
    """Return the seconds of an age. It needs a unit, because a removed job does not come back."""
    seconds = units.duration(text)
    if seconds and text.strip()[-1].isdigit():
        raise ValueError(f"{quoted(text)} has no unit; write {text.strip()}d for days, or h, m, s")
    return seconds


@click.command()
@click.option("--older", metavar="TIME", help="Remove finished jobs older than this, as 7d.")
@click.option(
    "--keep-environments", metavar="SIZE", help="Most that environments and caches may keep, as 20GiB."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@parameters.inventory
@parameters.host
@parameters.json_mode
def clean(
    older: str | None,
    keep_environments: str | None,
    dry_run: bool,
    inventory: str | None,
    host: str | None,
    json_mode: bool,
) -> int:
    """Remove what finished and dead jobs left on the hosts, and nothing else.

    \b
    Without --older no finished job is removed, without --keep-environments
    no environment and no cache: only what jobs left behind by being killed.

    \b
    Example:
      train-classifier clean --older 7d --keep-environments 9GiB --dry-run
    """
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    seconds, keep = parameters.parse_values(
        ("--older", _age, older), ("--keep-environments", units.size, keep_environments)
    )
    return jobs.clean(hosts(inventory, host), seconds, keep, dry_run, Console(json_mode=json_mode))
