"""The interface of a workflow run: commands on standard output, and files for outputs and the summary.

Outside GitHub nothing here has an effect: no command is written, and no file is used.
Commands and their escaping: github.com/actions/toolkit, packages/core/src/command.ts and file-command.ts.
"""

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

#: GitHub's limit of a step's summary; more is refused as a whole.
SUMMARY_LIMIT = 1 << 20

OUTPUT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


def is_github(environment: Mapping[str, str]) -> bool:
    """Return whether this is a step of a workflow run."""
    return environment.get("GITHUB_ACTIONS") == "true"


def run_url(environment: Mapping[str, str]) -> str:
    """Return the address of the workflow run, empty outside GitHub."""
    parts = [environment.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")]
    return f"{parts[0]}/{parts[1]}/actions/runs/{parts[2]}" if all(parts) else ""


def escape_data(text: str) -> str:
    """Escape the message of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Escape a property of a command, as file or title."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def command(name: str, message: str = "", **properties: str | int | None) -> bytes:
    """Return one workflow command as a line. Properties that are None or empty are left out."""
    pairs = [
        f"{key}={escape_property(str(value))}" for key, value in properties.items() if value not in (None, "")
    ]
    head = f"{name} {','.join(pairs)}" if pairs else name
    return f"::{head}::{escape_data(message)}\n".encode("utf-8", "replace")


class Workflow:
    """Writes to the workflow run of this environment, on `stream` (its standard output, binary)."""

    def __init__(self, stream: BinaryIO, environment: Mapping[str, str]) -> None:
        self.stream = stream
        self.environment = environment
        self.active = is_github(environment)
        #: Whether a line starts here: only there can a command be written.
        self._at_line_start = True
        self._stopped = False

    def write(self, data: bytes) -> None:
        """Write output that is not a command. Within `stopped` it may hold anything."""
        if data:
            self.stream.write(data)
            self.stream.flush()
            self._at_line_start = data.endswith(b"\n")

    def _command(self, line: bytes) -> None:
        if self.active:
            self.write((b"" if self._at_line_start else b"\n") + line)

    def group(self, title: str) -> None:
        """Begin a folded group; it ends the one before, since groups do not nest."""
        self._command(command("group", title))

    def end_group(self) -> None:
        """End the folded group."""
        self._command(command("endgroup"))

    def mask(self, value: str) -> None:
        """Have the runner show *** for a secret from now on, also for each line of a secret with several."""
        for part in dict.fromkeys([value, *value.splitlines()]):
            if part.strip():
                self._command(command("add-mask", part))

    def error(self, message: str, *, title: str = "", file: str = "", line: int | None = None) -> None:
        """Annotate the run with an error, at a line of the caller's repository where there is one."""
        self._command(command("error", message, file=file, line=line, title=title))

    def warning(self, message: str, *, title: str = "") -> None:
        """Annotate the run with a warning."""
        self._command(command("warning", message, title=title))

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Make the runner ignore commands meanwhile, because the output is the training's own.

        The token that ends this is random, so that the training cannot know it.
        """
        if not self.active or self._stopped:
            yield
            return
        token = f"train-classifier-{secrets.token_hex(16)}"
        self._command(command("stop-commands", token))
        self._stopped = True
        try:
            yield
        finally:
            self._stopped = False
            self._command(f"::{token}::\n".encode())

    def set_output(self, name: str, value: str) -> bool:
        """Set an output of the step. Returns whether there is a file to write it to, and it was written.

        Raises ValueError for an invalid name.
        """
        if not OUTPUT_NAME.match(name):
            raise ValueError(f"{name!r} is not a valid name of an output")
        end = f"ghadelimiter_{secrets.token_hex(16)}"
        return self._append("GITHUB_OUTPUT", f"{name}<<{end}\n{value}\n{end}\n", f"output {name}")

    def summary_space(self) -> int:
        """Return the bytes that the step's summary still has room for."""
        path = self.environment.get("GITHUB_STEP_SUMMARY")
        try:
            used = Path(path).stat().st_size if path else 0
        except OSError:
            used = 0
        # Two bytes for the newlines around the added text, and some for additions of the runner.
        return max(SUMMARY_LIMIT - used - 1024, 0)

    def add_summary(self, markdown: str) -> bool:
        """Add to the step's summary. Returns whether there is one, and it was written.

        Nothing is added above GitHub's limit: the runner would ignore the whole summary.
        """
        if len(markdown.encode("utf-8", "replace")) + 2 > self.summary_space():
            self.warning("The job summary is full: nothing was added to it.")
            return False
        return self._append("GITHUB_STEP_SUMMARY", f"\n{markdown}\n", "job summary")

    def _append(self, variable: str, text: str, name: str) -> bool:
        path = self.environment.get(variable)
        if not path:
            return False
        try:
            with Path(path).open("ab") as file:
                file.write(text.encode("utf-8", "replace"))
        except OSError as error:
            self.warning(f"The {name} was not written: {error.strerror}")
            return False
        return True
