"""The live line of a phase, drawn with rich; only on a terminal, because rich is slow to import."""

import io
import time

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from train_classifier.core import text

#: Columns of the bar.
BAR = 20


class _Sheet(io.StringIO):
    """The stream that rich draws on, with the terminal's encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The terminal's encoding: rich draws in ASCII where it is not Unicode."""
        return self._encoding


class LiveLine:
    """Draws one line: a spinner, the phase, its time, its bytes as a bar, and why it waits."""

    def __init__(self, encoding: str, colour: bool) -> None:
        self._encoding = encoding
        self._colour = colour
        self._spinner = Spinner("dots" if "utf" in encoding.lower() else "line", style="cyan")

    def draw(
        self, width: int, phase: str, seconds: float, progress: tuple[int, int | None] | None, why: str
    ) -> str:
        """Return the line for a terminal of `width` columns, without its end."""
        sheet = _Sheet(self._encoding)
        console = Console(
            file=sheet,
            force_terminal=True,
            color_system="standard" if self._colour else None,
            no_color=not self._colour,
            width=max(20, width),
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        row = Table.grid(padding=(0, 1), expand=False)
        cells: list[RenderableType] = [
            self._spinner.render(time.monotonic()),
            Text(phase, style="cyan"),
            Text(text.show_seconds(seconds), style="cyan"),
        ]
        if progress is not None:
            size, total = progress
            if total:
                cells.append(ProgressBar(total=total, completed=min(size, total), width=BAR))
            cells.append(Text(text.show_bytes(size) + (f" of {text.show_bytes(total)}" if total else "")))
        for _ in cells:
            row.add_column(no_wrap=True)
        if why:
            row.add_column(no_wrap=True, overflow="ellipsis")
            cells.append(Text(why, style="dim"))
        row.add_row(*cells)
        console.print(row, end="")
        return sheet.getvalue().split("\n")[0].rstrip()
