"""`train` in a workflow run: a cancel has ten seconds, and it does not come from a terminal."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from train_classifier.ansible_bridge import inventory
from train_classifier.ansible_bridge.inventory import Target
from train_classifier.cli.console import Console
from train_classifier.cli.runs.training_run import TrainingRun
from train_classifier.controller.order import Order
from train_classifier.core.errors import Cancelled, ExitCode, TrainClassifierError

#: Seconds without a request after which the worker stops the job: on this machine, and over ssh.
LEASE_S, REMOTE_LEASE_S = 600.0, 3600.0
#: GitHub sends SIGINT, after 7.5 s SIGTERM, after 2.5 s more SIGKILL. Seconds after SIGINT until the step
#: leaves the artefacts on the host: the remaining time is needed to report that.
FETCH_S = 6.5
#: Part of the worker's message after the end of a lease.
LEASE_ENDED = "its controller is gone"
#: The beginning of the worker's note about cards that the model does not use.
GPU_IDLE = "the job has not used "
#: Seconds that a finished run waits for the check of the previous job.
PREVIOUS_JOB_S = 5.0


class Listener(Protocol):
    """The receiver of the events of the run."""

    def started(self, identifier: str) -> None:
        """The job is safe on its host."""

    def idle(self, note: str) -> None:
        """The model does not use a GPU that the job holds."""

    def cancelling(self) -> None:
        """A cancel has come."""


class StepRun(TrainingRun):
    """One `train` of a workflow's step."""

    leave_s = 1.2

    def __init__(
        self,
        order: Order,
        look: Callable[[], Target],
        secrets: Mapping[str, str],
        console: Console,
        listener: Listener,
    ) -> None:
        super().__init__(order, look, secrets, console)
        self._listener = listener
        self._inventory: str | None = None
        self._previous_job_check: threading.Thread | None = None

    def event(self, event: str, **fields: Any) -> None:
        """Receive an event, and pass those that the step waits for to the step."""
        super().event(event, **fields)
        if event == "message" and str(fields.get("text")).startswith(GPU_IDLE):
            self._listener.idle(str(fields["text"]))
        if event == "started":
            self._listener.started(self.job)
            # In a thread, so that the training does not wait for the check of the previous job.
            self._previous_job_check = threading.Thread(
                target=self._check_previous_job, daemon=True, name="previous-job"
            )
            self._previous_job_check.start()

    def _check_previous_job(self) -> None:
        """Warn about the previous job of the same model, if its controller was killed."""
        with contextlib.suppress(TrainClassifierError):
            jobs = self.host.call({"verb": "list"})["jobs"]
            earlier = [job for job in jobs if job["model"] == self.model and job["id"] < self.job]
            if not earlier or LEASE_ENDED not in (earlier[-1]["message"] or ""):
                return
            last = str(earlier[-1]["id"])
            spec = self.host.call({"verb": "status", "id": last})["spec"]
            if spec["repository"]["key"] == self.order.spec.repository.key:
                text = (
                    f"The last run of {self.model} was killed; its job {last} was stopped when its lease "
                    f"ran out. Its files are on {self.host.name}: {self._command('fetch', last)}"
                )
                self.console.event("message", level="warning", text=text)

    def _complete(self, target: Target) -> Order:
        """Set the job's lease, unless one was given or the job is detached.

        The host may come from an input or a setting of the repository; commands to type elsewhere need flags.
        """
        flags = "" if target.local else inventory.flags(self._inventory, target.name)
        order = dataclasses.replace(super()._complete(target), flags=flags)
        if order.spec.lease_s is not None or order.detach:
            return order
        lease = LEASE_S if target.local else REMOTE_LEASE_S
        return dataclasses.replace(order, spec=dataclasses.replace(order.spec, lease_s=lease))

    def run(self, inventory: str | None, limit: str | None) -> ExitCode:
        """Run, then remove the part file that an interrupted fetch left on this machine."""
        self._inventory = inventory
        code = super().run(inventory, limit)
        if self._previous_job_check is not None and code is not ExitCode.CANCELLED:
            self._previous_job_check.join(PREVIOUS_JOB_S)
        output = Path(self.order.output)
        output.with_name(f".{output.name}.{self.job}.part").unlink(missing_ok=True)
        return code

    def _stop(self, by: str) -> None:
        self._listener.cancelling()
        if not self.started and self._phase not in ("start", "follow"):
            super()._stop("the workflow run")
        self.console.say("Cancelled: stopping the job, then fetching its files.")
        self._stopping = threading.Thread(target=self._send_stop, args=("a workflow cancel",), daemon=True)
        self._stopping.start()
        timer = threading.Timer(FETCH_S, self._inbox.put, [("stop", by)])
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        stopping = self._stopping
        if stopping is not None:
            stopping.join(self.leave_s)
        fetch = self._command("fetch", self.job)
        if stopping is None or stopping.is_alive():
            raise Cancelled(
                f"The step ended before {self.host.name} confirmed the stop of the job. "
                f"The job stops within {self.order.spec.lease_s or 0:.0f} s, when its lease runs out.",
                f"Its files stay there: {fetch}",
            )
        raise Cancelled(
            "Cancelled; the job is being stopped, and its files were not fetched in time.",
            f"They stay on {self.host.name}: {fetch}",
        )
