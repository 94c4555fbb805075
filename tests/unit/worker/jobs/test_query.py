"""Reading a job: who waits for news keeps its lease."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from train_classifier.core import locks
from train_classifier.core.job import SCHEMA, JobSpec, Repository
from train_classifier.worker.jobs import query, recover
from train_classifier.worker.slurm import commands, shared_folder
from train_classifier.worker.state import files
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host


def until_renewed(job: Job) -> None:
    """Wait until a lease that is too old is renewed."""
    os.utime(job.lease, (1, 1))
    end = time.monotonic() + 60
    while job.lease.stat().st_mtime == 1:
        assert time.monotonic() < end, "nobody renews the lease"
        time.sleep(0.01)


def test_cancel_reaches_a_job_that_is_given_to_slurm_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    job = Job(store.jobs / "20260101-000000-0123abcd")
    job.dir.mkdir(parents=True)
    job.write_status(schema=SCHEMA, id=job.id, state="pushed")

    def write_and_submit(path: Path, data: bytes) -> None:
        files.write_bytes(path, data)
        job.write_status(state="submitted", submitted=time.time(), launcher="slurm")

    monkeypatch.setattr(query, "write_bytes", write_and_submit)
    with locks.hold(job.lock):
        query.cancel({"id": job.id, "by": "me"}, Host(), store)
    assert (job.dir / shared_folder.STOP_FILE).read_text() == "me\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting wants root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("launcher", ["setsid", "slurm"])
def test_cancel_works_on_a_full_disk(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """It may be the job itself that fills it. A worker of Slurm, which reads another file, gets a signal."""
    store = Store(small_disk)
    job = Job(store.jobs / "20260101-000000-0123abcd")
    job.dir.mkdir(parents=True)
    state = {"state": "running", "launcher": launcher, "submitted": time.time() - 60}
    job.write_status(schema=SCHEMA, id=job.id, **state)
    shared_folder.write_number(job, "12")
    (job.dir / shared_folder.STOP_FILE).touch()
    tools = {"squeue": f"echo 'tc-{job.id}|12|RUNNING|N/A|node1|gpu|None'", "scancel": 'echo "$@" >$0.log'}
    for name, script in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    monkeypatch.setattr(commands, "environment", lambda account: variables)
    with contextlib.suppress(OSError), open(small_disk / "fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    is_alive = locks.hold(job.lock) if launcher == "setsid" else contextlib.nullcontext()
    with is_alive:
        assert query.cancel({"id": job.id, "by": "me"}, Host(), store)["state"] == "running"
    assert job.cancel.read_bytes() == b""
    if launcher == "slurm":
        assert (tmp_path / "scancel.log").read_text() == "--signal=TERM --batch 12\n"


def test_lease_is_renewed_while_there_is_no_news(tmp_path: Path) -> None:
    """A lease of 5 s is shorter than the 10 s that a follower waits for a silent model."""
    store = Store(tmp_path)
    folder = store.jobs / "20260101-000000-0123abcd"
    folder.mkdir(parents=True)
    job = Job(folder)
    job.lease.touch()
    # A worker that is killed holds its lock no longer, and then this job is finished as lost.
    with locks.hold(job.lock, timeout=10):
        job.write_status(state="running")
        request = {"id": job.id, "seen": job.status()["version"], "wait": 60, "renew": True}
        reader = threading.Thread(target=query.read, args=(request, Host(), store), daemon=True)
        reader.start()
        until_renewed(job)
        until_renewed(job)
        assert reader.is_alive()
        job.write_status(message="news")
        reader.join(60)
        assert not reader.is_alive()


def test_group_is_followed_in_turns_of_bounded_size(tmp_path: Path) -> None:
    """Sixty jobs of 1 MiB each: no answer holds all, every byte comes once, and leases are renewed."""
    store = Store(tmp_path)
    jobs = [Job(store.jobs / f"20260101-000000-012345{number:02d}") for number in range(1, 61)]
    for job in jobs:
        job.dir.mkdir(parents=True)
        job.log.write_bytes(os.urandom(1 << 20))
        job.lease.touch()
        os.utime(job.lease, (1, 1))
        job.write_status(schema=SCHEMA, state="finished")
        job.write_result({"exit_code": 0})
    request = {
        "jobs": {job.id: {"offset": 0, "seen": 0} for job in jobs}, "for": 60, "wait": 1, "renew": True, "max": 1 << 19,
    }  # fmt: skip
    logs = {job.id: b"" for job in jobs}
    ended = set()
    for answer in query.follow_group(request, Host(), store):
        size = 0
        for one in answer["jobs"]:
            data = zlib.decompress(base64.b64decode(one["data"])) if one["data"] else b""
            assert one["offset"] == len(logs[one["id"]])
            logs[one["id"]] += data
            size += len(data)
            ended |= {one["id"]} if len(logs[one["id"]]) == one["log_size"] else set()
        assert size <= query.MAX_BYTES + (1 << 19)
    assert logs == {job.id: job.log.read_bytes() for job in jobs} and len(ended) == 60
    assert all(job.lease.stat().st_mtime > 1 for job in jobs)


def test_follower_who_asks_is_told_what_the_model_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "LOOK_S", 0.0)
    # Jobs of root belong to another account, which need not exist here.
    monkeypatch.setattr(Host, "job_user", Host.caller)
    store, host = Store(tmp_path), Host()
    job = Job(store.jobs / "20260101-000000-0123abcd")
    job.dir.mkdir(parents=True)
    job.usage.write_text("time_s,cpu_percent,memory_bytes\n5,50.0,1024,,,,,\n")
    with locks.hold(job.lock, timeout=10):
        for phase, asks, is_told in (
            ("training", True, True),
            ("training", False, False),
            ("artefacts", True, False),
        ):
            job.write_status(schema=SCHEMA, id=job.id, state="running", phase=phase)
            request = {"id": job.id, "seen": 0, "for": 0, "figures": asks}
            (answer,) = query.follow(request, host, store)
            assert bool(answer.get("figures")) is is_told, (phase, asks)
            assert not is_told or answer["figures"]["cpu_percent"] == 50


def ended(
    store: Store, number: int, model: str = "m", page: bytes | None = None, state: str = "finished"
) -> Job:
    """An ended job that another process will not touch any more."""
    job = Job(store.jobs / f"20260101-{number:06}-0123abcd")
    job.dir.mkdir(parents=True)
    spec = JobSpec(job.id, model, Repository("digits", "0" * 16, "c" * 40), arguments=(str(number),))
    files.write_json(job.dir / "spec.json", spec.to_dict())
    job.write_status(schema=SCHEMA, id=job.id, model=model, state=state, started=1.0)
    job.write_result(
        {
            "schema": SCHEMA,
            "id": job.id,
            "model": model,
            "exit_code": 0,
            "outcome": "trained",
            "finished": 2.0,
        }
    )
    if page is not None:
        job.report.write_bytes(page)
    return job


def test_report_of_a_job_is_its_page(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = ended(store, 1, page=b"<html>" * 1000)
    answer = query.report({"id": job.id}, Host(), store)
    assert zlib.decompress(base64.b64decode(answer["page"])) == b"<html>" * 1000
    assert (answer["result"]["outcome"], list(answer["spec"]["arguments"])) == ("trained", ["1"])
    assert query.report({"id": ended(store, 2).id}, Host(), store)["page"] == ""
    # It is no file of the job's: a link in its place is not followed.
    job.report.unlink()
    job.report.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic link"):
        query.report({"id": job.id}, Host(), store)


def test_earlier_runs_are_ended_jobs_of_the_same_model(tmp_path: Path) -> None:
    store = Store(tmp_path)
    jobs = [ended(store, number, model="other" if number == 3 else "m") for number in range(1, 6)]
    (store.jobs / "20260101-000004-0123abcd" / "status.json").write_text("{")
    (store.jobs / "20260101-000009-0123abcd").mkdir()

    def runs(until: int, **more: int) -> list[str]:
        answer = query.list_runs({"model": "m", "until": jobs[until - 1].id, **more}, Host(), store)
        return [run["arguments"][0] for run in answer["runs"]]

    assert runs(5) == ["1", "2", "5"]
    assert runs(2) == ["1", "2"]
    assert runs(5, most=1) == ["5"]


def test_list_has_unfinished_jobs_and_the_newest_twenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of old jobs that have ended nothing is read: a host has thousands of them."""
    store, host = Store(tmp_path), Host(queue_dir=tmp_path / "queue")
    jobs = [ended(store, number) for number in range(60)]
    waiting, left_over = jobs[3], jobs[5]
    (waiting.dir / "result.json").unlink()
    waiting.write_status(state="prepared")
    # The worker of this one is between its last two steps.
    left_over.run.mkdir()
    (jobs[7].dir / "status.json").write_text("{")
    (jobs[50].dir / "status.json").write_text("{")
    opened: list[str] = []
    open_regular = files.open_regular
    monkeypatch.setattr(files, "open_regular", lambda path: opened.append(str(path)) or open_regular(path))

    def listed(**more: bool) -> list[int]:
        answer = query.list_jobs({"verb": "list", **more}, host, store)
        return [int(job["id"][9:15]) for job in answer["jobs"]]

    with locks.hold(left_over.lock):
        assert listed() == [3, *range(39, 50), *range(51, 60)]
        looked_at = {Path(path).parent.name for path in opened}
        assert looked_at == {job.id for job in (waiting, left_over, *jobs[39:])}
        assert listed(all=True) == [number for number in range(60) if number not in (7, 50)]


