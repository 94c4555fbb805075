"""`train-classifier board`."""

import rich_click as click

from train_classifier.cli import parameters


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"{text!r} is no port, such as 6006")
    return int(text)


@click.command()
@click.argument("jobs", metavar="[JOB…]", nargs=-1)
@click.option(
    "--port", metavar="PORT", help="The port of this machine. [default: 6006, or the next free one]"
)
@parameters.inventory
@parameters.host
def board(jobs: tuple[str, ...], port: str | None, inventory: str | None, host: str | None) -> int:
    """Show jobs in TensorBoard, running or finished, until Ctrl-C.

    \b
    Their event files are copied to this machine, again every few seconds while
    a job runs, and your own tensorboard shows the copies: no port is opened on
    the host. JOB is the id of a job or group, a beginning of it, or last, the
    default.

    \b
    Example:
      train-classifier board last
    """
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.inside import tensorboard

    (wanted,) = parameters.parse_values(("--port", _port, port))
    return tensorboard.show(hosts(inventory, host), jobs or ("last",), wanted, Console())
