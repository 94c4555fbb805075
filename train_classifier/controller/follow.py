"""Follows a job's log (byte for byte from an offset) and its status, also after lost connections."""

import base64
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from train_classifier.controller.events import Reporter
from train_classifier.controller.transport import RemoteHost, Unreachable
from train_classifier.core.errors import OutOfTouch

#: Seconds after which the host answers even without news, so that a listener that is gone is noticed.
POLL_S = 10.0
#: Most bytes of the log in one answer.
CHUNK = 4 << 20
#: Up to this many bytes, an archive is part of the result: no extra process and connection are needed.
INLINE = 128 << 10
#: Seconds after which the controller asks again, so that a dead controller's lease is not renewed for longer.
STREAM_S = 60.0
#: Seconds without a connection after which a controller gives up; the job never does.
PATIENCE_S = 600.0
#: After this many ends without an answer in a row, the worker is broken; the connection is not the cause.
NO_ANSWERS = 5

T = TypeVar("T")


def patiently(
    host: RemoteHost, job: str, act: Callable[[], T], report: Reporter, patience: float = PATIENCE_S
) -> T:
    """Return what `act` returns, trying again while the connection is lost, up to `patience` seconds.

    Raises OutOfTouch after that. A changed host key, or another failure that waiting cannot solve, is
    raised at once.
    """
    lost: float | None = None
    delay, silent = 0.5, 0
    while True:
        try:
            value = act()
        except Unreachable as error:
            now = time.monotonic()
            if lost is None:
                lost = now
                if error.kind != "no-answer":
                    report.event("message", level="warning", text=f"{error.reason} Trying again.")
            silent = silent + 1 if error.kind == "no-answer" else 0
            if error.final or silent >= NO_ANSWERS or now - lost + delay > patience:
                raise OutOfTouch(
                    f"Out of touch with {host.name}: {error.reason[:1].lower()}{error.reason[1:]}",
                    f"The job runs on. Pick it up again: train-classifier attach {job}{host.flags}"
                    + (f" ({error.hint})" if error.hint else ""),
                    error.detail,
                ) from error
            time.sleep(delay)
            delay = min(delay * 2, 10.0)
            continue
        if lost is not None:
            gap = time.monotonic() - lost
            report.event("message", level="info", text=f"In touch with {host.name} again after {gap:.0f} s.")
        return value


def request(offset: int = 0, seen: int = 0, renew: bool = False, inline: bool = False) -> dict[str, Any]:
    """Return the request for the worker's `follow`, without the job's id."""
    return {
        "offset": offset,
        "wait": POLL_S,
        "for": STREAM_S,
        "max": CHUNK,
        "seen": seen,
        "renew": renew,
        "inline": INLINE if inline else 0,
    }


def follow(
    host: RemoteHost,
    job: str,
    report: Reporter,
    *,
    patience: float = PATIENCE_S,
    renew: bool = False,
    inline: bool = False,
    answers: Iterator[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Pass the log and every change of status to `report` until the job is finished.

    A missing answer does not end it: only the worker's own result does. `renew` renews the job's lease,
    `inline` requests a small archive with the result, `answers` is an open stream from the job's beginning.
    Returns the last answer of `follow`, with `result` and `archive`.
    Raises OutOfTouch after `patience` seconds without a connection, and the worker's own failures.
    """
    offset = seen = 0
    stream: Iterator[dict[str, Any]] = answers or iter(())

    def look() -> dict[str, Any]:
        nonlocal stream
        answer = next(stream, None)
        if answer is None:
            asked = {"verb": "follow", "id": job, **request(offset, seen, renew, inline)}
            stream = host.stream(asked, POLL_S + 30)
            answer = next(stream)
        return answer

    try:
        while True:
            answer = patiently(host, job, look, report, patience)
            data = unpack(answer)
            if data:
                report.log(data)
                offset += len(data)
            status = answer.get("status") or {}
            if status.get("version", 0) != seen:
                seen = status.get("version", 0)
                report.event(
                    "status",
                    state=status.get("state"),
                    phase=status.get("phase"),
                    message=status.get("message"),
                    times=status.get("times"),
                )
            elif not data:
                # Raises in a plugin whose command line was killed: then the plugin stops renewing the lease.
                report.event("alive")
            if answer.get("result") is not None and offset >= int(answer.get("log_size", 0)):
                report.event("result", result=answer["result"])
                return answer
    finally:
        if isinstance(stream, Generator):
            stream.close()


def unpack(answer: dict[str, Any]) -> bytes:
    """Return the log bytes that an answer of `read` carries."""
    data = answer.get("data")
    return zlib.decompress(base64.b64decode(data)) if data else b""
