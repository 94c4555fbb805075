"""`train-classifier forward`."""

import rich_click as click

from train_classifier.cli import parameters


def _ports(text: str) -> tuple[int, int]:
    """Return the port of the container, and that of this machine. Raises ValueError."""
    local, _, port = text.rpartition(":")
    numbers = []
    for number in (port, local or port):
        if not (number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65535):
            raise ValueError(f"{text!r} is no port; write 6006, or 8080:6006 for port 8080 of this machine")
        numbers.append(int(number))
    return numbers[0], numbers[1]


@click.command()
@parameters.job
@click.argument("ports", metavar="[LOCAL:]PORT")
@parameters.inventory
@parameters.host
def forward(job: str, ports: str, inventory: str | None, host: str | None) -> int:
    """Show a port of a running job's container on this machine, until Ctrl-C.

    \b
    Over the connection of ssh: no port is opened on the host, and what listens
    in the container may do so on its loopback alone.

    \b
    Example:
      train-classifier forward last 6006
    """
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts
    from train_classifier.cli.inside import enter

    ((port, local_port),) = parameters.parse_values(("PORT", _ports, ports))
    return enter.forward(hosts(inventory, host), job, port, local_port, Console())
