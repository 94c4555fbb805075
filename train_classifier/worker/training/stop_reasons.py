"""Reasons to end a job early: a cancel, an expired lease, a signal to the worker. The first cause wins."""

import os
import signal
import time
from typing import Any, Callable, Optional, Protocol

from train_classifier.core.errors import Cancelled, TimedOut, TrainClassifierError
from train_classifier.core.job import JobSpec
from train_classifier.core.options import show_option
from train_classifier.worker.state.files import change_mark
from train_classifier.worker.state.store import Job

#: Seconds between two checks of the job's folder.
LOOK_S = 0.1
#: Seconds before Slurm's time limit, beside the grace, from which on a signal means that limit.
SLURM_WARNING_S = 150.0


class NodeGroup(Protocol):
    """The other workers of a job that Slurm runs on several nodes."""

    #: The place of this worker; that of the first node, whose results are the job's, is 0.
    rank: int
    #: Variables of the model by which frameworks find each other.
    variables: dict[str, str]

    def failure(self) -> Optional[TrainClassifierError]:
        """Return the error of another worker that ended badly, None while there is none."""

    def stop(self, reason: str) -> None:
        """Ask the others to stop; idempotent."""

    def wait_ready(self, say: Callable[[str], None], check: Callable[[], None]) -> None:
        """Wait until every worker can begin to train."""

    def end(
        self, error: Optional[TrainClassifierError], check: Callable[[], None]
    ) -> Optional[TrainClassifierError]:
        """Wait for the end of the others, and return the error that ended the job."""


class Watch:
    """Checks for reasons to stop; every loop of the worker calls `check`."""

    def __init__(self, job: Job, spec: JobSpec) -> None:
        self.job = job
        self.lease_s = spec.lease_s
        self.grace_s = spec.grace_s
        self.cause: Optional[TrainClassifierError] = None
        #: They stop when this worker has a reason to, and one that fails is such a reason.
        self.node_group: Optional[NodeGroup] = None
        self._signal: Optional[int] = None
        self._cancels_before: Optional[tuple[int, int]] = None
        self._looked = 0.0
        self._lease_mark: Optional[int] = None
        self._lease_changed_at = time.monotonic()

    def catch_signals(self) -> None:
        """Handle SIGTERM and SIGINT to the worker as an orderly end of the job."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # A hang-up of the parent process does not stop the job.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signal = number

    def reset(self) -> None:
        """Reset the cause that ended the training: from now on `check` raises only for later causes."""
        if self.cause is None:
            return
        # A missing controller may have ended the training; the end of the job needs no controller.
        self.cause = self._signal = self.lease_s = None
        self._cancels_before = change_mark(self.job.cancel)
        self._looked = 0.0

    def check(self) -> None:
        """Raise Cancelled when there is a reason to stop; later calls raise for the same reason."""
        if self.cause is None:
            self.cause = self._look()
            if self.cause is not None and self.node_group is not None:
                self.node_group.stop(self.cause.reason)
        if self.cause is not None:
            raise self.cause

    def _look(self) -> Optional[TrainClassifierError]:
        if self._signal is not None:
            return self._of_signal(signal.Signals(self._signal).name)
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return None
        self._looked = now
        mark = change_mark(self.job.cancel)
        if mark is None or mark == self._cancels_before:
            failure = self.node_group.failure() if self.node_group is not None else None
            return failure or self._look_at_lease(now)
        by = self.job.cancel.read_text(encoding="utf-8", errors="replace").strip()
        return Cancelled(f"cancelled by {by}" if by else "cancelled")

    def _of_signal(self, name: str) -> TrainClassifierError:
        stopped = f"the job's worker was stopped ({name})"
        if "SLURM_JOB_ID" not in os.environ:
            return Cancelled(stopped, "its unit was stopped, or the host is shutting down")
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        # Slurm warns a job before its limit: up to a minute earlier than asked for.
        if end.isdigit() and time.time() > int(end) - SLURM_WARNING_S - self.grace_s:
            return TimedOut("Slurm's time limit of the job is reached", f"raise {show_option('time')}")
        return Cancelled(f"Slurm ended the job (signal {name})", "by scancel, or for another job")

    def _look_at_lease(self, now: float) -> Optional[TrainClassifierError]:
        if self.lease_s is None:
            return None
        try:
            mark = os.stat(self.job.lease).st_mtime_ns
        except FileNotFoundError:
            mark = 0
        # Measure the time since the last change that was seen here: the clock of the host may jump.
        if mark != self._lease_mark:
            self._lease_mark, self._lease_changed_at = mark, now
        if now - self._lease_changed_at > self.lease_s:
            return Cancelled(
                f"no request for the job came for {self.lease_s:.0f} s: its controller is gone",
                f"start the job without a lease (train {show_option('detach')}): "
                "then it continues without its controller",
            )
        return None
