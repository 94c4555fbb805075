"""The action's step: one `train`, with its results reported to a workflow run.

Runs as `python -m train_classifier.github_action.step`.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from train_classifier.cli.early_signals import resend_lost_interrupts
from train_classifier.controller.temp_files import bug_error
from train_classifier.core import job, options
from train_classifier.core.errors import OUTCOMES, BadInput, Cancelled, ExitCode, TrainClassifierError
from train_classifier.github_action import inputs, old_archive, slack_message
from train_classifier.github_action.inputs import Inputs
from train_classifier.github_action.step_run import StepRun
from train_classifier.github_action.workflow_commands import run_url
from train_classifier.github_action.workflow_console import WorkflowConsole
from train_classifier.reports import archive_reader, job_summary, tracebacks
from train_classifier.reports.archive_reader import ArchiveFiles
from train_classifier.reports.report import Report
from train_classifier.request.build import build
from train_classifier.request.flags import LEAST_SECRET

#: Seconds for reading the files of the archive and for Slack, after a cancel has limited the time.
SHORT_WAIT_S = 0.5
#: Seconds that all notices may take together, including Slack's own rate limits.
SLACK_S = 60.0


class Step:
    """The state of the step; after any end of it, `close` reports what is known to the workflow run."""

    def __init__(self) -> None:
        self.console = WorkflowConsole(os.environ)
        self.start_time = time.monotonic()
        self.inputs: Inputs | None = None
        self.plan: Any = None
        self.run: StepRun | None = None
        self.failure: TrainClassifierError | None = None
        self.must_end_soon = False
        self._notice_threads: list[threading.Thread] = []
        self._notices: set[str] = set()
        #: No text of this program holds them.
        self.secret_values: set[str] = set()

    def train(self) -> None:
        """Run the job. Raises an error that came before there was a job; after that `failure` holds it."""
        environment = dict(os.environ)
        webhook = environment.get("TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK") or environment.get(
            "TRAIN_CLASSIFIER_SLACK_WEBHOOK"
        )
        for value in (webhook, environment.get("SLACK_IDENTIFIER")):
            self._mask(value or "")
        for name in inputs.step_variables(os.environ):
            del os.environ[name]
        step_inputs = self.inputs = inputs.read(environment)
        problems = [*step_inputs.problems, *self._remove_old_archive(step_inputs.environment)]
        try:
            self.plan = plan = build(step_inputs.request, step_inputs.environment)
        except BadInput as error:
            raise BadInput(*problems, *error.problems, hint=error.hint) from error
        if problems:
            raise BadInput(*problems)
        for value in plan.secrets.values():
            self._mask(value)
        for warning in plan.warnings:
            self.console.event("message", level="warning", text=warning)
        spec = self._with_defaults(plan)
        order = dataclasses.replace(plan.order(), spec=spec)
        assert plan.look is not None
        self.run = StepRun(order, plan.look, plan.secrets, self.console, self)
        self.run.run(plan.inventory, plan.host)
        self.failure = self.run.failure

    def _mask(self, value: str) -> None:
        if value.strip():
            masked = [value.strip()]
            if value.startswith(("https://", "http://")):
                # Only the path is secret.
                masked.append(value.strip().partition("://")[2].partition("/")[2])
            for secret in masked:
                self.console.mask(secret)
                self.secret_values |= {
                    part for part in (secret, *secret.splitlines()) if len(part) >= LEAST_SECRET
                }

    def _with_defaults(self, plan: Any) -> job.JobSpec:
        """Return the specification with the action's own default for grace."""
        spec: job.JobSpec = plan.spec
        if "grace" not in plan.origin:
            spec = dataclasses.replace(spec, grace_s=inputs.CANCEL_GRACE_S)
        return spec

    def _remove_old_archive(self, environment: Mapping[str, str]) -> list[str]:
        """Remove an earlier run's archive, so that a failing run does not deliver it. Return problems."""
        try:
            path = old_archive.archive_path(environment, Path.cwd())
        except ValueError as error:
            self._warn(f"{error}. An archive of an earlier run may remain: the settings may name its path.")
            return []
        try:
            old_archive.remove(path)
        except ValueError as error:
            return [str(error)]
        except OSError as error:
            return [f"the old {path.name} cannot be removed: {error.strerror}"]
        return []

    def started(self, identifier: str) -> None:
        """The job is safe on its host."""
        self.console.workflow.set_output("job-id", identifier)
        self._notify("start")

    def idle(self, note: str) -> None:
        """The model does not use a GPU that the job holds."""
        self._notify("idle", note)

    def cancelling(self) -> None:
        """Note a cancel: from now on the time is limited."""
        self.must_end_soon = True
        self._notify("cancelled")

    def close(self) -> ExitCode:
        """Write annotations, outputs, report and summary, notify Slack, and return the exit code."""
        code = self.failure.code if self.failure else ExitCode.TRAINED
        console = self.console
        console.finish()
        if self.failure:
            self._attempt("the model's tracebacks", self._annotate_model)
            console.error(self.failure)
            console.finish()
        delivered = (self.run.delivered if self.run else None) or {}
        result = self._result(code)
        # Outputs first, as later steps use them: the rest takes time, and GitHub may kill the step meanwhile.
        self._outputs(code, result, delivered)
        kinds = {ExitCode.TRAINED: "success", ExitCode.CANCELLED: "cancelled"}
        if result["outcome"] != "submitted":
            self._notify(kinds.get(code, "failure"))
        files = (
            self._attempt("the files of the archive", lambda: self._read_archive(delivered)) or ArchiveFiles()
        )
        self._attempt("the manifest", lambda: self._write_manifest(files))
        report = self._attempt("the report", lambda: self._report(files, result))
        if report:
            self._attempt("the job summary", lambda: self._summary(report))
            self._attempt("the report", lambda: self._write_report(files, report))
        if delivered and not self.failure:
            console.say(f"{delivered['path']}: {delivered['bytes']} bytes, sha256 {delivered['sha256']}")
        elif delivered:
            console.say(f"The files of the failed job are in {delivered['path']}")
        self._wait_for_slack()
        console.finish()
        return code

    def _attempt(self, name: str, action: Callable[[], Any]) -> Any:
        """Return what `action` returns. A failure in reporting is shown, but does not change the outcome."""
        try:
            return action()
        except Exception as error:
            bug = bug_error(error, self.secret_values)
            self._warn(f"{bug.reason} It leaves out {name}. {bug.hint}")
            return None

    def _wait_for_slack(self) -> None:
        """Wait for the running notices; after a request to end, only for a moment."""
        end = time.monotonic() + SLACK_S
        while any(thread.is_alive() for thread in self._notice_threads):
            if time.monotonic() > end:
                break
            if self.must_end_soon:
                end = min(end, time.monotonic() + SHORT_WAIT_S)
            time.sleep(0.02)

    def _result(self, code: ExitCode) -> dict[str, Any]:
        """Return the job's own result, or a substitute when there is none."""
        result = dict((self.run.result if self.run else None) or {})
        model = result.get("model") or (self.plan.spec.model if self.plan else None)
        environment = self.inputs.environment if self.inputs else {}
        result["model"] = model or environment.get("TRAIN_CLASSIFIER_MODEL") or environment.get("MODEL")
        if self.failure and result.get("exit_code") != int(code):
            result |= {
                "exit_code": int(code),
                "outcome": OUTCOMES[code],
                "reason": self.failure.reason,
                "hint": self.failure.hint,
                "detail": self.failure.detail,
                "link": self.failure.link,
            }
        if isinstance(seconds := result.get("seconds"), dict):
            result["seconds"] = job.in_order(seconds)
        result.setdefault("exit_code", int(code))
        # A detached job is submitted, and its outcome is not known.
        detached = bool(self.plan and self.plan.detach and not self.failure)
        result.setdefault("outcome", "submitted" if detached else OUTCOMES[code])
        if self.run:
            result.setdefault("id", self.run.job)
        return result

    def _phase(self, result: dict[str, Any]) -> str:
        """Return the phase in which it ended; artefacts are packed and fetched after a failure, too."""
        if result.get("outcome") == OUTCOMES[ExitCode.NOTHING_DELIVERED]:
            return self.console.last_phase
        ran = [name for name in result.get("seconds") or {} if name in job.PHASES and name != "artefacts"]
        return ran[-1] if ran else self.console.last_phase or "request"

    def _read_archive(self, delivered: dict[str, Any]) -> ArchiveFiles:
        if not delivered:
            return ArchiveFiles()
        seconds = SHORT_WAIT_S if self.must_end_soon else archive_reader.MAX_SECONDS
        return archive_reader.read(Path(delivered["path"]), seconds)

    def _report(self, files: ArchiveFiles, result: dict[str, Any]) -> Report:
        controller_phases = ("preflight", "push", "start", "fetch")
        # Drawing curves takes time, and a cancel leaves no time for it.
        curves = ArchiveFiles() if self.must_end_soon else files
        return Report(
            result=result,
            manifest=files.manifest_data,
            history=curves.history,
            usage=curves.usage,
            log=self.console.tail(),
            log_is_cut=self.console.tail_is_cut,
            seconds={
                name: seconds for name, seconds in self.console.seconds.items() if name in controller_phases
            },
            host=self.run.host_name if self.run else "",
        )

    # Copies are written to the runner's temporary folder: the workspace gets only the archive.

    def _write_manifest(self, files: ArchiveFiles) -> None:
        if files.manifest:
            self._write("manifest", "manifest.json", files.manifest)

    def _write_report(self, files: ArchiveFiles, report: Report) -> None:
        self._write("report", "report.html", files.report or report.page())

    def _write(self, output: str, name: str, content: bytes) -> None:
        base = os.environ.get("RUNNER_TEMP")
        if not base or not self.run:
            return
        folder = Path(base, "train-classifier", self.run.job)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        except OSError as error:
            self._warn(f"{name} was not written to {folder}: {error.strerror}")
        else:
            self.console.workflow.set_output(output, str(folder / name))

    def _outputs(self, code: ExitCode, result: dict[str, Any], delivered: dict[str, Any]) -> None:
        image = result.get("image") or {}
        metrics = result.get("metrics")
        values = {
            "job-id": result.get("id") if self.run and self.run.started else "",
            "status": result["outcome"],
            "exit-code": int(code),
            "artefacts": delivered.get("path"),
            # Set again after the files are written.
            "manifest": "",
            "report": "",
            "sha256": delivered.get("sha256"),
            "duration": f"{time.monotonic() - self.start_time:.1f}",
            "image-digest": image.get("digest") or image.get("id"),
            "metrics": json.dumps(metrics if isinstance(metrics, dict) else {}),
        }
        for name, value in values.items():
            self.console.workflow.set_output(name, "" if value is None else str(value))

    def _summary(self, report: Report) -> None:
        if not os.environ.get("GITHUB_STEP_SUMMARY") or report.result["outcome"] == "submitted":
            return
        workflow = self.console.workflow
        workflow.add_summary(job_summary.markdown(report, workflow.summary_space()))

    def _annotate_model(self) -> None:
        """Annotate the line of each of the model's tracebacks in the caller's repository."""
        if not self.plan:
            return
        top = Path(os.environ.get("GITHUB_WORKSPACE") or self.plan.repository).resolve()
        for annotation in tracebacks.find(self.console.tail()):
            file = Path(self.plan.repository, annotation.file)
            if file.is_file() and file.resolve().is_relative_to(top):
                self.console.annotate(
                    annotation.message, str(file.resolve().relative_to(top)), annotation.line
                )

    def _warn(self, message: str) -> None:
        self.console.event("message", level="warning", text=message)

    def _notify(self, kind: str, reason: str = "") -> None:
        """Post a notice in its own thread; each kind at most once."""
        if self.inputs is None or not self.inputs.webhook or kind in self._notices:
            return
        event = slack_message.Event(kind)
        if event not in self.inputs.slack_events:
            return
        self._notices.add(kind)
        code = self.failure.code if self.failure else ExitCode.TRAINED
        result = self._result(code)
        status = result.get("training_exit_status")
        ended_early = event in (slack_message.Event.FAILED, slack_message.Event.CANCELLED)
        notice = slack_message.Notice(
            event=event,
            model=str(result.get("model") or "?"),
            repository=os.environ.get("GITHUB_REPOSITORY", ""),
            host=self.run.host_name if self.run else "",
            job=str(result.get("id") or ""),
            phase=self._phase(result) if ended_early else "",
            exit_status=status if isinstance(status, int) else int(code),
            reason=self.failure.reason if self.failure else reason,
            hint=(self.failure.hint or "") if self.failure else "",
            link=self.failure.link if self.failure else "",
            tail=self.console.tail()[-20000:],
            seconds=time.monotonic() - self.start_time if kind != "start" else None,
            metrics=result.get("metrics") or {},
            run_url=run_url(os.environ),
        )
        webhook = self.inputs.webhook

        def post() -> None:
            problem = slack_message.notify(webhook, notice)
            if problem:
                self._warn(problem)

        thread = threading.Thread(target=post, name="notice", daemon=True)
        self._notice_threads.append(thread)
        thread.start()


