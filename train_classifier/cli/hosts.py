"""The hosts that a command uses."""

import os
from pathlib import Path

from train_classifier.ansible_bridge import inventory as inventories
from train_classifier.cli.console import Console
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import options
from train_classifier.request import precedence


def hosts(inventory: str | None, host: str | None) -> list[RemoteHost]:
    """Return the hosts of the inventory, or those named. Ctrl-C does not reach their connections.

    Warns of variables with our prefix that no command reads.
    """
    for warning in precedence.unread_variables(os.environ):
        Console().event("message", level="warning", text=warning)
    named_host = host
    host = host if host is not None else os.environ.get(options.variable("host")) or None
    inventory_path = inventories.resolve(inventory, os.environ, Path.cwd(), host)
    flags = inventories.flags(inventory_path if inventory is not None else None, named_host)
    targets = inventories.hosts(inventory_path, host)
    return [target.connect(own_session=True, flags=flags) for target in targets]
