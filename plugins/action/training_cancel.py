"""Stop a job: for people at ansible-playbook; the command line has `train-classifier cancel`."""

from collections.abc import Mapping
from typing import Any

from train_classifier import training
from train_classifier.action import Step
from train_classifier.reporting import Reporter
from train_classifier.repository import user_name
from train_classifier.training import Order
from train_classifier.transport import Host


class ActionModule(Step):
    """Stop the job named by `job`."""

    def order(self, task_vars: Mapping[str, Any], report: Reporter) -> Any:
        """Return nothing: stopping needs no order."""
        return None

    def step(self, order: Order, host: Host, report: Reporter) -> dict[str, Any]:
        """Ask the worker to stop the job."""
        answer = training.cancel(host, str(self._task.args["job"]), user_name())
        return {"changed": True, "job": answer["id"], "state": answer["state"]}
