"""`train-classifier compare`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command()
@click.argument("jobs", metavar="JOB JOB…", nargs=-1, required=True)
@click.option("-a", "--all", "everything", is_flag=True, help="Also what is the same.")
@click.option("--html", metavar="FILE", help="Write it as one HTML page, with the curves.")
@parameters.inventory
@parameters.host
@parameters.json_mode
def compare(
    jobs: tuple[str, ...],
    everything: bool,
    html: str | None,
    inventory: str | None,
    host: str | None,
    json_mode: bool,
) -> int:
    """Show jobs side by side: settings, code, environment and metrics that differ.

    \b
    JOB is a job's id, a unique beginning of it, or last.

    \b
    Examples:
      train-classifier compare 20260131-1200 last
      train-classifier compare 20260131-1200 last --html compared.html
    """
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.runs import model_history

    return model_history.show_comparison(
        hosts(inventory, host), jobs, everything, Console(json_mode=json_mode), html
    )
