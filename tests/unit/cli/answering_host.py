"""A host that is asked by no connection."""

from __future__ import annotations

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
