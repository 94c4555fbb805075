"""The output for a person: the raw log on standard output, this program's messages on standard error.

On a terminal one live line below the log shows the phase, its time and why it waits; in a pipe, plain lines.
"""

import errno
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train_classifier.cli.runs.log_progress import LogProgress
from train_classifier.core import text
from train_classifier.core.errors import NotReady, TrainClassifierError
from train_classifier.core.job import in_order

if TYPE_CHECKING:
    from train_classifier.cli.live_line import LiveLine

#: Seconds between two drawings of the live line.
TICK_S = 0.2
COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1", "cyan": "36"}


def is_terminal(stream: Any) -> bool:
    """Return whether the stream is a terminal. GitHub's runner is none, even if it claims to be one."""
    if os.environ.get("GITHUB_ACTIONS") == "true" or os.environ.get("TERM") == "dumb":
        return False
    try:
        # None: the parent process closed the stream.
        return stream is not None and bool(stream.isatty())
    except ValueError:
        return False


def encoding_of(stream: Any) -> str:
    """Return the encoding of a stream that may be closed."""
    return getattr(stream, "encoding", None) or "utf-8"


class Console:
    """A Reporter that shows a run, and stores the facts for the closing summary."""

    def __init__(self, *, json_mode: bool = False, quiet: bool = False) -> None:
        self.json_mode = json_mode
        self.quiet = quiet
        self.live = is_terminal(sys.stderr) and not quiet
        #: Whether the closing summary lists the phases: in a pipe each had a line of its own.
        self.lists_phases = self.live
        coloured = not quiet and not os.environ.get("NO_COLOR")
        #: Decided for each stream: one may go to a file, the other to a terminal.
        self.colour = coloured and is_terminal(sys.stderr)
        self.colour_out = coloured and is_terminal(sys.stdout)
        self._unicode = "utf" in encoding_of(sys.stderr).lower()
        self._log_fd = 2 if json_mode else 1
        self._log_on_terminal = is_terminal(sys.stderr if json_mode else sys.stdout)
        #: True after the reader of the log has closed its end.
        self.log_closed = False
        self._output_closed = False
        self._lock = threading.RLock()
        self._at_start = True
        self._drawn = False
        self._phase: str | None = None
        self._phase_start = 0.0
        self._message = ""
        self._last_message = ""
        self._bytes: tuple[int, int | None] | None = None
        self._stop = threading.Event()
        #: Seconds of each phase, in order.
        self.seconds: dict[str, float] = {}
        self.log_bytes = 0
        self._progress = LogProgress()
        self._figures: Mapping[str, Any] = {}
        if self.live:
            threading.Thread(target=self._tick, daemon=True, name="live").start()

    @property
    def width(self) -> int | None:
        """The columns of standard output, None where it is no terminal."""
        return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None

    @property
    def error_width(self) -> int | None:
        """The columns of standard error, None where it is no terminal."""
        return shutil.get_terminal_size().columns if is_terminal(sys.stderr) else None

    # The Reporter's side.

    def log(self, data: bytes) -> None:
        """Write log bytes unchanged and at once. A reader that is gone does not stop the job."""
        with self._lock:
            self.log_bytes += len(data)
            self._progress.feed(data)
            self._clear()
            if not self.log_closed:
                try:
                    _write_all(self._log_fd, data)
                except OSError:
                    self.log_closed = True
                    self._line("nobody reads the log any more; the job goes on", "yellow")
            self._at_start = data.endswith(b"\n") or not self._log_on_terminal

    def event(self, event: str, **fields: Any) -> None:
        """Show an event."""
        with self._lock:
            handler = getattr(self, f"_on_{event}", None)
            if handler:
                handler(fields)

    def _on_phase(self, fields: Mapping[str, Any]) -> None:
        if fields["state"] == "start":
            self._enter(fields["phase"])
        else:
            self._leave(fields["phase"], float(fields["seconds"]), bool(fields.get("failed")))

    def _on_progress(self, fields: Mapping[str, Any]) -> None:
        self._bytes = (int(fields["done"]), fields.get("total"))

    def _on_status(self, fields: Mapping[str, Any]) -> None:
        times = fields.get("times") or {}
        for name, span in in_order(times).items():
            if name not in self.seconds and isinstance(span, list | tuple) and len(span) > 1 and span[1]:
                seconds = max(0.0, float(span[1]) - float(span[0]))
                self._leave(name, seconds, fields.get("failed") == name)
        phase = fields.get("phase")
        if phase and phase != self._phase and phase not in self.seconds and fields.get("state") == "running":
            self._enter(phase)
        message = text.clean(fields.get("message") or "")
        # A finished job's message is its result, which is shown at the end; a phase was named already.
        if message and message not in (self._last_message, phase) and fields.get("state") != "finished":
            self._last_message = message
            if not self.live:
                self._line(f"{phase or fields.get('state')}: {message}")
        self._message = message

    def _on_figures(self, fields: Mapping[str, Any]) -> None:
        self._figures = fields["figures"]

    def _on_message(self, fields: Mapping[str, Any]) -> None:
        # A job's note is also its message at that time.
        self._last_message = text.clean(fields["text"])
        self._line(self._wrapped(self._last_message), "yellow" if fields.get("level") == "warning" else None)

    def _on_started(self, fields: Mapping[str, Any]) -> None:
        self._line(f"job {fields['id']} on {fields['host']}", "bold")

    def _on_result(self, fields: Mapping[str, Any]) -> None:
        # The last status of a job does not hold the end of its last phase.
        for name, seconds in in_order(fields["result"].get("seconds") or {}).items():
            if name not in self.seconds:
                self._leave(name, float(seconds))
        self._enter(None)

    # Our side.

    def say(self, words: str, colour: str | None = None) -> None:
        """Show a sentence of this program, or lines that fit a terminal as they are."""
        with self._lock:
            self._line(words if "\n" in words else self._wrapped(words), colour)

    def show_live(self, phase: str, message: str) -> None:
        """Show a phase and a message on the live line; nothing where there is none."""
        with self._lock:
            if phase != self._phase:
                self._enter(phase)
            self._message = text.clean(message)

    def error(self, error: TrainClassifierError) -> None:
        """Show a failure: the reason, the tool's own lines, what to do next, and where it is explained."""
        with self._lock:
            self.finish()
            fields = error.to_dict()
            width = self.error_width
            for problem in fields["problems"] or [fields["reason"]]:
                self._line(text.hanging("", problem, width), "red", always=True)
            for line in text.clean(fields["detail"] or "").splitlines():
                self._line(f"    {line}", "dim", always=True)
            if fields["hint"]:
                arrow = "→ " if self._unicode else "-> "
                self._line(text.hanging(arrow, fields["hint"], width), "cyan", always=True)
            self._line(f"  {fields['link']}", "dim", always=True)

    def out(self, words: str) -> None:
        """Write a command's result to standard output. A reader that is gone is no failure.

        Raises NotReady when its disk is full.
        """
        with self._lock:
            self._clear()
            try:
                self.write_out(text.clean_coloured(words) + "\n")
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    reason = f"Standard output cannot be written: {error.strerror}."
                    raise NotReady(reason, "Free some space, then run the command again.") from error

    def write_out(self, words: str) -> None:
        """Write to standard output. Raises OSError when nobody reads it."""
        # A terminal shows what its locale says; in a file or a pipe it is UTF-8 everywhere.
        encoding = encoding_of(sys.stdout) if is_terminal(sys.stdout) else "utf-8"
        _write_all(1, words.encode(encoding, "replace"))

    def finish(self) -> None:
        """End the live line; what follows is plain."""
        with self._lock:
            self._clear()
            self._stop.set()
            self.live = False

    def paint(self, words: str, colour: str | None) -> str:
        """Return words for standard error in a colour, if that is a terminal."""
        return f"\x1b[{COLOURS[colour]}m{words}\x1b[0m" if colour and self.colour else words

    def paint_out(self, words: str, colour: str | None) -> str:
        """Return words for standard output in a colour, if that is a terminal."""
        return f"\x1b[{COLOURS[colour]}m{words}\x1b[0m" if colour and self.colour_out else words

    def _enter(self, phase: str | None) -> None:
        self._phase, self._phase_start, self._message, self._bytes = phase, time.monotonic(), "", None

    def _leave(self, phase: str, seconds: float, failed: bool = False) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        sent = f", {text.show_bytes(self._bytes[0])}" if self._bytes and phase == self._phase else ""
        if phase == self._phase:
            self._phase = None
        if seconds < text.SHORTEST_S and not failed:
            return
        mark = ""
        if self.live and self._unicode:
            mark = (self.paint("✗", "red") if failed else self.paint("✓", "green")) + " "
        after = "failed after " if failed else ""
        self._line(f"{mark}{phase}: {after}{text.show_seconds(seconds)}{sent}")

    def _wrapped(self, words: str) -> str:
        """Return a sentence, on a terminal in lines that are broken between words."""
        width = self.error_width
        fits = width is None or len(words) <= width or "\x1b" in words
        return words if fits else text.hanging("", words, width)

    def _line(self, words: str, colour: str | None = None, always: bool = False) -> None:
        if self._output_closed or (self.quiet and not always):
            return
        self._clear()
        if not self._at_start and is_terminal(sys.stderr):
            words = "\n" + words
        self._at_start = True
        # Whatever of a stranger's is in it, and however it came there.
        self._write(text.clean_coloured(self.paint(words, colour)) + "\n")

    def _write(self, words: str) -> None:
        if self._output_closed:
            return
        encoding = encoding_of(sys.stderr)
        try:
            _write_all(2, words.encode(encoding, "replace"))
        except OSError:
            self._output_closed = True

    def _clear(self) -> None:
        if self._drawn:
            self._drawn = False
            self._write("\r\x1b[K")

    def _tick(self) -> None:
        from train_classifier.cli.live_line import LiveLine

        drawer = LiveLine(encoding_of(sys.stderr), self.colour)
        while not self._stop.wait(TICK_S):
            with self._lock:
                if self._phase and self._at_start and self.live:
                    self._draw(drawer, self._phase)

    def _draw(self, drawer: "LiveLine", phase: str) -> None:
        width, now = shutil.get_terminal_size().columns - 1, time.monotonic()
        message = self._message
        if phase == "training" and message in ("", phase):
            message = self._progress.summary(now, self._figures)
        line = drawer.draw(width, phase, now - self._phase_start, self._bytes, message)
        self._write(f"\r\x1b[K{line}")
        self._drawn = True


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            # Another process that shares the stream made it non-blocking: its reader is slow, not gone.
            select.select([], [descriptor], [])
