"""What a person sees of a group: numbered lines while its jobs run, and a table at the end."""

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Any

from train_classifier.cli import result_text
from train_classifier.cli.console import Console
from train_classifier.core import text
from train_classifier.core.errors import OUTCOMES, ExitCode, TrainClassifierError
from train_classifier.core.job import number_in_group, show_sweep

#: A line of a log that is longer is shown in parts.
MOST_LINE = 1 << 16
#: Metrics of each job in the table.
MOST_METRICS = 3


class GroupJob:
    """One job of a group as far as it is known here."""

    def __init__(self, job: str, model: str, sweep: Mapping[str, str], host_name: str) -> None:
        self.job, self.model, self.host_name = job, model, host_name
        self.number = number_in_group(job)
        self.sweep = dict(sweep)
        self.state = "submitted"
        self.phase: str | None = None
        #: Why it waits.
        self.message = ""
        self.result: dict[str, Any] | None = None
        self.delivered: dict[str, Any] | None = None
        self.failure: TrainClassifierError | None = None
        #: The part of the log's last line that has come so far.
        self.rest = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def code(self) -> ExitCode:
        """The job's exit code."""
        return self.failure.code if self.failure else ExitCode.TRAINED

    def show_state(self) -> str:
        """Return what a job that has not ended does, in words."""
        return f"{self.state} ({self.phase})" if self.state == "running" and self.phase else self.state


