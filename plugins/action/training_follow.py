"""Show the job's log as it appears, until the job is finished."""

from typing import Any

from train_classifier import training
from train_classifier.action import Step
from train_classifier.reporting import Reporter
from train_classifier.training import Order
from train_classifier.transport import Host


class ActionModule(Step):
    """Fourth step of a training run. A job that failed fails in the next step, after its archive came."""

    def step(self, order: Order, host: Host, report: Reporter) -> dict[str, Any]:
        """Follow, unless the order says to leave the job alone."""
        if order.detach:
            return {"skipped": True}
        result = training.follow(host, order, report)
        return {"result": result}
