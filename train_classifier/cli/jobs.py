"""logs, attach, fetch, cancel and clean: jobs are found by their id on all hosts."""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train_classifier.cli.console import Console
from train_classifier.cli.result_text import show_ending
from train_classifier.controller import fetch as fetching
from train_classifier.controller import find_jobs, steps
from train_classifier.controller import follow as following
from train_classifier.controller.order import archive_path
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import options, text
from train_classifier.core.errors import (
    BadInput,
    ExitCode,
    NothingDelivered,
    NotReady,
    OutOfTouch,
    TrainClassifierError,
)
from train_classifier.request import checks
from train_classifier.request.checkout import user_name

#: Most files that a hint names.
MOST_NAMED = 5


class Output(NamedTuple):
    """Where an archive goes."""

    path: Path
    #: A failed job's archive goes to a file of its own beside it: the caller did not name the file.
    keeps_good: bool


def show_logs(
    hosts: Sequence[RemoteHost], job: str, until_end: bool, patience: float, console: Console
) -> ExitCode:
    """Write the job's log so far, raw, with nothing added; with `until_end` until the job ends."""
    located = find_jobs.find_job(hosts, job).require_started()
    if until_end:
        following.follow(located.host, located.id, Quiet(console), patience=patience)
        return ExitCode.TRAINED
    offset = 0
    request: dict[str, Any] = {"verb": "read", "id": located.id, "wait": 0, "max": following.CHUNK, "seen": 0}
    while True:
        request["offset"] = offset
        answer = following.retry_while_unreachable(
            located.host, located.id, lambda: located.host.call(request), console, patience
        )
        data = following.log_bytes(answer)
        console.log(data)
        offset += len(data)
        if not data or offset >= int(answer.get("log_size") or 0) or console.log_closed:
            break
    result = located.answer.get("result") or {}
    if not offset and result.get("exit_code"):
        console.error(steps.error_of(result))
    return ExitCode.TRAINED


