"""--watch: what a command shows, again and again in the same place of the terminal."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable

from train_classifier.cli.console import Console, is_terminal
from train_classifier.core import text
from train_classifier.core.errors import BadInput, ExitCode, NotReady, TrainClassifierError

#: Seconds between the end of one look and the next.
PAUSE_S = 2.0


class Page(Console):
    """A console that keeps what it is to show."""

    def __init__(self) -> None:
        super().__init__()
        self.finish()
        self.lines: list[str] = []

    def out(self, words: str) -> None:
        """Keep a result."""
        self.lines += words.split("\n")

    def say(self, words: str, colour: str | None = None) -> None:
        """Keep a remark."""
        self.lines += self.paint_out(words, colour).split("\n")

    def error(self, error: TrainClassifierError) -> None:
        """Keep a failure."""
        width = self.width
        self.lines += [
            self.paint_out(line, "red") for line in text.hanging("", error.reason, width).split("\n")
        ]


def repeat(show: Callable[[Console], ExitCode], json_mode: bool) -> ExitCode:
    """Show until Ctrl-C; a host that does not answer is named, and asked again.

    Raises BadInput without a terminal, and what `show` raises for a wrong request.
    """
    if json_mode or not is_terminal(sys.stdout):
        raise BadInput("--watch needs a terminal" + (", and no --json" if json_mode else ""))
    above = 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            page = Page()
            try:
                show(page)
            except NotReady as error:
                page.error(error)
            columns, rows = shutil.get_terminal_size()
            lines = [f"{time.strftime('%H:%M:%S')}  every {PAUSE_S:.0f} s; Ctrl-C ends this", *page.lines]
            if len(lines) >= rows > 4:
                # The head of a table, and its newest lines.
                missing = len(lines) - rows + 2
                lines = [*lines[:2], f"… {missing} more", *lines[2 + missing :]]
            # Over the earlier page; its first line is out of reach once the terminal has scrolled.
            start = f"\x1b[{above}F" if above else ""
            sys.stdout.write(start + "\x1b[J" + "\n".join(lines) + "\n")
            sys.stdout.flush()
            broken = sum((len(text.without_escapes(line)) - 1) // columns for line in lines if line)
            above = min(len(lines) + broken, rows - 1)
            time.sleep(PAUSE_S)
    return ExitCode.TRAINED
