"""`train` under a workflow run: a cancel has ten seconds, and whoever gave it is no person at a terminal."""

import dataclasses
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from train_classifier.cli.console import Console
from train_classifier.cli.play import Play
from train_classifier.cli.train import Run
from train_classifier.errors import Cancelled, ExitCode
from train_classifier.inventory import Target
from train_classifier.training import Order

#: Seconds without a look after which the worker stops the job, on this machine and over ssh.
LEASE_S, REMOTE_LEASE_S = 600.0, 3600.0
#: GitHub sends SIGINT, after 7.5 s SIGTERM, after 2.5 s more SIGKILL. Seconds from the first of them after
#: which the artefacts are left on the host: what remains is for saying so.
COLLECT_S = 6.5


class Listener(Protocol):
    """Who wants to know what the run does."""

    def started(self, identifier: str) -> None:
        """The job is safe on its host."""

    def cancelling(self) -> None:
        """A cancel has come."""


class StepRun(Run):
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

    def event(self, event: str, **fields: Any) -> None:
        """Take an event, and tell the step of those that it waits for."""
        super().event(event, **fields)
        if event == "started":
            self._listener.started(self.job)

    def _complete(self, target: Target) -> Order:
        """Give the job a lease, unless one was given or nobody is to look after it."""
        order = super()._complete(target)
        if order.spec.lease_s is not None or order.detach:
            return order
        lease = LEASE_S if target.local else REMOTE_LEASE_S
        return dataclasses.replace(order, spec=dataclasses.replace(order.spec, lease_s=lease))

    def run(self, play: Play, inventory: str | None, limit: str | None) -> ExitCode:
        """Run, then remove what leaving in the middle of it left on this side."""
        self._inventory = inventory
        code = super().run(play, inventory, limit)
        output = Path(self.order.output)
        output.with_name(f".{output.name}.{self.job}.part").unlink(missing_ok=True)
        return code

    def _stop(self, by: str) -> None:
        self._listener.cancelling()
        if not self.started and self._phase not in ("start", "follow"):
            super()._stop("the workflow run")
        self.console.say("Cancelled: stopping the job, then collecting what it left.")
        self._stopping = threading.Thread(target=self._send_stop, args=("a workflow cancel",), daemon=True)
        self._stopping.start()
        timer = threading.Timer(COLLECT_S, self._inbox.put, [("stop", by)])
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        stopping = self._stopping
        if stopping is not None:
            stopping.join(self.leave_s)
        fetch = " ".join(["train-classifier", "fetch", self.job, *self._where])
        if stopping is None or stopping.is_alive():
            raise Cancelled(
                f"Left in time for the cancel; {self.host.name} has not confirmed the stop. "
                f"It stops by itself within {self.order.spec.lease_s or 0:.0f} s, when its lease runs out.",
                f"What it leaves stays there for 7 days: {fetch}",
            )
        raise Cancelled(
            "Cancelled; the job is being stopped, and what it leaves was not collected in time.",
            f"It stays on {self.host.name} for 7 days: {fetch}",
        )

    @property
    def _where(self) -> list[str]:
        """Flags by which another command finds the host."""
        if self.host.ssh is None or self._inventory is None:
            return []
        return ["--inventory", shlex.quote(self._inventory), "--host", shlex.quote(self.host.name)]
