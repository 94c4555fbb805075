"""The log of a job in a workflow run: a folded group for each phase, and the training's log live."""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from train_classifier.cli.console import Console
from train_classifier.core import text
from train_classifier.core.errors import TrainClassifierError
from train_classifier.github_action.workflow_commands import Workflow

#: Bytes of the log's end that are kept for the summary, the annotations and Slack.
TAIL = 512 << 10
#: Phases that are not folded in the log, because every reader wants to see them.
UNFOLDED = ("training", "queue")


class WorkflowConsole(Console):
    """A Reporter for a step of a workflow. Everything goes to standard output, in order.

    Only this program's own commands take effect: all other output is written while commands are stopped.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(quiet=True)
        self.quiet = False
        self.workflow = Workflow(sys.stdout.buffer, environment)
        self._group: str | None = None
        self._stopped_commands = contextlib.ExitStack()
        self._stopped = False
        self._tail = bytearray()
        #: The phase that ran last, for failures in it.
        self.last_phase = ""

    def log(self, data: bytes) -> None:
        """Write log bytes unchanged and at once; they cannot act as commands."""
        with self._lock:
            self.log_bytes += len(data)
            self._tail += data
            del self._tail[:-TAIL]
            self._plain(data)
            self._at_start = data.endswith(b"\n")

    def _on_message(self, fields: Mapping[str, Any]) -> None:
        message = text.clean(fields["text"])
        if fields.get("level") == "warning" and self.workflow.active:
            self._command()
            self.workflow.warning(message, title="train-classifier")
        else:
            self._line(message)

    def _enter(self, phase: str | None) -> None:
        if phase == self._phase and phase is not None:
            return
        super()._enter(phase)
        self._close_group()
        if phase is None:
            return
        self.last_phase = phase
        if phase in UNFOLDED:
            self._line(f"{phase} …")
        else:
            self._command()
            self.workflow.group(phase)
            self._group = phase

    def _leave(self, phase: str, seconds: float, failed: bool = False) -> None:
        super()._leave(phase, seconds, failed)
        if phase == self._group:
            self._close_group()

    def _close_group(self) -> None:
        if self._group is not None:
            self._group = None
            self._command()
            self.workflow.end_group()

    def mask(self, value: str) -> None:
        """Have the runner show *** for a secret."""
        with self._lock:
            self._command()
            self.workflow.mask(value)

    def error(self, error: TrainClassifierError) -> None:
        """Show a failure: its details as text, each problem as an annotation."""
        with self._lock:
            self.finish()
            fields = error.to_dict()
            for line in text.clean(fields["detail"] or "").splitlines():
                self._line(f"    {line}")
            *first_problems, last_problem = fields["problems"] or [fields["reason"]]
            if fields["hint"]:
                last_problem += f"\n{fields['hint']}"
            last_problem += f"\n{fields['link']}"
            for problem in (*first_problems, last_problem):
                self._annotate(text.clean(problem))

    def annotate(self, message: str, file: str, line: int) -> None:
        """Annotate a line of the caller's repository."""
        with self._lock:
            self._annotate(text.clean(message), file, line)

    def _annotate(self, message: str, file: str = "", line: int | None = None) -> None:
        if self.workflow.active:
            self._command()
            self.workflow.error(message, title="train-classifier" if not file else "", file=file, line=line)
        else:
            self._line(f"{file}:{line}: {message}" if file else message, always=True)

    def finish(self) -> None:
        """Close the group and let the runner process commands again."""
        with self._lock:
            self._enter(None)
            self._command()
            super().finish()

    def tail(self) -> str:
        """Return the end of the log."""
        with self._lock:
            return bytes(self._tail).decode("utf-8", "replace")

    @property
    def tail_is_cut(self) -> bool:
        """Whether the log is longer than `tail`."""
        return self.log_bytes > TAIL

    def _line(self, words: str, colour: str | None = None, always: bool = False) -> None:
        start = b"" if self._at_start else b"\n"
        words = text.without_escapes(words)
        # Most of this program's lines contain nothing that a runner could treat as a command.
        has_no_command = "::" not in words and "##[" not in words
        self._plain(start + words.encode("utf-8", "replace") + b"\n", has_no_command)
        self._at_start = True

    def _plain(self, data: bytes, has_no_command: bool = False) -> None:
        if self._output_closed:
            return
        try:
            if not self._stopped and not has_no_command:
                self._stopped = True
                self._stopped_commands.enter_context(self.workflow.stopped())
            self.workflow.write(data)
        except OSError:
            # The runner has stopped reading; the job and its files are still needed.
            self._output_closed = self.log_closed = True
            self.workflow.active = False

    def _command(self) -> None:
        """Leave the state in which commands are stopped."""
        if self._stopped:
            self._stopped = False
            try:
                self._stopped_commands.close()
            except OSError:
                self._output_closed = self.log_closed = True
            self._at_start = True
        if self._output_closed:
            self.workflow.stream = open(os.devnull, "wb")  # noqa: SIM115, PTH123 - stays open to the end
