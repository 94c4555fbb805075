"""Submits the job to the worker on the host, and shows its log until it is finished."""

import os
import sys
from pathlib import Path
from typing import Any

# The collection's root, or that of the checkout, has the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train_classifier.ansible_bridge import event_socket
from train_classifier.ansible_bridge.action_base import TrainingAction
from train_classifier.controller import steps
from train_classifier.controller.events import Reporter
from train_classifier.controller.order import Order
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import BadInput, Cancelled


class ActionModule(TrainingAction):
    """Third step of a training run. A failed job fails in the next step, after its archive is fetched."""

    def step(self, order: Order, host: RemoteHost, report: Reporter) -> dict[str, Any]:
        """Start the job with the values of its secrets, which are on no disk and on no command line.

        Then follow it, unless the order says to detach. Both are done in one step and over one connection,
        because another step or connection takes more time than a worker needs to start.
        """
        if isinstance(report, event_socket.SinkReporter) and not report.ask("start"):
            # Killing this process later would not cancel a request that is already on its way to the host.
            raise Cancelled("Cancelled before the job was started.")
        names = order.spec.secrets
        if names and isinstance(report, event_socket.SinkReporter):
            secrets = report.ask("secrets")
        else:
            missing = [name for name in names if name not in os.environ]
            if missing:
                raise BadInput(*(f"secret {name} is not set in the environment" for name in missing))
            secrets = {name: os.environ[name] for name in names}
        answers = steps.start(host, order, secrets, report)
        answer = {"changed": True, "job": order.spec.id}
        return answer if order.detach else {**answer, "result": steps.follow(host, order, answers, report)}