class GroupDisplay:
    """Shows a group on a Console: each line begins with the number of its job."""

    def __init__(self, group: str, jobs: Sequence[GroupJob], console: Console, flags: str = "") -> None:
        """`flags` are those with which another command finds the host, with a space before each."""
        self.group, self.flags = group, flags
        self.jobs = {job.job: job for job in jobs}
        self.console = console
        self._digits = len(str(max((job.number for job in jobs), default=1)))
        self._models = len({job.model for job in jobs}) > 1
        #: Remarks that were shown: most concern all jobs alike.
        self._remarks: set[str] = set()

    def introduce(self, host: str) -> None:
        """Show the group's id and which job has which number."""
        self.console.say(f"group {self.group} on {host}: {count(len(self.jobs))}", "bold")
        for job in self.jobs.values():
            self._say(job, self.name(job))
        self._show_progress()

    def name(self, job: GroupJob) -> str:
        """Return what distinguishes a job of the group."""
        sweep = text.printable(show_sweep(job.sweep))
        return " ".join(filter(None, (job.model if self._models or not sweep else "", sweep)))

    # The listener's side.

    def job_event(self, job: str, event: str, **fields: Any) -> None:
        """Show an event of one job, if a person wants to know."""
        one = self.jobs[job]
        if event == "message":
            colour = "yellow" if fields.get("level") == "warning" else None
            remark = text.clean(fields["text"])
            if remark not in self._remarks:
                self._remarks.add(remark)
                self._say(one, remark, colour)
        elif event == "status":
            if fields.get("phase") == "training" and one.phase != "training":
                self._say(one, "training")
            one.state, one.phase = fields["state"], fields.get("phase")
        elif event == "result":
            one.result = fields["result"]
        elif event == "delivered":
            one.delivered = fields
        elif event == "ended":
            one.state = "finished"
            self._flush(one)
            result = one.result or {}
            taken = (result.get("seconds") or {}).get("training")
            trained = f" after {text.show_seconds(float(taken))} of training" if taken is not None else ""
            self._say(one, f"{result.get('outcome') or 'gone'}{trained}", "red" if one.failure else "green")
        self._show_progress()

    def job_log(self, job: str, data: bytes) -> None:
        """Show the whole lines of a job's log that have come, without control sequences.

        These would move the cursor to lines of other jobs. Of a line that a progress bar overwrites, the last
        version is shown.
        """
        one = self.jobs[job]
        *lines, one.rest = (one.rest + one.decoder.decode(data)).split("\n")
        if len(one.rest) > MOST_LINE:
            lines.append(one.rest)
            one.rest = ""
        self._write(one, lines)

    def _flush(self, job: GroupJob) -> None:
        if job.rest:
            self._write(job, [job.rest])
            job.rest = ""

    def _write(self, job: GroupJob, lines: Sequence[str]) -> None:
        shown = []
        for line in lines:
            last = line.rstrip("\r").rpartition("\r")[2]
            shown.append(f"{self._number(job)} | {text.clean(text.without_escapes(last))}\n")
        if shown:
            self.console.log("".join(shown).encode("utf-8", "replace"))

    def _number(self, job: GroupJob) -> str:
        return str(job.number).rjust(self._digits)

    def _say(self, job: GroupJob, words: str, colour: str | None = None) -> None:
        self.console.say(text.hanging(f"{self._number(job)}   ", words, self.console.error_width), colour)

    def _show_progress(self) -> None:
        ended = sum(job.state == "finished" for job in self.jobs.values())
        training = sum(job.state != "finished" and job.phase == "training" for job in self.jobs.values())
        self.console.show_live("group", f"{ended} of {len(self.jobs)} ended, {training} training")

    # The end.

    def show_end(self, failure: TrainClassifierError | None, code: ExitCode) -> None:
        """Show the table of all jobs, each failure once, and where the archives are; or the JSON object."""
        self.console.finish()
        jobs = list(self.jobs.values())
        if self.console.json_mode:
            self.console.out(self._json(failure, code))
        else:
            for line in ["", *self.table(self.console.error_width).splitlines()]:
                self.console.say(line)
            self._say_archives(jobs)
        for error, numbers in self._failures(jobs):
            self.console.say(numbers, "bold")
            self.console.error(error)
        if failure:
            self.console.error(failure)

    def table(self, width: int | None) -> str:
        """Return the jobs, how each ended or what it does, and its metrics."""
        metrics: dict[str, None] = {}
        for job in self.jobs.values():
            metrics.update(dict.fromkeys((job.result or {}).get("metrics") or {}))
        shown = list(metrics)[:MOST_METRICS]
        waiting = any(job.message for job in self.jobs.values())
        rows = []
        for job in self.jobs.values():
            result = job.result or {}
            values = result.get("metrics") or {}
            taken = (result.get("seconds") or {}).get("training")
            rows.append(
                [
                    job.number,
                    self.name(job),
                    OUTCOMES[job.code] if job.result or job.failure else job.show_state(),
                    text.show_seconds(float(taken)) if taken is not None else "",
                    *(text.number(values[name]) if name in values else "" for name in shown),
                    *([job.message] if waiting else ()),
                ]
            )
        head = [
            "#",
            "JOB",
            "STATUS",
            "TRAINING",
            *(text.clean(text.short(name, 20)) for name in shown),
            *(["MESSAGE"] if waiting else ()),
        ]
        return text.table(rows, head, right=(0,), width=width)

    def _say_archives(self, jobs: Sequence[GroupJob]) -> None:
        delivered = [(job, job.delivered) for job in jobs if job.delivered]
        size = text.show_bytes(sum(archive["bytes"] for _, archive in delivered))
        files = "1 file" if len(delivered) == 1 else f"{len(delivered)} files"
        patterns = {
            archive["path"].replace(job.job, f"{self.group}*") if len(delivered) > 1 else archive["path"]
            for job, archive in delivered
        }
        for number, pattern in enumerate(sorted(patterns)):
            self.console.say(f"artefacts  {pattern}" + ("" if number else f" ({files}, {size})"))

    def _failures(self, jobs: Sequence[GroupJob]) -> list[tuple[TrainClassifierError, str]]:
        """Return each different failure, and the numbers of the jobs that ended with it."""
        same: dict[tuple[int, str], list[GroupJob]] = {}
        for job in jobs:
            if job.failure:
                key = job.failure.reason.replace(job.job, "JOB")
                same.setdefault((int(job.code), key), []).append(job)
        failures = []
        for alike in same.values():
            numbers = ("job " if len(alike) == 1 else "jobs ") + ", ".join(str(job.number) for job in alike)
            if alike[0].result:
                numbers += f" (train-classifier logs {alike[0].job}{self.flags})"
            first = alike[0].failure
            assert first is not None
            failures.append((first, numbers))
        return failures

    def _json(self, failure: TrainClassifierError | None, code: ExitCode) -> str:
        jobs = [
            {**result_text.as_dict(job, job.code, self.console), "sweep": job.sweep}
            for job in self.jobs.values()
        ]
        is_submitted = code == 0 and any(job.result is None for job in self.jobs.values())
        return json.dumps(
            {
                "id": self.group,
                "host": next(iter(self.jobs.values())).host_name,
                "outcome": "submitted" if is_submitted else OUTCOMES[code],
                "exit_code": int(code),
                "error": failure.to_dict() if failure else None,
                "jobs": jobs,
            }
        )


def first_failure(jobs: Sequence[GroupJob]) -> ExitCode:
    """Return the exit code of a group: that of its first job that did not end well."""
    return next((job.code for job in jobs if job.failure), ExitCode.TRAINED)


def count(jobs: int) -> str:
    """Return a number of jobs in words."""
    return "1 job" if jobs == 1 else f"{jobs} jobs"
