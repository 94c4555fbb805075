"""The hosts that a command asks."""

from train_classifier import inventory as inventories
from train_classifier.transport import Host


def hosts(inventory: str | None, host: str | None) -> list[Host]:
    """Return the hosts of the inventory, or those named. Ctrl-C does not reach their connections."""
    return [target.connect(own_session=True) for target in inventories.hosts(inventory, host)]
