"""Stops a job, for users of ansible-playbook; the command line has `train-classifier cancel`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The collection's root, or that of the checkout, has the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train_classifier.ansible_bridge.action_base import TrainingAction
from train_classifier.controller import steps
from train_classifier.controller.events import Reporter
from train_classifier.controller.order import Order
from train_classifier.controller.transport import RemoteHost
from train_classifier.request.checkout import user_name


class ActionModule(TrainingAction):
    """Stop the job named by `job`."""

    def order(self, task_vars: Mapping[str, Any], report: Reporter) -> Any:
        """Return nothing: stopping needs no order."""
        return None

    def step(self, order: Order, host: RemoteHost, report: Reporter) -> dict[str, Any]:
        """Ask the worker to stop the job."""
        answer = steps.cancel(host, str(self._task.args["job"]), user_name())
        return {"changed": True, "job": answer["id"], "state": answer["state"]}
