"""Send the sources into the repository's mirror on the host."""

from typing import Any

from train_classifier import training
from train_classifier.action import Step
from train_classifier.reporting import Reporter
from train_classifier.training import Order
from train_classifier.transport import Host


class ActionModule(Step):
    """Second step of a training run."""

    def step(self, order: Order, host: Host, report: Reporter) -> dict[str, Any]:
        """Push; the host has changed."""
        training.push(host, order, report)
        return {"changed": True}
