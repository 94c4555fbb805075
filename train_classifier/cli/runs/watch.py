"""--watch: what a command shows, again and again in the same place of the terminal."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from rich.cells import cell_len

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
        self.lines += text.clean_coloured(words).split("\n")

    def say(self, words: str, colour: str | None = None) -> None:
        """Keep a remark."""
        self.out(self.paint_out(words, colour))

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
    shown: list[str] = []
    try:
        while True:
            page = Page()
            try:
                show(page)
            except NotReady as error:
                page.error(error)
            columns, rows = shutil.get_terminal_size()
            # Over the earlier page, whose lines a terminal that was resized has broken anew. Its first line
            # is out of reach once the terminal has scrolled.
            above = min(_height(shown, columns), rows - 1)
            shown = [f"{time.strftime('%H:%M:%S')}  every {PAUSE_S:.0f} s; Ctrl-C ends this", *page.lines]
            if len(shown) >= rows > 4:
                # The head of a table, and its newest lines.
                missing = len(shown) - rows + 2
                shown = [*shown[:2], f"… {missing} more", *shown[2 + missing :]]
            start = f"\x1b[{above}F" if above else ""
            try:
                page.write_out(start + "\x1b[J" + "\n".join(shown) + "\n")
            except OSError:
                # The terminal is gone.
                break
            time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        # Below the ^C of the terminal.
        with contextlib.suppress(OSError):
            Page().write_out("\n")
    return ExitCode.TRAINED


def _height(lines: Sequence[str], columns: int) -> int:
    """Return how many rows of a terminal the lines take."""
    return sum(max(1, -(-cell_len(text.without_escapes(line)) // columns)) for line in lines)
