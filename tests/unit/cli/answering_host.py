"""Hosts that are asked by no connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from train_classifier.controller.transport import RemoteHost


class AnsweringHost(RemoteHost):
    """A host whose every answer, or failure, is known."""

    def __init__(self, name: str, answer: Any) -> None:
        super().__init__(name)
        self.known = answer

    def call(self, request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
        if isinstance(self.known, Exception):
            raise self.known
        return dict(self.known)


class LyingHost(RemoteHost):
    """A host that answers what it likes."""

    def __init__(self, *lines: dict[str, Any]) -> None:
        super().__init__("liar")
        self.lines = lines

    def stream(self, request: dict[str, Any], answer_timeout: float) -> Iterator[dict[str, Any]]:
        yield from map(self._checked, self.lines)
