"""Follows a job's log (byte for byte from an offset) and its status, also after lost connections."""

import base64
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from train_classifier.controller.events import Reporter
from train_classifier.controller.transport import RemoteHost, Unreachable
from train_classifier.core import options
from train_classifier.core.errors import NotReady, OutOfTouch
from train_classifier.core.text import show_seconds

#: Seconds after which the host answers even without news, so that a listener that is gone is noticed.
POLL_S = 10.0
#: Most bytes of the log in one answer.
CHUNK = 4 << 20
#: Up to this many bytes, an archive is part of the result: no extra process and connection are needed.
INLINE = 128 << 10
#: Seconds after which the controller asks again, so that a dead controller's lease is not renewed for longer.
STREAM_S = 60.0
#: Seconds without a connection after which a controller gives up; the job never does.
PATIENCE_S: float = options.default("patience")
#: After this many ends without an answer in a row, the worker is broken; the connection is not the cause.
NO_ANSWERS = 5

T = TypeVar("T")


def attach_hint(job: str, flags: str, lease_s: float | None) -> str:
    """Return what happens to a job that nobody follows any more, and the command that follows it again."""
    command = f"train-classifier attach {job}{flags}"
    if lease_s is None:
        return f"The job continues. Follow it again: {command}"
    return f"The job is stopped unless it is followed again within {show_seconds(lease_s)}: {command}"


def retry_while_unreachable(
    host: RemoteHost,
    job: str,
    action: Callable[[], T],
    report: Reporter,
    patience: float = PATIENCE_S,
    lease_s: float | None = None,
) -> T:
    """Return what `action` returns, trying again while the connection is lost, up to `patience` seconds.

    Raises OutOfTouch after that; `lease_s` is the job's lease, for the hint. A changed host key, or another
    failure that waiting cannot solve, is raised at once.
    """
    lost_since: float | None = None
    delay, unanswered = 0.5, 0
    while True:
        try:
            value = action()
        except Unreachable as error:
            now = time.monotonic()
            if lost_since is None:
                lost_since = now
                if error.kind != "no-answer":
                    report.event("message", level="warning", text=f"{error.reason} Trying again.")
            unanswered = unanswered + 1 if error.kind == "no-answer" else 0
            if error.final or unanswered >= NO_ANSWERS or now - lost_since + delay > patience:
                raise OutOfTouch(
                    f"The connection to {host.name} is lost. {error.reason}",
                    attach_hint(job, host.flags, lease_s) + (f" ({error.hint})" if error.hint else ""),
                    error.detail,
                ) from error
            time.sleep(delay)
            delay = min(delay * 2, 10.0)
            continue
        if lost_since is not None:
            seconds = time.monotonic() - lost_since
            report.event(
                "message", level="info", text=f"Connected to {host.name} again after {seconds:.0f} s."
            )
        return value


def follow_request(
    offset: int = 0, version: int = 0, renew: bool = False, inline: bool = False, figures: bool = False
) -> dict[str, Any]:
    """Return the request for the worker's `follow`, without the job's id. `version` is the last status's."""
    return {
        "offset": offset,
        "wait": POLL_S,
        "for": STREAM_S,
        "max": CHUNK,
        "seen": version,
        "renew": renew,
        "inline": INLINE if inline else 0,
        "figures": figures,
    }


def follow(
    host: RemoteHost,
    job: str,
    report: Reporter,
    *,
    patience: float = PATIENCE_S,
    lease_s: float | None = None,
    inline: bool = False,
    figures: bool = False,
    answers: Iterator[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Pass the log and every change of status to `report` until the job is finished.

    A missing answer does not end it: only the worker's own result does. `lease_s` is the job's lease, which
    is renewed; `inline` requests a small archive with the result, `figures` what the model uses and has
    measured while it trains, for a live line; `answers` is an open stream from the job's
    beginning. Returns the last answer of `follow`, with `result` and `archive`.
    Raises OutOfTouch after `patience` seconds without a connection, and the worker's own failures.
    """
    offset = version = notes = 0
    stream: Iterator[dict[str, Any]] = answers or iter(())

    def next_answer() -> dict[str, Any]:
        nonlocal stream
        answer = next(stream, None)
        if answer is None:
            fields = follow_request(offset, version, lease_s is not None, inline, figures)
            stream = host.stream({"verb": "follow", "id": job, **fields}, POLL_S + 30)
            answer = next(stream)
        return answer

    try:
        while True:
            answer = retry_while_unreachable(host, job, next_answer, report, patience, lease_s)
            data = log_bytes(answer)
            if data:
                report.log(data)
                offset += len(data)
            status = answer.get("status") or {}
            if status.get("version", 0) != version:
                version = status.get("version", 0)
                notes = report_status(status, report, notes)
            elif not data:
                # Raises in a plugin whose command line was killed: then the plugin stops renewing the lease.
                report.event("alive")
            if answer.get("figures"):
                report.event("figures", figures=answer["figures"])
            if answer.get("result") is not None and offset >= int(answer.get("log_size") or 0):
                report.event("result", result=answer["result"])
                return answer
    finally:
        if isinstance(stream, Generator):
            stream.close()


def report_status(status: dict[str, Any], report: Reporter, notes: int) -> int:
    """Report a job's status and its notes after the first `notes`; return how many notes there are."""
    for note in (status.get("notes") or [])[notes:]:
        report.event("message", level="info", text=str(note))
        notes += 1
    report.event(
        "status",
        state=status.get("state"),
        phase=status.get("phase"),
        message=status.get("message"),
        times=status.get("times"),
        failed=status.get("failed_phase"),
    )
    return notes


def log_bytes(answer: dict[str, Any]) -> bytes:
    """Return the log bytes that an answer of `read` carries, at most as many as were asked for.

    Raises NotReady when they are damaged.
    """
    data = answer.get("data")
    try:
        return zlib.decompressobj().decompress(base64.b64decode(data), CHUNK) if data else b""
    except (TypeError, ValueError, zlib.error) as error:
        raise NotReady(f"The log of job {answer.get('id')} came damaged: {error}.") from error
