"""What a job does when the requirements need another Python, and when its group has a limit."""

import contextlib
import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train_classifier.core import locks
from train_classifier.core.errors import Cancelled
from train_classifier.core.job import SCHEMA, JobSpec, Repository, job_of_group
from train_classifier.worker.environments.build_failures import PythonConflict
from train_classifier.worker.jobs import run
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host


def test_hint_names_an_image_where_that_of_the_python_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    job: Any = SimpleNamespace(
        spec=JobSpec("20260101-000000-00000000", "m", Repository("r", "0" * 16)),
        image=SimpleNamespace(plain=False, version=(3, 11)),
        context=SimpleNamespace(note=notes.append),
    )
    monkeypatch.setattr(run, "find_image", lambda job: None)
    error = PythonConflict("needs 3.8 to 3.9", "set python", "to build it here: wait", None, ["3.8", "3.9"])
    assert error.hint == "set python; to build it here: wait"
    with pytest.raises(PythonConflict) as raised:
        run.take_fitting_python(job, error)
    assert notes == ["needs 3.8 to 3.9 (to skip this search: set python)"]
    assert raised.value.hint == (
        "name an image with Python 3.9 by --image or in training_host_images (python3.9); to build it here: wait"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"python": "3.11"},
        {"image": "own"},
        {"environment_kind": "image"},
        {"environment_kind": "isolated"},
        {"required_pythons": ("3.10", "3.11")},
    ],
)
def test_no_other_python_is_taken_where_one_was_chosen_or_none_fits(settings: dict[str, Any]) -> None:
    job: Any = SimpleNamespace(
        spec=JobSpec("20260101-000000-00000000", "m", Repository("r", "0" * 16), **settings)
    )
    error = PythonConflict("needs 3.8 to 3.9", "set python", "to build it here: wait", None, ["3.8", "3.9"])
    with pytest.raises(PythonConflict) as raised:
        run.take_fitting_python(job, error)
    assert raised.value is error


GROUP = "20260101-000000-012345"


@pytest.mark.parametrize(
    ("gpus", "most", "others"), [(0, None, 1), (0, 2, 2), (1, 3, 3)], ids=["CPU", "CPU, 2", "GPU, 3"]
)
def test_a_job_waits_while_its_group_has_no_room(
    tmp_path: Path, gpus: int, most: int | None, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of a later number, of other groups, and those that have ended count for nothing."""
    store = Store(tmp_path)
    spec = JobSpec(job_of_group(GROUP, 9), "m", Repository("r", "0" * 16), group=GROUP, max_parallel=most)
    ids = [job_of_group(GROUP, number) for number in (1, 2, 3, 4, 10)] + ["20260101-000000-01234601"]
    jobs = [Job(store.jobs / name) for name in ids]
    with contextlib.ExitStack() as stack:
        for number, job in enumerate(jobs):
            job.dir.mkdir(parents=True)
            # A worker that lives holds its lock.
            stack.enter_context(locks.hold(job.lock))
            state = "running" if 4 > number >= 4 - others or number > 3 else "finished"
            job.write_status(schema=SCHEMA, state=state, launcher="setsid", updated=0)
        if most is None:
            # Of another model: the GPU's queue limits these.
            jobs[2].write_status(state="running", gpus_wanted=1)
        messages: list[str] = []
        waiting = threading.Event()

        def say(text: str) -> None:
            messages.append(text)
            waiting.set()

        watch = SimpleNamespace(check=lambda: None)
        job_run: Any = SimpleNamespace(
            job=Job(store.jobs / spec.id),
            spec=spec,
            store=store,
            host=Host(),
            gpu_count=gpus,
            say=say,
            watch=watch,
        )
        thread = threading.Thread(target=run.wait_for_group, args=(job_run,), daemon=True)
        thread.start()
        assert waiting.wait(60) and thread.is_alive()
        assert messages[0].startswith("waiting for ")
        jobs[3].write_status(state="finished")
        thread.join(60)
        assert not thread.is_alive()

    def cancelled() -> None:
        raise Cancelled("enough")

    job_run.watch.check = cancelled
    with pytest.raises(Cancelled):
        run.wait_for_group(job_run)


def test_a_group_on_gpus_is_limited_by_the_queue_alone() -> None:
    spec = JobSpec(job_of_group(GROUP, 9), "m", Repository("r", "0" * 16), group=GROUP)
    job_run: Any = SimpleNamespace(spec=dataclasses.replace(spec), gpu_count=1)
    run.wait_for_group(job_run)
