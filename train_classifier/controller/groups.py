"""A group of jobs on one host: submitted in order, followed by one connection, fetched as they end."""

import base64
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from train_classifier.controller import fetch as fetching
from train_classifier.controller import follow as following
from train_classifier.controller import steps
from train_classifier.controller.events import Reporter, phase
from train_classifier.controller.order import Order, archive_path
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import TrainClassifierError, from_dict

#: Most bytes of one job's log in one answer, which holds those of all jobs.
CHUNK = 256 << 10


class GroupListener(Protocol):
    """Receives what a group does. Calls come from two threads, one at a time."""

    def job_event(self, job: str, event: str, **fields: Any) -> None:
        """Receive an event of one job, as a Reporter does."""

    def job_log(self, job: str, data: bytes) -> None:
        """Receive the next bytes of one job's log."""


class _JobReporter:
    """The Reporter of one job of a group."""

    def __init__(self, job: str, listener: GroupListener, lock: threading.Lock) -> None:
        self._job, self._listener, self._lock = job, listener, lock

    def event(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._listener.job_event(self._job, event, **fields)

    def log(self, data: bytes) -> None:
        with self._lock:
            self._listener.job_log(self._job, data)


def prepare(
    host: RemoteHost,
    orders: Sequence[Order],
    report: Reporter,
    go_on: Callable[[], None],
    require_unchanged: Callable[[Order], None],
) -> None:
    """Make every job's folder on the host, and send the sources once. Nothing is started.

    `go_on` is called before each step and raises when the caller changed its mind; `require_unchanged` before
    the sources are sent again, and raises when they are not those of the first job.
    Raises as `steps.preflight` and `steps.push` do.
    """
    go_on()
    if not steps.preflight(host, orders[0], report)["pushed"]:
        go_on()
        steps.push(host, orders[0], report)
    with phase(report, "prepare"):
        for order in orders[1:]:
            go_on()
            if not steps.prepare(host, order):
                # Another command has pushed meanwhile, or a model has files of its own.
                require_unchanged(order)
                steps.push(host, order, report)


def submit(
    host: RemoteHost,
    orders: Sequence[Order],
    secrets: Mapping[str, Mapping[str, str]],
    report: Reporter,
    go_on: Callable[[], None],
) -> Iterator[str]:
    """Start the jobs in their order, and yield the id of each. `secrets` has the values for each job's id.

    Nobody follows them yet: the leases of those that were started are renewed here.
    """
    leases = [order.spec.lease_s for order in orders if order.spec.lease_s is not None]
    started: list[str] = []
    renewed = time.monotonic()
    with phase(report, "start"):
        for order in orders:
            go_on()
            if leases and started and time.monotonic() - renewed > min(leases) / 4:
                renewed = time.monotonic()
                jobs = {job: {"offset": 0, "seen": 0} for job in started}
                request = {"verb": "follow_group", "for": 0, "wait": 0, "max": 1, "renew": True, "jobs": jobs}
                host.call(request)
            steps.submit(host, order, secrets[order.spec.id], report)
            started.append(order.spec.id)
            yield order.spec.id


def follow(
    host: RemoteHost,
    group: str,
    jobs: Sequence[str],
    reporters: Mapping[str, Reporter],
    report: Reporter,
    patience: float,
    lease_s: float | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Show logs and statuses of all jobs; yield each job's id and last answer as it ends.

    The answer holds `error` for a job that is no longer on the host.
    Raises OutOfTouch after `patience` seconds without a connection.
    """
    known: dict[str, dict[str, Any]] = {job: {"offset": 0, "seen": 0, "notes": 0} for job in jobs}
    fields = {**following.follow_request(renew=lease_s is not None, inline=True), "max": CHUNK}
    stream: Iterator[dict[str, Any]] = iter(())

    def next_answer() -> dict[str, Any]:
        nonlocal stream
        answer = next(stream, None)
        if answer is None:
            seen = {job: {"offset": one["offset"], "seen": one["seen"]} for job, one in known.items()}
            request = {"verb": "follow_group", **fields, "jobs": seen}
            stream = host.stream(request, following.POLL_S + 30)
            answer = next(stream)
        return answer

    try:
        while known:
            answers = following.retry_while_unreachable(host, group, next_answer, report, patience, lease_s)
            for answer in answers.get("jobs") or ():
                job = answer.get("id")
                if job not in known:
                    continue
                if answer.get("error") or _take_answer(answer, known[job], reporters[job]):
                    del known[job]
                    yield job, answer
            report.event("alive")
    finally:
        close = getattr(stream, "close", None)
        if close:
            close()


def _take_answer(answer: dict[str, Any], state: dict[str, Any], report: Reporter) -> bool:
    """Report what an answer of `read` has; return whether the job has ended and its whole log was read."""
    data = following.log_bytes(answer)
    if data:
        report.log(data)
        state["offset"] += len(data)
    status = answer.get("status") or {}
    if status.get("version", 0) != state["seen"]:
        state["seen"] = status.get("version", 0)
        state["notes"] = following.report_status(status, report, state["notes"])
    return answer.get("result") is not None and state["offset"] >= int(answer.get("log_size") or 0)


@dataclasses.dataclass
class Delivery:
    """Where the archives of a group go, and how its jobs ended."""

    host: RemoteHost
    group: str
    #: The archive of each job, by id.
    paths: Mapping[str, Path]
    listener: GroupListener
    patience: float
    lease_s: float | None = None
    #: The failure of each job that did not end well.
    failures: dict[str, TrainClassifierError] = dataclasses.field(default_factory=dict)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def follow(self, jobs: Sequence[str], report: Reporter) -> None:
        """Follow the jobs to their ends and fetch what each leaves meanwhile; none stops for another.

        Raises OutOfTouch; failures of jobs are recorded.
        """
        reporters = {job: _JobReporter(job, self.listener, self._lock) for job in jobs}
        ended: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()

        crashes: list[BaseException] = []

        def fetch_ended() -> None:
            try:
                while (item := ended.get()) is not None:
                    self.fetch(*item, reporters[item[0]])
            except BaseException as error:
                crashes.append(error)

        # Beside the following, which renews the leases of those that run.
        fetcher = threading.Thread(target=fetch_ended, daemon=True, name="fetch")
        fetcher.start()
        following_group = follow(self.host, self.group, jobs, reporters, report, self.patience, self.lease_s)
        try:
            for job, answer in following_group:
                ended.put((job, answer))
        finally:
            ended.put(None)
        fetcher.join()
        if crashes:
            raise crashes[0]

    def fetch(self, job: str, answer: Mapping[str, Any], report: Reporter) -> None:
        """Fetch a finished job's archive, and record how it ended."""
        try:
            if answer.get("error"):
                raise from_dict(answer["error"], self.host.name)
            result = answer["result"]
            report.event("result", result=result)
            if answer.get("content"):
                content = base64.b64decode(answer["content"])
                fetching.write_part_file(self.paths[job], job, content)
            steps.fetch(self.host, job, result, self.paths[job], report, self.patience)
        except TrainClassifierError as error:
            self.failures[job] = error
        finally:
            report.event("ended")


def archive_paths(output: Path, jobs: Sequence[str]) -> dict[str, Path]:
    """Return where the archive of each job goes: beside `output`, with its id in the name."""
    return {job: archive_path(output, job, {"exit_code": 1}, keeps_good=True) for job in jobs}
