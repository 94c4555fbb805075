"""Check the request, then whether the host can take the job."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The collection's root, or that of the checkout, has the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train_classifier.ansible_bridge import event_socket, inventory
from train_classifier.ansible_bridge.action_base import TrainingAction
from train_classifier.controller import steps
from train_classifier.controller.events import Reporter
from train_classifier.controller.order import Order
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import SeveralHosts


class ActionModule(TrainingAction):
    """First step of a training run. From the command line the order is a file, otherwise it is made here."""

    # In check mode the request is checked too; the other steps are skipped.
    _supports_check_mode = True

    def order(self, task_vars: Mapping[str, Any], report: Reporter) -> Order:
        """Return the order; without a file of it, it is made from the role's variables."""
        hosts = task_vars.get("ansible_play_hosts_all") or []
        if len(hosts) > 1:
            raise SeveralHosts(
                f"{len(hosts)} hosts match, but one is needed: {', '.join(map(str, hosts[:10]))}.",
                hint="Name one: -e training_job_host=NAME",
            )
        target = self.target(task_vars)
        if isinstance(report, event_socket.SinkReporter):
            # The command line completes the order for this host; nothing on the host is changed before.
            report.ask({"host": dataclasses.asdict(target)})
        if self._task.args.get("request"):
            return super().order(task_vars, report)
        from train_classifier.request.build import TrainRequest, build

        values = {key: value for key, value in self._task.args.items() if value not in (None, "", [], {})}
        if "arguments" in values and isinstance(values["arguments"], list):
            values["arguments"] = [str(argument) for argument in values["arguments"]]
        plan = build(TrainRequest(**values), os.environ, resolve=False)
        for warning in plan.warnings:
            report.event("message", level="warning", text=warning)
        where = task_vars.get("inventory_file")
        flags = inventory.flags(str(where), target.name) if where else ""
        return dataclasses.replace(plan.order(), state_dir=target.state_dir, flags=flags)

    def step(self, order: Order, host: RemoteHost, report: Reporter) -> dict[str, Any]:
        """Check the host and pass the order on."""
        if self._task.check_mode:
            text = f"Check mode: the request is good; nothing was pushed to {host.name} and nothing was run."
            report.event("message", level="info", text=text)
            return {"request": order.to_json(), "pushed": False}
        answer = steps.preflight(host, order, report)
        return {
            "job": order.spec.id,
            "gpus": len(answer.get("gpus") or []),
            "pushed": answer["pushed"],
            "request": self._task.args.get("request") or order.to_json(),
        }
