"""`train-classifier history`."""

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.request import units


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=parameters.complete_model)
@click.option("--metric", metavar="NAME", help="The metric that is compared. [default: of the newest run]")
@click.option("-n", "--runs", "most", metavar="N", help="The newest N runs. [default: 20]")
@parameters.inventory
@parameters.host
@parameters.json_mode
def history(
    model: str,
    metric: str | None,
    most: str | None,
    inventory: str | None,
    host: str | None,
    json_mode: bool,
) -> int:
    """Show the runs of a model on all hosts: the trend of a metric, and the best.

    \b
    Runs stay here after `clean` has removed their jobs.

    \b
    Example:
      train-classifier history mnist --metric val_accuracy
    """
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.runs import model_history

    (count,) = parameters.parse_values(("--runs", lambda text: units.whole(text, 1, 1000), most))
    console = Console(json_mode=json_mode)
    return model_history.show_history(hosts(inventory, host), model, metric, count or 20, console)
