"""`train-classifier report`."""

import rich_click as click

from train_classifier.cli import parameters


@click.command()
@parameters.job_or_last
@click.option("-o", "--output", metavar="FILE", help="Write the report as one HTML page.")
@click.option("--open", "is_opened", is_flag=True, help="Show it in the browser.")
@parameters.inventory
@parameters.host
@parameters.json_mode
def report(
    job: str,
    output: str | None,
    is_opened: bool,
    inventory: str | None,
    host: str | None,
    json_mode: bool,
) -> int:
    """Show how a job went: outcome, metrics, curves, use, facts, earlier runs.

    \b
    JOB is a job's id, a unique beginning of it, or last, the default; or the
    path of an archive, for which no host is asked.

    \b
    Example:
      train-classifier report last --open
    """
    from pathlib import Path

    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.runs import job_report

    # No id has these.
    is_archive = bool(set("./") & set(job))
    shown = (
        job_report.from_archive(Path(job))
        if is_archive
        else job_report.from_host(hosts(inventory, host), job)
    )
    return job_report.show(shown, output, is_opened, Console(json_mode=json_mode))