def test_commands_that_name_a_job_read_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, host = Store(tmp_path), Host(queue_dir=tmp_path / "queue")
    jobs = [ended(store, number) for number in range(30)]
    opened: list[str] = []
    open_regular = files.open_regular
    monkeypatch.setattr(files, "open_regular", lambda path: opened.append(str(path)) or open_regular(path))
    for name, job in (("last", jobs[-1]), (jobs[4].id[:15], jobs[4])):
        assert query.status({"id": name}, host, store)["id"] == job.id
        assert {Path(path).parent.name for path in opened} == {job.id}
        opened.clear()
    # A worker does this at the end of each job.
    recover.finish_dead_jobs(store, host)
    assert opened == []


def test_entry_of_a_damaged_specification_has_what_is_right(tmp_path: Path) -> None:
    store, host = Store(tmp_path), Host(queue_dir=tmp_path / "queue")
    job = ended(store, 1)
    empty = {"arguments": [], "group": None, "sweep": {}, "commit": None}
    for content, differences in (
        ("{", {}),
        ("[]", {}),
        ('{"arguments": "x", "repository": [], "group": 1, "sweep": [], "schema": 9}', {}),
        ('{"arguments": ["--rate", 1], "repository": {"commit": 7}, "sweep": {"rate": 1}}',
         {"arguments": ["--rate", "1"], "sweep": {"rate": "1"}}),
    ):  # fmt: skip
        (job.dir / "spec.json").write_text(content)
        (entry,) = query.list_jobs({}, host, store)["jobs"]
        assert {name: entry[name] for name in empty} == {**empty, **differences}
