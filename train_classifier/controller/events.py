"""The output of a running job for its listener: events as plain dictionaries, and the log as bytes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol


class Reporter(Protocol):
    """Receives the events and the log. Any thread may call both methods, one call at a time.

    Events: `phase` {phase, state: start|end, seconds, failed}, `progress` {phase, done, total} in bytes,
    `status` {state, phase, message, times, failed: the phase that failed},
    `figures` {figures: what a model in training uses and has measured},
    `message` {level: info|warning, text}, `started` {id}, `result` {result},
    `delivered` {path, bytes, sha256}, `error` {code, reason, hint, detail, problems}.
    """

    def event(self, event: str, **fields: Any) -> None:
        """Receive one event."""

    def log(self, data: bytes) -> None:
        """Receive the next bytes of the job's log."""


@contextlib.contextmanager
def phase(report: Reporter, name: str) -> Iterator[None]:
    """Report the start and the end of a phase, also when it fails."""
    start = time.monotonic()
    report.event("phase", phase=name, state="start")
    failed = True
    try:
        yield
        failed = False
    finally:
        report.event("phase", phase=name, state="end", seconds=time.monotonic() - start, failed=failed)
