"""The hosts that a command uses."""

import os
from pathlib import Path

from train_classifier.ansible_bridge import inventory as inventories
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import options


def hosts(inventory: str | None, host: str | None) -> list[RemoteHost]:
    """Return the hosts of the inventory, or those named. Ctrl-C does not reach their connections."""
    inventory_path = None
    if inventory is not None:
        inventory_path = inventories.source(inventory, os.environ, Path.cwd())
    flags = inventories.flags(inventory_path, host)
    host = host if host is not None else os.environ.get(options.variable("host")) or None
    targets = inventories.hosts(inventory, host)
    return [target.connect(own_session=True, flags=flags) for target in targets]
