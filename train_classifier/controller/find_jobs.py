"""Finds and lists jobs on all hosts of an inventory in parallel, without Ansible."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from train_classifier.controller.transport import RemoteHost, kill_running_calls
from train_classifier.core.errors import AmbiguousId, BadInput, NotReady, TrainClassifierError, from_dict
from train_classifier.core.job import JOB_ID, STATES

T = TypeVar("T")
#: Number of hosts that are queried at the same time.
AT_ONCE = 32


@dataclass(frozen=True)
class LocatedJob:
    """One job or a group of jobs, the host, and the worker's answer to `status`."""

    host: RemoteHost
    answer: dict[str, Any]

    @property
    def id(self) -> str:
        """The whole id."""
        return str(self.answer["id"])

    @property
    def jobs(self) -> list[dict[str, Any]] | None:
        """The answers for the jobs of a group, in order; None for a single job."""
        return self.answer.get("jobs") or None

    @property
    def failures(self) -> dict[str, TrainClassifierError]:
        """Why jobs of a group could not be read, by their ids."""
        failures = self.answer.get("failures") or ()
        return {str(one.get("id")): from_dict(one.get("error"), self.host.name) for one in failures}

    def require_started(self) -> "LocatedJob":
        """Return this job. Raises NotReady when it was prepared but never started: it produces no output."""
        if (self.answer.get("status") or {}).get("state") in STATES[:2]:
            raise NotReady(
                f"Job {self.id} on {self.host.name} was never started (its push was cut, or still runs).",
                "Start the training again.",
            )
        return self


def ask_hosts(
    hosts: Sequence[RemoteHost], call: Callable[[RemoteHost], T]
) -> list[tuple[RemoteHost, T | TrainClassifierError]]:
    """Call all hosts in parallel; return the answers, or the failures, in order of the hosts.

    Ctrl-C ends it at once, its connections included.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    received: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()
    for number in range(len(hosts)):
        pending.put(number)

    def work() -> None:
        while True:
            try:
                number = pending.get_nowait()
            except queue.Empty:
                return
            try:
                received.put((number, call(hosts[number])))
            except BaseException as error:
                received.put((number, error))

    # Daemon threads: the exit does not wait for a host that does not answer.
    threads = [
        threading.Thread(target=work, daemon=True, name="ask") for _ in range(min(AT_ONCE, len(hosts)))
    ]
    for thread in threads:
        thread.start()
    answers: dict[int, T | TrainClassifierError] = {}
    try:
        while len(answers) < len(hosts):
            number, answer = received.get()
            if isinstance(answer, BaseException) and not isinstance(answer, TrainClassifierError):
                raise answer
            answers[number] = answer
    except BaseException:
        with contextlib.suppress(queue.Empty):
            while True:
                pending.get_nowait()
        # Repeatedly for a few seconds: a thread may be about to start its call.
        end = time.monotonic() + 5
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
            kill_running_calls()
            time.sleep(0.01)
        raise
    return [(host, answers[number]) for number, host in enumerate(hosts)]


def find_job(hosts: Sequence[RemoteHost], job: str) -> LocatedJob:
    """Return one job, as `find` does. Raises BadInput for a group, too."""
    located = find(hosts, job)
    jobs = located.jobs
    if jobs is None:
        return located
    raise BadInput(
        f"{located.id} is a group of {len(jobs)} jobs, and this command takes one.",
        hint=f"Name one of them, {jobs[0]['id']} to {jobs[-1]['id']}; which is which: train-classifier "
        f"status {located.id}{located.host.flags}",
    )


def find(hosts: Sequence[RemoteHost], job: str, figures: bool = False) -> LocatedJob:
    """Return the job or group by its id, a unique beginning of it, or `last` for the newest of all hosts.

    With `figures` the answer about a job in training says what it uses and has measured. Raises BadInput when
    no host has it or several match, and the host's own failure when the job that is meant might be on a host
    that could not be asked.
    """
    answers = ask_hosts(hosts, lambda host: _ask(host, job, figures))
    matches = [LocatedJob(host, answer) for host, answer in answers if isinstance(answer, dict)]
    errors = [(host, answer) for host, answer in answers if isinstance(answer, TrainClassifierError)]
    is_whole_id = JOB_ID.match(job) or any(match.id == job for match in matches)
    if not (matches and is_whole_id):
        for host, error in errors:
            if not isinstance(error, BadInput):
                # The newest job may be on a host that did not answer.
                error.hint = _hint_with_another_host(error.hint, hosts, host)
                raise error
            if isinstance(error, AmbiguousId):
                raise BadInput(f"{host.name}: {error.reason}", hint=error.hint)
    if job == "last" and matches:
        return max(matches, key=lambda match: match.id)
    if len({match.id for match in matches}) > 1:
        places = ", ".join(f"{match.id} on {match.host.name}" for match in matches)
        raise BadInput(f"Job {job} is ambiguous: {places}.", hint="Give more of the id.")
    if matches:
        return matches[0]
    names = ", ".join(host.name for host, _ in errors) or "no host"
    flags = hosts[0].flags if hosts else ""
    if job == "last":
        raise BadInput(
            f"You have no job on {names}.",
            hint=f"Start one: train-classifier train MODEL{flags}. For other hosts name their inventory by "
            "--inventory.",
        )
    raise BadInput(
        f"There is no job {job} of yours on {names}.",
        hint=f"Your jobs there: train-classifier list --all{flags}. The jobs of other users are not shown; "
        "for other hosts name their inventory by --inventory.",
    )


def _ask(host: RemoteHost, job: str, figures: bool) -> dict[str, Any]:
    answer = host.call({"verb": "status", "id": job, "figures": figures})
    if not answer.get("id"):
        raise NotReady(f"{host.name} answered without the id of a job.")
    return answer


def _hint_with_another_host(hint: str | None, hosts: Sequence[RemoteHost], without: RemoteHost) -> str | None:
    """Return the hint; with other hosts in the inventory, also how to query only one of them."""
    names = [host.name for host in hosts if host is not without]
    if not names:
        return hint
    return " ".join(part for part in (hint, f"To ask only one host: --host {names[0]}") if part)


def list_jobs(
    hosts: Sequence[RemoteHost], all_jobs: bool, all_users: bool = False
) -> tuple[list[dict[str, Any]], list[TrainClassifierError]]:
    """Return the jobs of all hosts, oldest first, each with its `host`, and the failures of hosts."""
    jobs: list[dict[str, Any]] = []
    errors: list[TrainClassifierError] = []
    request = {"verb": "list", "all": all_jobs, "all_users": all_users}
    for host, answer in ask_hosts(hosts, lambda host: host.call(request)):
        if isinstance(answer, TrainClassifierError):
            errors.append(answer)
        else:
            jobs.extend({**job, "host": host.name} for job in answer.get("jobs", []))
    return sorted(jobs, key=lambda job: str(job.get("id"))), errors
