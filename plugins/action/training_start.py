"""Hand the job to the host's own worker. From here on it survives the controller."""

import os
from typing import Any

from train_classifier import sink, training
from train_classifier.action import Step
from train_classifier.errors import BadInput, Cancelled
from train_classifier.reporting import Reporter
from train_classifier.training import Order
from train_classifier.transport import Host


class ActionModule(Step):
    """Third step of a training run."""

    def step(self, order: Order, host: Host, report: Reporter) -> dict[str, Any]:
        """Start the job with the values of its secrets, which are on no disk and on no command line."""
        if isinstance(report, sink.SinkReporter) and not report.ask("start"):
            # Killing us would not take back what is already on its way to the host.
            raise Cancelled("Cancelled before the job was started.")
        names = order.spec.secrets
        if names and isinstance(report, sink.SinkReporter):
            secrets = report.ask("secrets")
        else:
            missing = [name for name in names if name not in os.environ]
            if missing:
                raise BadInput(*(f"secret {name} is not set in the environment" for name in missing))
            secrets = {name: os.environ[name] for name in names}
        training.start(host, order, secrets, report)
        return {"changed": True, "job": order.spec.id}
