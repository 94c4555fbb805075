"""`train` of several jobs: one push, one connection, all submitted, followed and fetched together."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train_classifier.ansible_bridge.inventory import Target
from train_classifier.cli.console import Console
from train_classifier.cli.runs.group_display import GroupDisplay, GroupJob, first_failure
from train_classifier.cli.runs.training_run import signals_as_messages
from train_classifier.controller import follow as following
from train_classifier.controller import groups, steps
from train_classifier.controller.order import Order, unpack_names
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import BadInput, Cancelled, ExitCode, OutOfTouch, TrainClassifierError
from train_classifier.request import push_list


class GroupRun:
    """One `train` of a group, from the orders to the exit code. The work is done in a thread of its own."""

    #: Seconds to wait for the stop to reach the host when the user leaves at once.
    leave_s = 5.0

    def __init__(
        self,
        orders: Sequence[Order],
        look: Callable[[], Target],
        secrets: Mapping[str, Mapping[str, str]],
        console: Console,
    ) -> None:
        """Store the orders of one group, whose jobs have one host; `secrets` has the values for each id."""
        self.orders = list(orders)
        self.group = str(orders[0].spec.group)
        self.console = console
        self.failure: TrainClassifierError | None = None
        self._look = look
        self._secrets = secrets
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        #: Set by the first Ctrl-C: who asked.
        self._stopped_by: str | None = None
        #: Held while it is decided whether the jobs may be submitted, or the run ends before that.
        self._start_lock = threading.Lock()
        self._submitting = False
        self._all_submitted = threading.Event()
        self._stopping: threading.Thread | None = None
        self._host: RemoteHost | None = None
        self.display: GroupDisplay | None = None

    def run(self) -> ExitCode:
        """Run the group and return the exit code; show everything but the end."""
        with signals_as_messages(self._inbox):
            threading.Thread(target=self._work, daemon=True, name="group").start()
            try:
                self._wait_for_end()
            except TrainClassifierError as error:
                self.failure = error
                if not self._submitting:
                    self._remove_prepared()
        if self.failure:
            return self.failure.code
        assert self.display is not None
        jobs = list(self.display.jobs.values())
        is_cancelled = self._stopped_by and any(job.code == ExitCode.CANCELLED for job in jobs)
        return ExitCode.CANCELLED if is_cancelled else first_failure(jobs)

    # In the thread.

    def _work(self) -> None:
        try:
            self._run_steps()
            self._inbox.put(("done", None))
        except BaseException as error:
            self._inbox.put(("crash", error))

    def _run_steps(self) -> None:
        target = self._look()
        self._host = host = target.connect(own_session=True, flags=self.orders[0].flags)
        self.orders = [
            dataclasses.replace(order, python=target.python, state_dir=target.state_dir)
            for order in self.orders
        ]
        groups.prepare(host, self.orders, self.console, self._go_on, require_unchanged)
        with self._start_lock:
            self._go_on()
            self._submitting = True
        submitted = self._submit(host)
        self.display = self._make_display(host, submitted)
        self.display.introduce(host.name)
        if not self.orders[0].detach:
            self._follow(host, submitted, self.display)

    def _go_on(self) -> None:
        if self._stopped_by is not None:
            raise Cancelled(f"Cancelled by {self._stopped_by} before the jobs were started.")

    def _submit(self, host: RemoteHost) -> list[str]:
        """Submit the jobs and return their ids. One that cannot be submitted stops those before it."""
        submitted: list[str] = []
        try:
            for job in groups.submit(host, self.orders, self._secrets, self.console, self._go_on):
                submitted.append(job)
        except TrainClassifierError as error:
            if not isinstance(error, Cancelled):
                with contextlib.suppress(TrainClassifierError):
                    steps.cancel(host, self.group, f"the failed start of job {len(submitted) + 1}")
            if not submitted:
                self._remove_prepared()
                raise
            self.failure = error
        finally:
            self._all_submitted.set()
        self._inbox.put(("started", None))
        return submitted

    def _make_display(self, host: RemoteHost, submitted: Sequence[str]) -> GroupDisplay:
        jobs = [
            GroupJob(order.spec.id, order.spec.model, order.spec.sweep, host.name)
            for order in self.orders
            if order.spec.id in submitted
        ]
        return GroupDisplay(self.group, jobs, self.console, host.flags)

    def _follow(self, host: RemoteHost, submitted: Sequence[str], display: GroupDisplay) -> None:
        first = self.orders[0]
        paths: dict[str, Path] = {}
        for order in self.orders:
            paths.update(groups.archive_paths(Path(order.output), [order.spec.id]))
        # Of several models, the shortest lease.
        leases = [order.spec.lease_s for order in self.orders if order.spec.lease_s is not None]
        delivery = groups.Delivery(
            host, self.group, paths, display, first.patience_s, min(leases, default=None)
        )
        try:
            delivery.follow(submitted, self.console)
        finally:
            for job, failure in delivery.failures.items():
                display.jobs[job].failure = failure

    # In the main thread.

    def _wait_for_end(self) -> None:
        """Wait for the end of the work and for signals. Raises the error that ends the run early."""
        stops, hung_up, started = 0, False, False
        while True:
            kind, value = self._inbox.get()
            if kind == "done":
                return
            if kind == "crash":
                raise value
            started = started or kind == "started"
            if kind == "hangup":
                # A terminal that is gone takes no live line; its other lines are lost without harm.
                self.console.finish()
                hung_up = True
            if hung_up and started:
                raise OutOfTouch("Hang-up: this command ends with exit code 11.", self._attach_hint())
            if kind == "stop":
                stops += 1
                if stops == 1:
                    self._stop(value)
                else:
                    self._leave()

    def _stop(self, by: str) -> None:
        """First Ctrl-C: the stop goes to the host, and the run goes on to collect what there is."""
        with self._start_lock:
            self._stopped_by = by
            if not self._submitting:
                raise Cancelled(f"Cancelled by {by} before the jobs were started.")
        self.console.say(f"{by}: stopping all jobs, then collecting what they left. Once more leaves.")
        self._stopping = threading.Thread(target=self._send_stop, args=(by,), daemon=True, name="stop")
        self._stopping.start()

    def _send_stop(self, by: str) -> None:
        self._all_submitted.wait(60)
        host, delay = self._host, 0.5
        assert host is not None
        while True:
            try:
                steps.cancel(host, self.group, f"{by} of {self.orders[0].spec.submitter}")
                return
            except BadInput:
                return
            except TrainClassifierError as error:
                self.console.say(
                    f"the stop did not reach {host.name}: {error.reason} Trying again.", "yellow"
                )
                time.sleep(delay)
                delay = min(delay * 2, 10)

    def _leave(self) -> None:
        """Second Ctrl-C: leave at once, but first give the stop a few seconds to reach the host."""
        assert self._stopping is not None and self._host is not None
        self._all_submitted.set()
        self._stopping.join(self.leave_s)
        flags = self.orders[0].flags
        if self._stopping.is_alive():
            raise Cancelled(
                f"Left at once; {self._host.name} has not confirmed the stop.",
                f"Make sure: train-classifier cancel {self.group}{flags}",
            )
        raise Cancelled(
            "Left at once; the jobs are being stopped.",
            f"What they leave: train-classifier fetch {self.group}{flags}",
        )

    def _remove_prepared(self) -> None:
        """Remove what jobs that may not start have on the host, if it answers within a few seconds."""
        host = self._host
        if host is None:
            return

        def remove() -> None:
            # A step that was cut off may still make a folder.
            for _ in range(2):
                with contextlib.suppress(TrainClassifierError):
                    steps.cancel(host, self.group, "the end of the command")
                time.sleep(0.5)

        thread = threading.Thread(target=remove, daemon=True, name="remove")
        thread.start()
        thread.join(self.leave_s)

    def _attach_hint(self) -> str:
        first = self.orders[0]
        return following.attach_hint(self.group, first.flags, first.spec.lease_s)


def require_unchanged(order: Order) -> None:
    """Raise BadInput when the sources are not those that the first job of the group has."""
    if push_list.fingerprint(Path(order.tree), unpack_names(order.files)) != order.fingerprint:
        raise BadInput(
            "the repository was changed while the jobs were prepared: they would have different sources",
            hint="nothing was started; start again",
        )


def show_group_end(run: GroupRun, code: ExitCode, console: Console) -> None:
    """Show how a group ended; of a detached one, its id."""
    is_detached = run.orders[0].detach and run.display is not None and run.failure is None
    if run.display is None:
        assert run.failure is not None
        raise run.failure
    if console.json_mode or not is_detached:
        run.display.show_end(run.failure, code)
        return
    console.finish()
    console.out(run.group)
    console.say(f"Follow it again: train-classifier attach {run.group}{run.orders[0].flags}")
