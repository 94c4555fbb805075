"""status, attach and fetch of a group of jobs."""

import json
from pathlib import Path
from typing import Any

from train_classifier.cli import jobs as job_commands
from train_classifier.cli.console import Console
from train_classifier.cli.runs.group_display import GroupDisplay, GroupJob, count, first_failure
from train_classifier.controller import groups, steps
from train_classifier.controller.find_jobs import LocatedJob
from train_classifier.core import text
from train_classifier.core.errors import ExitCode, NotReady, OutOfTouch, TrainClassifierError
from train_classifier.core.job import STATES


def show_status(located: LocatedJob, console: Console) -> ExitCode:
    """Show the jobs of a group as a table."""
    if console.json_mode:
        console.out(json.dumps({**located.answer, "host": located.host.name}))
        return ExitCode.TRAINED
    display = _display(located, console)
    ids = list(display.jobs)
    span = f"{ids[0]} to {ids[-1]}" if len(ids) > 1 else ids[0]
    rows = [("group", located.id), ("host", located.host.name), ("jobs", f"{len(ids)}, {span}")]
    for name, value in rows:
        console.out(f"{name.ljust(5)}  {text.clean(value)}")
    console.out("\n" + display.table(console.width))
    _warn_of_failures(located, console)
    return ExitCode.TRAINED


def attach(located: LocatedJob, output: Path, patience: float, console: Console) -> ExitCode:
    """Follow all jobs of a group from their first bytes to their ends, fetch, and return the exit code."""
    answers = [answer for answer in located.jobs or () if _state(answer) not in STATES[:2]]
    if not answers:
        raise NotReady(f"No job of group {located.id} was started.", "Start the training again.")
    unstarted = len(located.jobs or ()) - len(answers)
    if unstarted:
        console.event("message", level="warning", text=f"{count(unstarted)} of this group never started.")
    display = _display(located, console, answers)
    ids = list(display.jobs)
    specs = [answer.get("spec") or {} for answer in answers]
    leases = [spec["lease_s"] for spec in specs if spec.get("lease_s")]
    paths = groups.archive_paths(output, ids)
    lease = min(leases, default=None)
    delivery = groups.Delivery(located.host, located.id, paths, display, patience, lease)
    failure: TrainClassifierError | None = None
    display.introduce(located.host.name)
    _warn_of_failures(located, console)
    try:
        delivery.follow(ids, console)
    except TrainClassifierError as error:
        failure = error
    except KeyboardInterrupt:
        again = f"train-classifier attach {located.id}{located.host.flags}"
        failure = OutOfTouch("Left; the jobs run on.", f"Follow them again: {again}")
    for job, problem in delivery.failures.items():
        display.jobs[job].failure = problem
    code = failure.code if failure else first_failure(list(display.jobs.values()))
    if not code:
        failure = next(iter(located.failures.values()), None)
        code = failure.code if failure else code
    display.show_end(failure, code)
    return code


def fetch(located: LocatedJob, output: Path, most: int | None, patience: float, console: Console) -> ExitCode:
    """Fetch the archives of all finished jobs of a group; return the code of the first that has none."""
    code = ExitCode.TRAINED
    fetched: list[dict[str, Any]] = []
    for answer in located.jobs or ():
        job = LocatedJob(located.host, answer)
        path = groups.archive_paths(output, [job.id])[job.id]
        delivered, problem = None, None
        try:
            there = job_commands.Output(path, keeps_good=False)
            delivered = job_commands.fetch_archive(job, there, most, patience, console)
            console.say(f"{delivered['path']}: {text.show_bytes(delivered['bytes'])}")
        except TrainClassifierError as error:
            problem = error.to_dict()
            code = code or error.code
            console.event("message", level="warning", text=error.reason)
        fetched.append({"id": job.id, "artefacts": delivered, "error": problem})
    _warn_of_failures(located, console)
    for id, failure in located.failures.items():
        code = code or failure.code
        fetched.append({"id": id, "artefacts": None, "error": failure.to_dict()})
    console.finish()
    if console.json_mode:
        console.out(json.dumps({"id": located.id, "exit_code": int(code), "jobs": fetched}))
    elif code:
        missing = sum(one["artefacts"] is None for one in fetched)
        console.say(f"{count(missing)} of {len(fetched)} brought no archive.", "yellow")
    return code


def _warn_of_failures(located: LocatedJob, console: Console) -> None:
    for job, error in located.failures.items():
        console.event("message", level="warning", text=f"job {job} cannot be read: {error.reason}")


def _display(
    located: LocatedJob, console: Console, answers: list[dict[str, Any]] | None = None
) -> GroupDisplay:
    shown = []
    for answer in located.jobs or () if answers is None else answers:
        spec, status = answer.get("spec") or {}, answer.get("status") or {}
        job = GroupJob(str(answer["id"]), str(spec.get("model")), spec.get("sweep") or {}, located.host.name)
        if answers is None:
            job.state, job.phase = _state(answer), status.get("phase")
            job.result = answer.get("result")
            if not job.result and status.get("message") != job.phase:
                job.message = str(status.get("message") or "")
            if (job.result or {}).get("exit_code"):
                job.failure = steps.error_of(job.result or {})
        shown.append(job)
    return GroupDisplay(located.id, shown, console, located.host.flags)


def _state(answer: dict[str, Any]) -> str:
    return str((answer.get("status") or {}).get("state"))
