"""Find and list jobs on all hosts of an inventory at once, without Ansible."""

import concurrent.futures
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from train_classifier.errors import BadInput, TrainClassifierError
from train_classifier.transport import Host

T = TypeVar("T")
#: Hosts that are asked at the same time.
AT_ONCE = 32


@dataclass(frozen=True)
class Found:
    """One job where it lies, with the worker's answer to `status`."""

    host: Host
    answer: dict[str, Any]

    @property
    def id(self) -> str:
        """The job's whole id."""
        return str(self.answer["id"])


def ask(hosts: Sequence[Host], question: Callable[[Host], T]) -> list[tuple[Host, T | TrainClassifierError]]:
    """Put the question to every host at once and return the answers, or why there is none, in order."""

    def one(host: Host) -> T | TrainClassifierError:
        try:
            return question(host)
        except TrainClassifierError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(min(AT_ONCE, max(1, len(hosts)))) as pool:
        return list(zip(hosts, pool.map(one, hosts), strict=True))


def find(hosts: Sequence[Host], job: str) -> Found:
    """Return the job by its id, a unique beginning of it, or `last` for the newest of all hosts.

    Raises BadInput when no host has it or several match, and the host's own failure when the job
    might be on a host that could not be asked.
    """
    answers = ask(hosts, lambda host: host.call({"verb": "status", "id": job}))
    found = [Found(host, answer) for host, answer in answers if isinstance(answer, dict)]
    if job == "last" and found:
        return max(found, key=lambda one: one.id)
    if len({one.id for one in found}) > 1:
        places = ", ".join(f"{one.id} on {one.host.name}" for one in found)
        raise BadInput(f"Job {job} is ambiguous: {places}.")
    if found:
        return found[0]
    errors = [(host, answer) for host, answer in answers if isinstance(answer, TrainClassifierError)]
    for _, error in errors:
        if not isinstance(error, BadInput):
            raise error
    if len(errors) == 1:
        raise errors[0][1]
    names = ", ".join(host.name for host, _ in errors) or "no host"
    raise BadInput(f"There is no job {job} on {names}.", hint="train-classifier list --all shows every job.")


def every(hosts: Sequence[Host], everything: bool) -> tuple[list[dict[str, Any]], list[TrainClassifierError]]:
    """Return the jobs of all hosts, oldest first, each with its `host`, and what went wrong with hosts."""
    jobs: list[dict[str, Any]] = []
    errors: list[TrainClassifierError] = []
    for host, answer in ask(hosts, lambda host: host.call({"verb": "list", "all": everything})):
        if isinstance(answer, TrainClassifierError):
            errors.append(answer)
        else:
            jobs.extend({**job, "host": host.name} for job in answer.get("jobs", []))
    return sorted(jobs, key=lambda job: str(job.get("id"))), errors
