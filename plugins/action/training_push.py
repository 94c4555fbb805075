"""Send the sources into the repository's mirror on the host."""

import sys
from pathlib import Path
from typing import Any

# The collection's root, or that of the checkout, has the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train_classifier.ansible_bridge.action_base import TrainingAction
from train_classifier.controller import steps
from train_classifier.controller.events import Reporter
from train_classifier.controller.order import Order
from train_classifier.controller.transport import RemoteHost


class ActionModule(TrainingAction):
    """Second step of a training run."""

    def step(self, order: Order, host: RemoteHost, report: Reporter) -> dict[str, Any]:
        """Push the sources and report a change of the host."""
        steps.push(host, order, report)
        return {"changed": True}
