"""The status of a job, and how a job is found."""

import os
from pathlib import Path

import pytest

from train_classifier.core.errors import BadInput, NoEnvironment, NotReady
from train_classifier.worker.containers.context import Context
from train_classifier.worker.state import results
from train_classifier.worker.state.files import write_json
from train_classifier.worker.state.store import Job, Store


def make_job(tmp_path: Path, name: str) -> Job:
    folder = tmp_path / "jobs" / name
    folder.mkdir(parents=True)
    job = Job(folder)
    write_json(folder / "spec.json", {})
    job.write_status(state="prepared")
    return job


def test_status_counts_its_versions(tmp_path: Path) -> None:
    job = make_job(tmp_path, "20260101-000000-00000000")
    assert job.write_status(message="x")["version"] == 2
    assert job.status()["state"] == "prepared"
    write_json(job.dir / "status.json", {"schema": 3})
    with pytest.raises(NotReady, match="another version"):
        job.status()
    (job.dir / "status.json").write_text("{")
    with pytest.raises(NotReady, match="damaged"):
        job.status()


def test_jobs_are_found_by_id_beginning_and_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(BadInput, match="no job"):
        store.find("last")
    first = make_job(tmp_path, "20260101-000000-00000000")
    second = make_job(tmp_path, "20260101-000001-00000000")
    os.utime(first.dir / "spec.json", (1, 1))
    (tmp_path / "jobs" / "no-job").mkdir()
    for job in (first, second):
        job.write_status(state="finished")
    # Pushed and never started: not the last job.
    make_job(tmp_path, "20260101-000002-00000000").write_status(state="pushed")
    assert store.find("last").id == second.id
    assert store.find("20260101-000000").id == first.id
    for wrong, words in (("20260101", "ambiguous"), ("2027", "no job"), ("", "job id"), ("..", "no job")):
        with pytest.raises(BadInput, match=words):
            store.find(wrong)


def test_long_output_of_a_build_is_shortened_in_notes_and_result(tmp_path: Path) -> None:
    job = make_job(tmp_path, "20260101-000000-00000000")
    printed = "error: \x1b]0;title\x07\r\n" + "x" * (1 << 20)
    context = Context(None, None, Store(tmp_path), job)  # type: ignore[arg-type]
    context.note(printed)
    (note,) = job.status()["notes"]
    assert note.startswith("error: \\x1b]0;title") and note.isprintable() and len(note) <= 1000
    ending = results.ending(NoEnvironment(printed, printed, printed))
    assert all(len(ending[name]) <= 1 << 16 for name in ("reason", "hint", "detail"))