class Quiet:
    """Shows only the log and warnings, because `logs` adds nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, event: str, **fields: Any) -> None:
        """Show warnings only."""
        if event == "message":
            self._console.event(event, **fields)

    def log(self, data: bytes) -> None:
        """Write log bytes; end when their reader is gone."""
        self._console.log(data)
        if self._console.log_closed:
            raise OutOfTouch("Nobody reads the log any more.", "The job runs on.")


class Attached:
    """A job that `attach` follows, with the facts for the summary."""

    def __init__(self, located: find_jobs.LocatedJob, console: Console) -> None:
        self.job = located.id
        self.model = str((located.answer.get("spec") or located.answer.get("status") or {}).get("model"))
        self.host_name = located.host.name
        self.result: dict[str, Any] | None = None
        self.delivered: dict[str, Any] | None = None
        self.failure: TrainClassifierError | None = None
        self._console = console

    def event(self, event: str, **fields: Any) -> None:
        """Remember the result and show the event."""
        if event == "result":
            self.result = fields["result"]
        elif event == "delivered":
            self.delivered = fields
        self._console.event(event, **fields)

    def log(self, data: bytes) -> None:
        """Show log bytes."""
        self._console.log(data)


def attach(
    hosts: Sequence[RemoteHost], job: str, output: Output, patience: float, console: Console
) -> ExitCode:
    """Follow a job or a group from its first byte, fetch, and show how it ended; return its exit code."""
    try:
        located = find_jobs.find(hosts, job)
    except KeyboardInterrupt:
        raise OutOfTouch(
            "Left before the job was found; if it runs, it runs on.",
            f"See train-classifier list{hosts[0].flags if hosts else ''}",
        ) from None
    if located.jobs is not None:
        from train_classifier.cli.runs import group_jobs

        return group_jobs.attach(located, output.path, patience, console)
    run = Attached(located.require_started(), console)
    lease = (located.answer.get("spec") or {}).get("lease_s")
    try:
        answer = following.follow(
            located.host, located.id, run, patience=patience, lease_s=lease, figures=console.live
        )
        result = answer["result"]
        path = archive_path(output.path, located.id, result, output.keeps_good)
        steps.fetch(located.host, located.id, result, path, run, patience)
    except TrainClassifierError as error:
        run.failure = error
    except KeyboardInterrupt:
        again = f"train-classifier attach {located.id}{located.host.flags}"
        run.failure = OutOfTouch("Left; the job runs on.", f"Follow it again: {again}")
    code = run.failure.code if run.failure else ExitCode.TRAINED
    show_ending(run, code, console)
    return code


def fetch(
    hosts: Sequence[RemoteHost], job: str, output: Output, most: int | None, patience: float, console: Console
) -> ExitCode:
    """Fetch the archive of a finished job, or those of a group, whether it succeeded or failed.

    Artefacts that stayed on the host are packed first; `most` replaces the job's own limit of bytes for that.
    """
    located = find_jobs.find(hosts, job)
    if located.jobs is not None:
        from train_classifier.cli.runs import group_jobs

        return group_jobs.fetch(located, output.path, most, patience, console)
    delivered = fetch_archive(located, output, most, patience, console)
    console.finish()
    if console.json_mode:
        console.out(json.dumps({"id": located.id, "exit_code": 0, "artefacts": delivered}))
    else:
        console.say(f"{delivered['path']}: {text.show_bytes(delivered['bytes'])}")
        console.say(f"sha256  {delivered['sha256']}")
    return ExitCode.TRAINED


def fetch_archive(
    located: find_jobs.LocatedJob, output: Output, most: int | None, patience: float, console: Console
) -> dict[str, Any]:
    """Fetch the archive of one finished job and return {path, bytes, sha256}; pack it first if needed."""
    result = _packed_result(located, most, patience, console)
    path = archive_path(output.path, located.id, result, output.keeps_good)
    return fetching.fetch(located.host, located.id, result["archive"], path, console, patience)


def _packed_result(
    located: find_jobs.LocatedJob, most: int | None, patience: float, console: Console, pack_more: bool = True
) -> dict[str, Any]:
    """Return the result of a finished job that has an archive; what stayed on the host is packed first.

    Without `pack_more` an archive that lacks only what the model wrote elsewhere is enough.
    """
    result: dict[str, Any] | None = located.require_started().answer.get("result")
    if not result:
        raise NotReady(
            f"Job {located.id} on {located.host.name} is not finished.",
            f"Wait for it: train-classifier attach {located.id}{located.host.flags}",
        )
    if result.get("unpacked") and (pack_more or not result.get("archive")):
        try:
            result = fetching.pack(located.host, located.id, most, console, patience)
        except (BadInput, NotReady) as failure:
            # An archive that is there lacks only what the model wrote elsewhere: it is fetched without that.
            if not result.get("archive"):
                raise
            warning = "; ".join(filter(None, (failure.reason, failure.hint)))
            console.event("message", level="warning", text=warning)
        else:
            steps.report_unpacked(located.host, located.id, result, console)
    if not result.get("archive"):
        error = BadInput(
            f"Job {located.id} left no archive ({result.get('outcome')}: {result.get('reason')})."
        )
        # A job that ended before its training has no log.
        trained = "training" in (result.get("seconds") or {})
        log_hint = f"Its log: train-classifier logs {located.id}{located.host.flags}"
        error.hint = (
            log_hint if trained else fetching.complete_hint(located.host, located.id, result.get("hint"))
        )
        error.detail = result.get("detail")
        raise error
    return result


def fetch_files(
    hosts: Sequence[RemoteHost],
    job: str,
    fetched: fetching.FetchedFiles,
    most: int | None,
    patience: float,
    console: Console,
) -> ExitCode:
    """Fetch single files of a finished job. What is here already stays as it is, and is then no success."""
    located = find_jobs.find_job(hosts, job)
    is_elsewhere = any(path.split("/")[0] == "workspace" for path in fetched.paths)
    _packed_result(located, most, patience, console, pack_more=is_elsewhere)
    limit = options.default("artefacts_max") if most is None else most
    fetching.fetch_files(located.host, located.id, fetched, limit, console, patience)
    console.finish()
    for name in fetched.left_out:
        warning = f"{text.short(text.printable(name), 300)} is a link and was not fetched: name its target."
        console.event("message", level="warning", text=warning)
    failure = _files_failure(located, fetched)
    if console.json_mode:
        code = int(failure.code if failure else ExitCode.TRAINED)
        console.out(json.dumps({"id": located.id, "exit_code": code, "files": fetched.files}))
    else:
        for file in fetched.files:
            path = Path(fetched.named, file["path"])
            console.say(f"{text.printable(str(path))}: {text.show_bytes(file['bytes'])}")
    if failure is not None:
        console.error(failure)
        return failure.code
    return ExitCode.TRAINED


def _files_failure(
    located: find_jobs.LocatedJob, fetched: fetching.FetchedFiles
) -> TrainClassifierError | None:
    """Return why not all of the files were delivered."""
    problems: list[str] = []
    alike: list[str] = []
    for path, names in fetched.missing.items():
        problems.append(f"job {located.id} left no {text.quoted(path)}")
        alike += names
    if problems:
        return BadInput(*problems[:20], hint=_left_instead(alike, fetched))
    if fetched.existing:
        shown = ", ".join(map(text.printable, fetched.existing[:3]))
        more = f" and {len(fetched.existing) - 3} more" if len(fetched.existing) > 3 else ""
        where = text.printable(str(fetched.folder))
        return NothingDelivered(
            f"{shown}{more}: there is such a file in {where} already, which was left as it is.",
            "--force replaces it; -o DIR chooses another folder.",
        )
    if not fetched.files:
        return NothingDelivered("There are no files below these paths.")
    return None


def _left_instead(alike: Sequence[str], fetched: fetching.FetchedFiles) -> str:
    """Return what a job left instead of the paths that are missing."""
    # Most paths have their first part in common.
    bases = {name.rpartition("/")[2]: name for name in fetched.names}
    near = text.nearest(next(iter(fetched.missing)).rpartition("/")[2], bases)
    names = alike or ([bases[near]] if near else fetched.names)
    shown = ", ".join(text.short(text.printable(name), 100) for name in names[:MOST_NAMED])
    more = ", …" if len(names) > MOST_NAMED else ""
    if alike:
        return f"Files of that name: {shown}{more}"
    if near:
        return f"A file with a similar name: {shown}"
    return f"It left {shown}{more}. A folder brings all that is in it." if names else "It left no files."


def find_files(paths: Sequence[str], output: str | None, replaces: bool) -> fetching.FetchedFiles:
    """Return what single files are to be fetched, checked before any host is asked. Raises BadInput."""
    problems, names = [], []
    for path in paths:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or ".." in parts or not parts:
            problems.append(f"{text.quoted(path)} is no path in the archive, such as artefacts/model.keras")
        names.append("/".join(parts))
    try:
        folder = Path(output or ".").expanduser().resolve()
    except (OSError, RuntimeError) as error:
        problems.append(f"{text.quoted(output)}: {getattr(error, 'strerror', None) or error}")
    else:
        if folder.exists() and not folder.is_dir():
            problems.append(f"--output {text.quoted(output)} is no folder, which files of a job go into")
    if problems:
        raise BadInput(*problems)
    return fetching.FetchedFiles(list(dict.fromkeys(names)), folder, replaces, output or ".")


def cancel(hosts: Sequence[RemoteHost], job: str, console: Console) -> ExitCode:
    """Stop a job, running or waiting. Asking twice is harmless."""
    located = find_jobs.find(hosts, job)
    answer = steps.cancel(located.host, located.id, f"{user_name()}@{socket.gethostname()}")
    if console.json_mode:
        jobs = {} if located.jobs is None else {"jobs": answer.get("jobs")}
        console.out(json.dumps({"id": located.id, "exit_code": 0, "state": answer.get("state"), **jobs}))
    elif located.jobs is not None:
        running = sum(not one.get("result") for one in located.jobs)
        if running:
            console.say(f"Group {located.id}: stopping {running} of {len(located.jobs)} jobs.")
        else:
            console.say(f"All jobs of group {located.id} had ended already.")
    elif located.answer.get("result"):
        console.say(f"Job {located.id} had ended already ({located.answer['result'].get('outcome')}).")
    else:
        console.say(f"Job {located.id} is being stopped.")
    return ExitCode.TRAINED


def clean(
    hosts: Sequence[RemoteHost],
    older_s: float | None,
    keep_bytes: int | None,
    dry_run: bool,
    console: Console,
) -> ExitCode:
    """Remove what finished jobs left on every host, within the budget given."""
    request = {
        "verb": "clean",
        "older_s": older_s,
        "keep_environments_bytes": keep_bytes,
        "dry_run": dry_run,
    }
    answers = find_jobs.ask_hosts(hosts, lambda host: host.call(request, timeout=3600))
    errors = [answer for _, answer in answers if isinstance(answer, TrainClassifierError)]
    answered = [(host, answer) for host, answer in answers if isinstance(answer, dict)]
    if console.json_mode:
        console.out(json.dumps([{**answer, "host": host.name} for host, answer in answered]))
    else:
        for host, answer in answered:
            removed = dict(answer.get("removed") or {})
            freed = int(removed.pop("bytes", 0) or 0)
            parts = [
                f"{count} {name.removesuffix('s') if count == 1 else name}"
                for name, count in removed.items()
                if count
            ]
            verb = "would remove" if dry_run else "removed"
            console.out(f"{host.name}: {verb} {', '.join(parts) or 'nothing'} ({text.show_bytes(freed)})")
    for error in errors:
        console.error(error)
    return errors[0].code if errors else ExitCode.TRAINED


def find_output(output: str | None) -> Output:
    """Return where the archive goes, checked before anything is fetched. Raises BadInput."""
    try:
        folder = Path.cwd()
    except FileNotFoundError as error:
        raise BadInput("the current folder no longer exists; change to another") from error
    named = output or os.environ.get(options.variable("output"))
    path, problems = checks.output(named or options.default("output"), folder)
    if problems:
        raise BadInput(*problems)
    return Output(path, keeps_good=not named)
