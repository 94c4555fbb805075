"""`train` and its playbook: stops before, during and after the start of the job."""

from __future__ import annotations

import dataclasses
import functools
import queue
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from train_classifier.ansible_bridge.playbook import Outcome
from train_classifier.cli.console import Console
from train_classifier.cli.runs.training_run import TrainingRun, show_end
from train_classifier.controller import steps as training
from train_classifier.controller.order import Order
from train_classifier.core.errors import BadInput, ExitCode
from train_classifier.core.job import JobSpec, Repository

JOB = "20260101-000000-00000001"


class Script:
    """Stands in for the playbook: runs the test's steps in its own thread."""

    def __init__(self, steps: Any, run: TrainingRun, inbox: queue.SimpleQueue[tuple[str, Any]]) -> None:
        self.inbox = inbox
        self.ended = False
        self._thread = threading.Thread(target=steps, args=(run, self), daemon=True)

    def start(self, inventory: str | None, limit: str | None) -> None:
        self._thread.start()

    def end(self, patience: float) -> None:
        self.ended = True
        self._thread.join(240)


def code_of(run: TrainingRun, steps: Any, monkeypatch: pytest.MonkeyPatch) -> ExitCode:
    """Return the exit code of a run whose playbook is `steps`."""
    monkeypatch.setattr("train_classifier.cli.runs.training_run.Play", functools.partial(Script, steps))
    return run.run(None, None)


class FakeHost:
    name = "here"
    local = True

    def connect(self, own_session: bool) -> Any:
        return self


def record_cancels(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[str]:
    """Return the jobs that the host is asked to cancel; it gives the answers in turn."""
    jobs: list[str] = []

    def cancel(host: Any, job: str, by: str) -> Any:
        jobs.append(job)
        answer = answers[len(jobs) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(training, "cancel", cancel)
    return jobs


def new_run(host: Any = None) -> TrainingRun:
    """Return a run of the model mnist; `host` is what Ansible found."""
    spec = JobSpec(id=JOB, model="mnist", repository=Repository("r", "0" * 16))
    run = TrainingRun(Order(spec, "/", "", "/x"), FakeHost, {"A": "secret"}, Console(quiet=True))  # type: ignore[arg-type]
    run._host = host
    return run


def push(run: TrainingRun) -> None:
    run.event("phase", phase="push", state="start")
    run.event("phase", phase="push", state="end", seconds=0.1)


def test_a_stop_between_push_and_start_keeps_the_job_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[bool] = []

    def steps(run: TrainingRun, script: Script) -> None:
        push(run)
        script.inbox.put(("stop", "Ctrl-C"))
        while not script.ended:
            threading.Event().wait(0.01)
        # The step asks although the run has ended already.
        answers.append(run.answer("start"))

    jobs = record_cancels(monkeypatch)
    run = new_run()
    assert code_of(run, steps, monkeypatch) == ExitCode.CANCELLED
    assert "before the job was started" in str(run.failure)
    assert (answers, jobs) == ([False], [])


@pytest.mark.parametrize("phase", ["preflight", "push"])
def test_a_stop_before_the_start_leaves_no_job(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    answers = ([BadInput("there is no job")] if phase == "preflight" else []) + [{"state": "removed"}]

    def steps(run: TrainingRun, script: Script) -> None:
        run.event("phase", phase=phase, state="start")
        script.inbox.put(("stop", "Ctrl-C"))

    jobs = record_cancels(monkeypatch, *answers)
    assert code_of(new_run(FakeHost()), steps, monkeypatch) == ExitCode.CANCELLED
    assert jobs == [JOB] * len(answers)


def test_hang_up_shows_how_to_follow_the_job(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def steps(run: TrainingRun, script: Script) -> None:
        run.event("started", id=JOB, host="here")
        script.inbox.put(("hangup", None))

    run = new_run()
    code = code_of(run, steps, monkeypatch)
    show_end(run, code, run.console)
    shown = capfd.readouterr().err
    assert code == ExitCode.OUT_OF_TOUCH
    assert "exit code 11" in shown and f"train-classifier attach {JOB}" in shown


def test_a_stop_after_the_start_was_allowed_reaches_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def steps(run: TrainingRun, script: Script) -> None:
        push(run)
        assert run.answer("start") is True
        # Nothing is known of the job yet: its submission is under way.
        script.inbox.put(("stop", "Ctrl-C"))
        while run._stopping is None:
            threading.Event().wait(0.01)
        run.event("started", id=JOB, host="here")
        run._stopping.join(240)
        run.event("error", code=6, reason="cancelled")
        script.inbox.put(("done", Outcome(2, None, False)))

    jobs = record_cancels(monkeypatch, {"id": JOB, "state": "running"})
    assert code_of(new_run(FakeHost()), steps, monkeypatch) == ExitCode.CANCELLED
    assert jobs == [JOB]


def test_leaving_at_once_during_the_start_removes_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The submission may arrive later: the host is asked until the job is gone or was started."""

    def steps(run: TrainingRun, script: Script) -> None:
        push(run)
        assert run.answer("start") is True
        script.inbox.put(("stop", "Ctrl-C"))
        script.inbox.put(("stop", "Ctrl-C"))

    jobs = record_cancels(monkeypatch, {"state": "removed"}, BadInput("there is no job"))
    run = new_run(FakeHost())
    assert code_of(run, steps, monkeypatch) == ExitCode.CANCELLED
    assert "is being stopped" in str(run.failure)
    assert jobs == [JOB, JOB]


@pytest.mark.parametrize("allowed", [True, False])
def test_start_step_asks_before_it_submits(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from train_classifier.ansible_bridge import event_socket
    from train_classifier.core.errors import Cancelled

    path = Path(__file__).parents[4] / "plugins" / "action" / "training_start.py"
    spec = importlib.util.spec_from_file_location("training_start", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    submitted = []
    monkeypatch.setattr(module.steps, "start", lambda *_: submitted.append(1))
    place = Path("/tmp") / f"tc-{tmp_path.name[:40]}-{allowed}"
    listener = event_socket.Sink(place, Mock(), lambda question: allowed if question == "start" else {})
    try:
        step = module.ActionModule.__new__(module.ActionModule)
        arguments = (
            dataclasses.replace(new_run().order, detach=True),
            None,
            event_socket.SinkReporter(str(place)),
        )
        if allowed:
            assert step.step(*arguments)["changed"]
        else:
            with pytest.raises(Cancelled):
                step.step(*arguments)
    finally:
        listener.close(drain=False)
        place.unlink()
    assert submitted == [1] * allowed