@contextlib.contextmanager
def interruptible(step: Step) -> Iterator[None]:
    """Convert SIGINT and SIGTERM to KeyboardInterrupt, also those that came while Python was starting.

    After the first one they only make the step hurry: the results are reported in any case.
    """

    def note_signal(_number: int, _frame: Any) -> None:
        step.must_end_soon = True

    def stop(number: int, _frame: Any) -> None:
        raise KeyboardInterrupt(number)

    resend_lost_interrupts()
    numbers = {signal.SIGINT, signal.SIGTERM}
    for number in numbers:
        signal.signal(number, stop)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield
    finally:
        for number in numbers:
            signal.signal(number, note_signal)


def main() -> int:
    """Run the step and return its exit code."""
    os.environ[options.READER] = options.ACTION
    step = Step()
    try:
        with interruptible(step):
            step.train()
    except TrainClassifierError as error:
        step.failure = error
    except KeyboardInterrupt:
        step.must_end_soon = True
        run = step.run
        has_ended = run and (run.result is not None or run.failure is not None)
        step.failure = (
            run.failure if run and has_ended else Cancelled("Cancelled before the job was started.")
        )
    except Exception as error:
        step.failure = bug_error(error, step.secret_values)
    code = step.close()
    # Python removes its handlers when it ends: a signal at that time would change the exit code.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
