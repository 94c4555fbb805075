"""Fetches artefacts.tar.gz, verifies it, and reports how the job ended."""

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
    """Last step of a training run. Fails with the job's own reason if it did not end well."""

    def step(self, order: Order, host: RemoteHost, report: Reporter) -> dict[str, Any]:
        """Fetch the archive, also that of a failed job."""
        if order.detach:
            return {"skipped": True}
        result = self._task.args.get("result")
        if not result:
            result = host.call({"verb": "status", "id": order.spec.id})["result"]
        path = order.archive_path(result)
        steps.fetch(host, order.spec.id, result, path, report, order.patience_s)
        return {"changed": True, "job": order.spec.id, "path": str(path)}
