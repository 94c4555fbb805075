"""`.trainignore`: what is left out of a push, and what `!` brings back, in gitignore's syntax."""

import fnmatch
import os
import re
from pathlib import Path

import pathspec

from train_classifier.units import quoted

FILE = ".trainignore"
MOST_BYTES = 1 << 20


class TrainIgnore:
    """The patterns of the file at the repository's top; false when there are none."""

    def __init__(self, repository: Path) -> None:
        self.problems: list[str] = []
        lines = self._read(repository / FILE)
        self._negations = [
            line[1:].strip("/").split("/")
            for line in lines
            if line.startswith("!") and "/" in line[1:].strip("/")
        ]
        self._spec = None
        if any(line.strip() and not line.startswith("#") for line in lines):
            self._spec = self._compile(lines)

    def __bool__(self) -> bool:
        return self._spec is not None

    def _read(self, path: Path) -> list[str]:
        if not os.path.lexists(path):
            return []
        try:
            if not path.is_file():
                self.problems.append(f"{FILE} is not a file")
                return []
            if path.stat().st_size > MOST_BYTES:
                self.problems.append(f"{FILE} is over 1 MiB")
                return []
            content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            self.problems.append(f"{FILE} cannot be read: {error.strerror}")
            return []
        return [os.fsdecode(line.removesuffix(b"\r")) for line in content.split(b"\n")]

    def _compile(self, lines: list[str]) -> "pathspec.GitIgnoreSpec | None":
        try:
            return pathspec.GitIgnoreSpec.from_lines(lines)
        except (ValueError, re.error):
            for number, line in enumerate(lines, 1):
                try:
                    pathspec.GitIgnoreSpec.from_lines([line])
                except (ValueError, re.error):
                    self.problems.append(
                        f"{FILE}: line {number}: {quoted(line)} is no pattern of gitignore's syntax"
                    )
        return None

    def decide(self, path: bytes, folder: bool) -> bool | None:
        """Return True for left out, False for brought back by `!`, None for not named."""
        if self._spec is None:
            return None
        # A line break would end the pattern's `$` too early; no pattern can name one.
        text = os.fsdecode(path).replace("\n", "\uf00a")
        return self._spec.check_file(f"{text}/" if folder else text).include

    def reaches_into(self, folder: bytes) -> bool:
        """Return whether a line such as `!venv/keep.txt` asks for something below a left-out folder."""
        parts = os.fsdecode(folder).split("/")
        return any(
            len(pattern) > len(parts)
            and all(fnmatch.fnmatchcase(part, wanted) for part, wanted in zip(parts, pattern, strict=False))
            for pattern in self._negations
        )
