"""The GPU queue with real processes: order, exclusion, death of a holder, and messages."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from queue_site import UUIDS, QueueSite
from queue_worker import work

from train_classifier.core.errors import NoGpu, NotReady, TimedOut
from train_classifier.worker.containers.engine import labels
from train_classifier.worker.gpus import gpu_queue, tickets

pytestmark = pytest.mark.engine


@pytest.fixture
def site(tmp_path: Path) -> Iterator[QueueSite]:
    new_site = QueueSite(tmp_path)
    yield new_site
    for process in new_site.processes:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def read_until(process: subprocess.Popen[str], beginning: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return line
    raise AssertionError("".join(lines))


def nothing() -> None:
    return


def test_fifty_jobs_on_two_gpus_run_in_order(
    engine: docker.DockerClient, site: QueueSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAIN_CLASSIFIER_HOST_JSON", str(site.settings))
    site.enqueue("before", want=2)
    before = gpu_queue.Ticket.claim(site.folder, "before")
    before.wait(engine, site.host, None, print, nothing)
    jobs = [f"job-{number:02d}" for number in range(50)]
    for job in jobs:
        site.enqueue(job)
    fork = multiprocessing.get_context("fork")
    # Workers start in another order than that of submission.
    processes = [
        fork.Process(target=work, args=(site.folder, job, site.marks, 0.02)) for job in reversed(jobs)
    ]
    try:
        for process in processes:
            process.start()
        while [entry.state for entry in gpu_queue.snapshot(site.folder)] != ["granted"] + ["waiting"] * 50:
            assert all(process.is_alive() for process in processes)
            time.sleep(0.2)
        before.release()
        for process in processes:
            process.join(300)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
            process.join()
    order = [json.loads(line) for line in (site.marks / "order").read_text().splitlines()]
    assert [grant["job"] for grant in sorted(order, key=lambda grant: grant["at"])] == jobs
    assert site.tickets() == []


def test_gpu_of_dead_job_goes_to_the_next(
    engine: docker.DockerClient, base_image: str, site: QueueSite
) -> None:
    site.write_cards(count=1)
    site.enqueue("dead")
    holder = site.start("dead", 600)
    read_until(holder, "granted")
    container = engine.containers.run(
        base_image, ["sleep", "600"], detach=True, init=True,
        labels=labels("job", job="dead", gpus=UUIDS[:1]),
    )  # fmt: skip
    try:
        site.enqueue("next")
        waiter = site.start("next", 0)
        line = read_until(waiter, "waiting for a GPU")
        assert "job dead (mnist) of" in line
        assert "has it since" in line
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        (site.marks / UUIDS[0]).unlink()
        assert UUIDS[0] in read_until(waiter, "granted")
        assert waiter.wait(240) == 0
        with pytest.raises(docker.errors.NotFound):
            engine.containers.get(container.id)
        assert site.tickets() == []
    finally:
        for container in engine.containers.list(all=True, filters={"label": "train-classifier.job=dead"}):
            container.remove(force=True)


def test_job_container_without_ticket_keeps_its_gpu(
    engine: docker.DockerClient, base_image: str, site: QueueSite
) -> None:
    container = engine.containers.run(
        base_image, ["sleep", "600"], detach=True, init=True,
        labels=labels("job", job="without-ticket", gpus=UUIDS[:1]),
    )  # fmt: skip
    try:
        site.enqueue("a")
        ticket = gpu_queue.Ticket.claim(site.folder, "a")
        assert [card.uuid for card in ticket.wait(engine, site.host, None, print, nothing)] == UUIDS[1:]
        ticket.release()
        site.write_cards(count=1)
        site.enqueue("b")
        ticket = gpu_queue.Ticket.claim(site.folder, "b")
        messages: list[str] = []
        with pytest.raises(TimedOut, match=r"waited 1\.0 s for a GPU"):
            ticket.wait(engine, site.host, 1, messages.append, nothing)
        assert messages == ["waiting for a GPU: a container of a job that ended still holds it"]
        ticket.release()
    finally:
        container.remove(force=True)


def test_first_job_waits_for_all_its_gpus(engine: docker.DockerClient, site: QueueSite) -> None:
    site.enqueue("one")
    single = site.start("one", 600)
    read_until(single, "granted")
    site.enqueue("both", want=2)
    both = site.start("both", 0)
    read_until(both, "waiting for a GPU")
    site.enqueue("last")
    last = site.start("last", 0)
    # A card is free, but it is reserved for the job before.
    assert "job both (mnist)" in read_until(last, "waiting for a GPU")
    os.kill(single.pid, signal.SIGKILL)
    single.wait()
    (site.marks / UUIDS[0]).unlink()
    assert json.loads(read_until(both, "granted").partition(" ")[2]) == UUIDS
    read_until(last, "granted")
    assert (both.wait(240), last.wait(240)) == (0, 0)


def test_slow_preparing_job_is_passed_over(
    engine: docker.DockerClient, site: QueueSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.enqueue("builder", want=2)
    builder = gpu_queue.Ticket.claim(site.folder, "builder")
    site.enqueue("quick")
    quick = gpu_queue.Ticket.claim(site.folder, "quick")
    messages: list[str] = []
    with pytest.raises(TimedOut):
        quick.wait(engine, site.host, 0.5, messages.append, nothing)
    assert "job builder (mnist)" in messages[0]
    assert "is before this one" in messages[0]
    monkeypatch.setattr(gpu_queue, "PREPARING_S", 0.0)
    assert len(quick.wait(engine, site.host, None, print, nothing)) == 1
    quick.release()
    assert len(builder.wait(engine, site.host, None, print, nothing)) == 2
    builder.release()
    builder.release()
    assert site.tickets() == []


def test_cancel_while_waiting_leaves_the_queue(engine: docker.DockerClient, site: QueueSite) -> None:
    site.enqueue("holder", want=2)
    holder = gpu_queue.Ticket.claim(site.folder, "holder")
    holder.wait(engine, site.host, None, print, nothing)
    site.enqueue("waiter")
    waiter = gpu_queue.Ticket.claim(site.folder, "waiter")

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        waiter.wait(engine, site.host, None, print, cancel)
    waiter.release()
    assert [entry.job for entry in gpu_queue.snapshot(site.folder)] == ["holder"]
    holder.release()


def test_foreign_process_on_gpu_fails_job_with_memory_floor(
    engine: docker.DockerClient, site: QueueSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_cards(free=1000, count=1)
    (site.smi.parent / "apps").write_text(f"{UUIDS[0]}, {os.getpid()}, /usr/bin/blender, 22000\n")
    monkeypatch.setattr(gpu_queue, "FOREIGN_USE_S", 0.0)
    site.enqueue("big", vram=8000)
    ticket = gpu_queue.Ticket.claim(site.folder, "big")
    with pytest.raises(NoGpu, match="1000 MiB free, 8000 are asked for; it is used by /usr/bin/blender"):
        ticket.wait(engine, site.host, None, print, nothing)
    ticket.release()
    # A job without a memory floor shares the card.
    site.enqueue("small")
    ticket = gpu_queue.Ticket.claim(site.folder, "small")
    assert len(ticket.wait(engine, site.host, None, print, nothing)) == 1
    ticket.release()


def test_lost_gpu_fails_the_waiting_job(engine: docker.DockerClient, site: QueueSite) -> None:
    site.enqueue("a")
    ticket = gpu_queue.Ticket.claim(site.folder, "a")
    (site.smi.parent / "gpus").write_text(
        "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost. Reboot the system\n"
    )
    (site.smi.parent / "status").write_text("15")
    with pytest.raises(NoGpu, match="a GPU is lost"):
        ticket.wait(engine, site.host, None, print, nothing)
    ticket.release()


def test_missing_queue_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotReady) as raised:
        gpu_queue.enqueue(
            tmp_path / "queue", job="a", model="m", directory=tmp_path, want=1, min_vram_mib=None
        )
    assert "training_host" in (raised.value.hint or "")


def test_two_users_share_the_queue(site: QueueSite) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to act as two users")
    os.chown(site.folder, 0, 4242)
    site.folder.chmod(0o2770)
    for parent in site.folder.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    program = (
        "import os, sys; from pathlib import Path; from train_classifier.worker.gpus import gpu_queue\n"
        "os.umask(0o077)\n"
        "gpu_queue.enqueue(Path(sys.argv[1]), job=sys.argv[2], model='m', directory=Path('/'), want=1, "
        "min_vram_mib=None)\n"
        "print([entry.user for entry in gpu_queue.snapshot(Path(sys.argv[1]))])\n"
    )
    root = Path(__file__).parents[2]
    for uid, job in ((5001, "a"), (5002, "b"), (0, "c")):
        done = subprocess.run(
            ["/usr/bin/python3", "-c", program, site.folder, job], cwd=root, user=uid, group=uid,
            extra_groups=[4242], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert [entry.user for entry in gpu_queue.snapshot(site.folder)] == ["uid 5001", "uid 5002", "root"]
    assert {oct((site.folder / name).stat().st_mode & 0o777) for name in site.tickets()} == {"0o660"}


def test_ticket_without_worker_expires(
    engine: docker.DockerClient, site: QueueSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.enqueue("late", want=2)
    site.enqueue("a")
    ticket = gpu_queue.Ticket.claim(site.folder, "a")
    monkeypatch.setattr(gpu_queue, "PREPARING_S", 0.0)
    assert len(ticket.wait(engine, site.host, None, print, nothing)) == 1
    # Passed over, but its place is kept for a worker that comes late.
    assert [entry.job for entry in gpu_queue.snapshot(site.folder)] == ["late", "a"]
    ticket.release()
    monkeypatch.setattr(tickets, "NEW_S", 0.0)
    assert gpu_queue.snapshot(site.folder) == []
    gpu_queue.remove_ticket(site.folder, "late")
    assert site.tickets() == []


def test_damaged_ticket_and_counter_do_not_stop_the_queue(
    engine: docker.DockerClient, site: QueueSite
) -> None:
    site.enqueue("a")
    (site.folder / "000000000099-torn.json").write_text('{"job": "to')
    (site.folder / "counter").write_text("")
    site.enqueue("b")
    assert [(entry.number, entry.job) for entry in gpu_queue.snapshot(site.folder)] == [(1, "a"), (100, "b")]
    gpu_queue.remove_ticket(site.folder, "a")
    ticket = gpu_queue.Ticket.claim(site.folder, "b")
    ticket.wait(engine, site.host, None, print, nothing)
    ticket.release()
    assert site.tickets() == []
