"""`train` of several jobs: stops before, during and after their start, and jobs that cannot be started."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train_classifier.ansible_bridge.inventory import Target
from train_classifier.cli.console import Console
from train_classifier.cli.runs import group_run
from train_classifier.cli.runs.group_run import GroupRun
from train_classifier.controller import groups, steps
from train_classifier.controller.order import Order, pack_names
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import BadInput, Cancelled, ExitCode, NotReady, TrainingFailed
from train_classifier.core.job import JobSpec, Repository, job_of_group
from train_classifier.request import push_list

GROUP = "20260101-000000-012345"
JOBS = [job_of_group(GROUP, number) for number in (1, 2, 3)]


class Site:
    """A host whose steps are the test's own; what reaches it is recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cancelled: list[str] = []
        self.submitted: list[str] = []
        self.followed: list[str] = []
        self.prepare: Callable[[], object] = lambda: None
        self.submit: Callable[[str], object] = lambda job: None
        self.follow: Callable[[], object] = lambda: None
        self.failures: dict[str, Any] = {}
        monkeypatch.setattr(groups, "prepare", lambda *words: self.prepare())
        monkeypatch.setattr(steps, "submit", self._submit)
        monkeypatch.setattr(steps, "cancel", self._cancel)
        monkeypatch.setattr(groups.Delivery, "follow", self._follow)

    def _submit(self, host: object, order: Order, *_: object) -> None:
        self.submit(order.spec.id)
        self.submitted.append(order.spec.id)

    def _cancel(self, host: object, job: str, by: str) -> dict[str, Any]:
        self.cancelled.append(by)
        return {"id": job, "state": "cancelling"}

    def _follow(self, jobs: list[str], _: object) -> None:
        self.followed = list(jobs)
        self.follow()

    def run(self, *, detach: bool = False) -> GroupRun:
        """Return a run of three jobs."""
        orders = [
            Order(
                JobSpec(job, "m", Repository("r", "0" * 16), group=GROUP, sweep={"seed": job[-1]}, submitter="me@here"),
                tree="/", files="", output="/tmp/artefacts.tar.gz", detach=detach,
            )
            for job in JOBS
        ]  # fmt: skip
        secrets: dict[str, dict[str, str]] = {job: {} for job in JOBS}
        run = GroupRun(orders, lambda: Target("one", local=True), secrets, Console())
        run.leave_s = 60
        return run


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_stop_before_the_start_leaves_no_job(site: Site) -> None:
    stopped = threading.Event()

    def prepare() -> None:
        ctrl_c()
        assert stopped.wait(60)

    site.prepare = prepare
    run = site.run()
    remove = run._remove_prepared

    def removed() -> None:
        remove()
        stopped.set()

    run._remove_prepared = removed  # type: ignore[method-assign]
    assert run.run() == ExitCode.CANCELLED and isinstance(run.failure, Cancelled)
    assert site.submitted == [] and site.cancelled
    with pytest.raises(Cancelled, match="before the jobs were started"):
        group_run.show_group_end(run, ExitCode.CANCELLED, run.console)


def test_stop_between_two_submissions_stops_those_before_and_starts_none_after(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    run = site.run()

    def submit(job: str) -> None:
        if job == JOBS[1]:
            ctrl_c()
            while run._stopped_by is None:
                threading.Event().wait(0.01)

    site.submit = submit
    site.follow = lambda: site.failures.update({JOBS[0]: Cancelled("cancelled")})
    assert run.run() == ExitCode.CANCELLED
    assert site.submitted == site.followed == JOBS[:2]
    assert run._stopping is not None
    run._stopping.join(60)
    assert "Ctrl-C of me@here" in site.cancelled
    assert "stopping all jobs" in capfd.readouterr().err


def test_job_that_cannot_be_submitted_ends_the_group(site: Site) -> None:
    def submit(job: str) -> None:
        if job == JOBS[1]:
            raise NotReady("the disk is full")

    site.submit = submit
    run = site.run()
    assert run.run() == ExitCode.NOT_READY
    assert site.cancelled == ["the failed start of job 2"] and site.followed == JOBS[:1]
    first = site.run()
    site.submit = lambda job: submit(JOBS[1])
    assert first.run() == ExitCode.NOT_READY and first.display is None


def test_hang_up_does_not_stop_the_jobs(site: Site) -> None:
    over = threading.Event()

    def follow() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        over.wait(60)

    site.follow = follow
    run = site.run()
    assert run.run() == ExitCode.OUT_OF_TOUCH and site.cancelled == []
    over.set()
    assert run.failure and f"attach {GROUP}" in str(run.failure.hint)


def test_second_ctrl_c_leaves(site: Site) -> None:
    over = threading.Event()

    def follow() -> None:
        ctrl_c()
        while not site.cancelled:
            over.wait(0.01)
        ctrl_c()
        over.wait(60)

    site.follow = follow
    run = site.run()
    assert run.run() == ExitCode.CANCELLED
    over.set()
    assert run.failure and f"fetch {GROUP}" in str(run.failure.hint)


def test_detached_group_prints_its_id(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    run = site.run(detach=True)
    code = run.run()
    assert code == 0 and site.followed == [] and site.submitted == JOBS
    group_run.show_group_end(run, code, run.console)
    out, err = capfd.readouterr()
    assert out == f"{GROUP}\n" and f"attach {GROUP}" in err and "2   seed=2" in err


@pytest.mark.parametrize(
    ("failures", "code"),
    [({}, 0), ({1: TrainingFailed("x"), 2: BadInput("y")}, 4), ({2: Cancelled("x")}, 6)],
)
def test_the_first_failure_is_the_exit_code(site: Site, failures: dict[int, Any], code: int) -> None:
    run = site.run()

    def follow() -> None:
        assert run.display is not None
        for number, failure in failures.items():
            run.display.jobs[JOBS[number]].failure = failure

    site.follow = follow
    assert run.run() == code


def test_sources_are_sent_once_and_again_only_where_they_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command of this user may push to the mirror while the jobs are prepared."""
    (tmp_path / "file").write_text("1")
    order = Order(
        JobSpec(JOBS[0], "m", Repository("r", "0" * 16)), str(tmp_path), pack_names([b"file"]), "/x",
        push_list.fingerprint(tmp_path, [b"file"]),
    )  # fmt: skip
    orders = [dataclasses.replace(order, spec=dataclasses.replace(order.spec, id=job)) for job in JOBS]
    pushed: list[str] = []
    has_sources = {JOBS[1]: True, JOBS[2]: True}
    monkeypatch.setattr(steps, "preflight", lambda *_: {"pushed": False})
    monkeypatch.setattr(steps, "prepare", lambda _, order: has_sources[order.spec.id])
    monkeypatch.setattr(steps, "push", lambda _, order, __: pushed.append(order.spec.id))

    def prepare() -> list[str]:
        pushed.clear()
        groups.prepare(
            RemoteHost("one"), orders, Console(quiet=True), lambda: None, group_run.require_unchanged
        )
        return pushed

    assert prepare() == JOBS[:1]
    has_sources[JOBS[1]] = False
    assert prepare() == JOBS[:2]
    (tmp_path / "file").write_text("2")
    with pytest.raises(BadInput, match="was changed while"):
        prepare()
    assert pushed == JOBS[:1]
