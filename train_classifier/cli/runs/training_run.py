"""`train`: the playbook in a thread, the signals in the main thread, the outcome as one exit code."""

import contextlib
import dataclasses
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from train_classifier.ansible_bridge import playbook
from train_classifier.ansible_bridge.inventory import Target
from train_classifier.cli import result_text
from train_classifier.cli.console import Console
from train_classifier.cli.runs.training_playbook import Play
from train_classifier.controller import follow as following
from train_classifier.controller import steps
from train_classifier.controller.order import Order
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import (
    BadInput,
    Cancelled,
    ExitCode,
    NotReady,
    OutOfTouch,
    TrainClassifierError,
    from_dict,
)


class TrainingRun:
    """One `train` from the order to the outcome. A Reporter that reads the events before the console."""

    #: Seconds to wait for the stop to reach the host when the user leaves at once.
    leave_s = 5.0

    def __init__(
        self, order: Order, look: Callable[[], Target], secrets: Mapping[str, str], console: Console
    ) -> None:
        """Store the order. The playbook reports its host; `look` reads the inventory when that fails."""
        self.order = dataclasses.replace(order, is_watched=console.live)
        self._look = look
        self._host: RemoteHost | None = None
        self.console = console
        self.result: dict[str, Any] | None = None
        self.delivered: dict[str, Any] | None = None
        self.failure: TrainClassifierError | None = None
        self.started = False
        self._secrets = dict(secrets)
        self._phase: str | None = None
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._ended_early = threading.Event()
        self._stopping: threading.Thread | None = None
        self._start_event = threading.Event()
        #: Held while it is decided whether the job may start, or the run ends before that.
        self._start_lock = threading.Lock()
        self._start_refused = False
        self._hung_up = False

    @property
    def job(self) -> str:
        """The job's id."""
        return self.order.spec.id

    @property
    def model(self) -> str:
        """The job's model."""
        return self.order.spec.model

    @property
    def host(self) -> RemoteHost:
        """The host. Raises BadInput when there is no such host."""
        if self._host is None:
            self._host = self._look().connect(own_session=True, flags=self.order.flags)
        return self._host

    @property
    def host_name(self) -> str:
        """The name of the host; empty while it is not known."""
        return self._host.name if self._host else ""

    # The Reporter's side: called by the sink's threads.

    def event(self, event: str, **fields: Any) -> None:
        """Store the facts that decide the outcome, and show the event."""
        if event == "phase" and fields["state"] == "start":
            self._phase = fields["phase"]
        elif event == "started":
            self.started = True
            self._start_event.set()
            self._inbox.put(("started", None))
        elif event == "result":
            self.result = fields["result"]
        elif event == "delivered":
            self.delivered = fields
        elif event == "error":
            self.failure = self.failure or from_dict(fields)
        self.console.event(event, **fields)

    def log(self, data: bytes) -> None:
        """Show log bytes."""
        self.console.log(data)

    # The run.

    def run(self, inventory: str | None, limit: str | None) -> ExitCode:
        """Run the playbook on the one host and return the exit code; `failure` says why it is not 0."""
        with signals_as_messages(self._inbox):
            self._play = Play(self, self._inbox)
            try:
                self._play.start(inventory, limit)
                self._wait_for_end()
            except TrainClassifierError as error:
                self.failure = error
                self._ended_early.set()
            finally:
                self._play.end(self.leave_s)
            if self._start_refused and self._host is not None:
                self._remove_prepared()
        return self.failure.code if self.failure else ExitCode.TRAINED

    def _remove_prepared(self) -> None:
        """Remove what a job that may not start has on its host, if the host answers within a few seconds."""
        end = time.monotonic() + self.leave_s

        def remove() -> None:
            while time.monotonic() < end:
                with contextlib.suppress(TrainClassifierError):
                    if steps.cancel(self.host, self.job, str(self.failure)).get("state") == "removed":
                        return
                # A preflight whose connection was cut may still make the job's folder.
                if self._phase != "preflight":
                    return
                time.sleep(0.5)

        thread = threading.Thread(target=remove, daemon=True, name="remove")
        thread.start()
        thread.join(self.leave_s)

    def answer(self, question: Any) -> Any:
        """Answer a step: whether it may start, the secrets, or the order for the host that Ansible found."""
        if question == "start":
            return self._may_start()
        if question == "secrets":
            return self._secrets
        try:
            target = Target(**question["host"])
            self._host = target.connect(own_session=True, flags=self.order.flags)
            self.order = self._complete(target)
            self._play.order_file.write_text(self.order.to_json())
        except BaseException as error:
            self._inbox.put(("crash", error))
            raise ConnectionError("the order cannot be completed") from error
        return target.name

    def _may_start(self) -> bool:
        """Return whether the job may start: no if a stop came first. Later a stop must reach the host."""
        with self._start_lock:
            if not self._start_refused:
                self._phase = "start"
            return not self._start_refused

    def _complete(self, target: Target) -> Order:
        """Return the order for this host."""
        return dataclasses.replace(self.order, python=target.python, state_dir=target.state_dir)

    def _wait_for_end(self) -> None:
        """Wait for the playbook's end and for signals. Raises the error that ends the run early."""
        signals = 0
        while True:
            kind, value = self._inbox.get()
            if kind == "done":
                self._note_outcome(value)
                return
            if kind == "crash":
                raise value
            if kind == "hangup":
                # A terminal that is gone takes no live line; its other lines are lost without harm.
                self.console.finish()
                self._hung_up = True
            if self._hung_up and self.started:
                raise OutOfTouch("Hang-up: this command ends with exit code 11.", self._attach_hint())
            if kind == "stop":
                signals += 1
                if signals == 1:
                    self._stop(value)
                else:
                    self._leave()

    def _stop(self, by: str) -> None:
        """First Ctrl-C: the stop goes to the host directly, and the run goes on to collect what there is."""
        with self._start_lock:
            self._start_refused = not self.started and self._phase not in ("start", "follow")
        if self._start_refused:
            self._ended_early.set()
            raise Cancelled(f"Cancelled by {by} before the job was started.")
        self.console.say(f"{by}: stopping the job, then collecting what it left. Once more to leave at once.")
        self._stopping = threading.Thread(target=self._send_stop, args=(by,), daemon=True, name="stop")
        self._stopping.start()

    def _send_stop(self, by: str) -> None:
        job = self.order.spec.id
        # Whether the job was submitted is known only after the answer of the start.
        self._start_event.wait(60)
        delay = 0.5
        while not self._ended_early.is_set():
            try:
                answer = steps.cancel(self.host, job, f"{by} of {self.order.spec.submitter}")
                if answer.get("state") != "removed":
                    return
                # A running submission keeps the folder: at the next try the job is gone or started.
                time.sleep(delay)
            except BadInput:
                return
            except TrainClassifierError as error:
                self.console.say(
                    f"the stop did not reach {self.host.name}: {error.reason} Trying again.", "yellow"
                )
                time.sleep(delay)
                delay = min(delay * 2, 10)

    def _leave(self) -> None:
        """Second Ctrl-C: leave at once, but first give the stop a few seconds to reach the host."""
        stopping = self._stopping
        # Do not wait for the submission any longer: a stop also removes a job that is not submitted.
        self._start_event.set()
        if stopping is not None:
            stopping.join(self.leave_s)
        if stopping is None or stopping.is_alive():
            raise Cancelled(
                f"Left at once; {self.host.name} has not confirmed the stop.",
                f"Make sure: {self._command('cancel', self.job)}",
            )
        raise Cancelled(
            "Left at once; the job is being stopped.",
            f"What it leaves: {self._command('fetch', self.job)}",
        )

    def _note_outcome(self, outcome: playbook.Outcome) -> None:
        if self._host is None:
            # Ansible ended before the first step: if the inventory is the reason, `_look` reports it better.
            self._look()
        elif outcome.status == 0:
            return
        if self.failure is not None:
            return
        reason = outcome.reason or f"ansible-playbook ended with exit status {outcome.status}."
        first, _, detail = reason.partition("\n")
        if self.started:
            self.failure = OutOfTouch(f"Ansible failed: {first}", self._attach_hint(), detail or None)
        elif outcome.unreachable:
            self.failure = NotReady(
                first, "Check the inventory: ansible -m ping reaches the host?", detail or None
            )
        else:
            self.failure = TrainClassifierError(f"Ansible failed: {first}", detail=detail or None)

    def _attach_hint(self) -> str:
        return following.attach_hint(self.job, self.order.flags, self.order.spec.lease_s)

    def _command(self, verb: str, job: str) -> str:
        return f"train-classifier {verb} {job}{self.order.flags}"


@contextlib.contextmanager
def signals_as_messages(inbox: "queue.SimpleQueue[tuple[str, Any]]") -> Iterator[None]:
    """Convert signals to messages ("stop", who) and ("hangup", None); restore the old handlers at the end."""

    def post(number: int, _frame: Any) -> None:
        if number == signal.SIGHUP:
            inbox.put(("hangup", None))
        else:
            inbox.put(("stop", "Ctrl-C" if number == signal.SIGINT else "SIGTERM"))

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {}
    for number in numbers:
        # nohup: an ignored SIGHUP stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:
            before[number] = signal.signal(number, post)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_end(run: TrainingRun, code: ExitCode, console: Console) -> None:
    """Show how the run ended; of a detached job, its id."""
    if console.json_mode or not run.order.detach or not run.started or run.failure:
        result_text.show_ending(run, code, console)
        return
    console.finish()
    console.out(run.job)
    console.say(f"Follow it again: train-classifier attach {run.job}{run.order.flags}")
