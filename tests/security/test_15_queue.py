"""Row 15: nothing that a user of Docker leaves in the queue's folder blocks or breaks the queue of another user."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from queue_site import UUIDS, QueueSite

from train_classifier.core.errors import NotReady
from train_classifier.worker.checks import host_check
from train_classifier.worker.containers.engine import labels
from train_classifier.worker.gpus import gpu_queue, tickets
from train_classifier.worker.gpus.devices import Discovery, Gpu

STRANGER = 5003


class Queue(QueueSite):
    """A queue with hostile files in its folder."""

    def train(self, client: docker.DockerClient, job: str, want: int = 1) -> int:
        """Submit a job, wait for its cards, release them; return the number of its ticket."""
        self.enqueue(job, want)
        ticket = gpu_queue.Ticket.claim(self.folder, job)
        cards = ticket.wait(client, self.host, 60, print, lambda: None)
        ticket.release()
        assert len(cards) == want
        return ticket.entry.number

    def finding(self) -> Any:
        """Return the host check's finding about the queue."""
        cards = tuple(Gpu(0, UUIDS[0], "NVIDIA L4", 23034, 23000, "550", "") for _ in range(1))
        return host_check.queue_folder(self.host, Discovery(cards))

    def forge(self, name: str, change: dict[str, Any] | None = None, owner: int = STRANGER) -> Path:
        """Make a ticket like a worker's, with changes."""
        data = {
            "job": name[13:-5], "model": "m", "user": "root", "uid": 0, "dir": "/jobs/x", "want": 2,
            "min_vram_mib": None, "state": "granted", "gpus": UUIDS, "since": 1.0, "since_boot": tickets.uptime(),
            "boot": tickets.boot_id(),
        }  # fmt: skip
        path = self.folder / name
        path.write_text(json.dumps({**data, **(change or {})}))
        os.chown(path, owner, owner)
        return path


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    if os.geteuid() != 0:
        pytest.skip("needs root to give files to another user")
    return Queue(tmp_path)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file as a worker holds its ticket."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


KINDS = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "link": lambda path: path.symlink_to("/etc/shadow"),
    "loop": lambda path: path.symlink_to(path.name),
    "empty": Path.touch,
    "torn": lambda path: path.write_text('{"job": "x'),
    "deep": lambda path: path.write_text("[" * 60000),
    "deep object": lambda path: path.write_text('{"job":' * 9000),
    "list": lambda path: path.write_text("[]"),
    "number": lambda path: path.write_text("1" * 60000),
    "large": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 100 << 20),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 100),
}
CHANGES: list[dict[str, Any]] = [
    {"since_boot": "soon"}, {"since_boot": float("inf")}, {"since_boot": float("nan")}, {"since_boot": -1},
    {"since": 1e300}, {"since": 10**400}, {"since": None}, {"boot": 7}, {"gpus": UUIDS[0]}, {"gpus": [["x"]]},
    {"gpus": [7]}, {"gpus": {}}, {"gpus": ["a,b"]}, {"want": -1}, {"want": True}, {"want": 10**4000}, {"want": "2"},
    {"min_vram_mib": -5}, {"min_vram_mib": []}, {"state": "king"}, {"state": ["new"]}, {"job": "another"},
    {"model": "\x1b[2Jm"}, {"model": "::error::x"}, {"dir": None},
]  # fmt: skip


@pytest.mark.engine
def test_15_invalid_tickets_are_ignored_and_reported(engine: docker.DockerClient, queue: Queue) -> None:
    for number, (kind, make) in enumerate(KINDS.items()):
        path = queue.folder / f"{number:012d}-{kind.replace(' ', '-')}.json"
        make(path)
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    for number, change in enumerate(CHANGES):
        queue.forge(f"{number:012d}-change.json", change)
    before = sorted(path.name for path in queue.folder.iterdir())
    queue.train(engine, "a", want=2)
    gpu_queue.remove_ticket(queue.folder, "change")
    assert gpu_queue.snapshot(queue.folder) == []
    names = sorted(path.name for path in queue.folder.iterdir())
    assert [name for name in names if name not in ("counter", "lock")] == before
    assert len(tickets.invalid_files(queue.folder)) == len(before)
    finding = queue.finding()
    assert finding.status == "warn"
    assert "000000000000-fifo.json is not a regular file" in finding.message
    assert f"and {len(before) - 5} more" in finding.message
    assert finding.hint.startswith(f"on the host: rm -r {queue.folder}/0")


@pytest.mark.engine
@pytest.mark.parametrize("kind", [*KINDS, "huge", "largest"])
def test_15_invalid_counter_does_not_stop_the_queue(
    engine: docker.DockerClient, queue: Queue, kind: str
) -> None:
    counter = queue.folder / "counter"
    if kind in KINDS:
        KINDS[kind](counter)
    else:
        counter.write_text("9" * (5000 if kind == "huge" else 12))
    first, second = queue.enqueue("20260101-000000-00000000"), queue.enqueue("20260101-000001-00000000")
    assert all(tickets.TICKET.match(path.name) for path in (first, second))
    assert first.name < second.name
    assert [entry.path for entry in gpu_queue.snapshot(queue.folder)] == [first, second]
    if kind in ("fifo", "folder", "socket", "link", "loop"):
        assert "counter is not a regular file" in queue.finding().message
    for path in (first, second):
        path.unlink()
    queue.train(engine, "a", want=2)


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "link"])
def test_15_invalid_lock_is_reported(queue: Queue, kind: str) -> None:
    KINDS[kind](queue.folder / "lock")
    with pytest.raises(NotReady, match=f"the queue's lock {queue.folder}/lock is not a regular file"):
        queue.enqueue("a")
    assert queue.finding().status == "fail"


def test_15_lock_that_is_never_released_is_reported(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.enqueue("a")
    monkeypatch.setattr(tickets, "LOCK_S", 0.1)
    with (
        held(queue.folder / "lock"),
        pytest.raises(NotReady, match="another process has held the queue's lock"),
    ):
        queue.enqueue("b")


def test_15_ticket_owner_is_its_file_owner(queue: Queue) -> None:
    path = queue.forge("000000000001-x.json", {"uid": 0, "user": "root"})
    with held(path):
        (entry,) = gpu_queue.snapshot(queue.folder)
    assert (entry.uid, entry.user) == (STRANGER, f"uid {STRANGER}")


@pytest.mark.engine
def test_15_forged_ticket_is_not_taken(engine: docker.DockerClient, queue: Queue) -> None:
    """Held or not, it does not keep a worker from its own ticket."""
    with held(queue.forge("000000000000-a.json", {"state": "new", "want": 0, "gpus": []})):
        queue.train(engine, "a")


@pytest.mark.engine
def test_15_forged_dead_ticket_of_running_job_ends_no_container(
    engine: docker.DockerClient, base_image: str, queue: Queue
) -> None:
    containers = [
        engine.containers.run(
            base_image, ["sleep", "600"], detach=True, init=True, labels=labels("job", job=job, gpus=gpus)
        )
        for job, gpus in (("living", UUIDS[:1]), ("processor", ()))
    ]
    try:
        queue.enqueue("living")
        living = gpu_queue.Ticket.claim(queue.folder, "living")
        for number, job in enumerate(("living", "processor")):
            queue.forge(f"00000000000{number}-{job}.json")
        assert len(gpu_queue.snapshot(queue.folder)) == 1
        # Without the forged tickets both cards are free by the tickets alone.
        queue.enqueue("next")
        ticket = gpu_queue.Ticket.claim(queue.folder, "next")
        cards = ticket.wait(engine, queue.host, 60, print, lambda: None)
        assert [card.uuid for card in cards] == UUIDS[1:]
        ticket.release()
        living.release()
        assert not list(queue.folder.glob("00000000000[01]-*.json"))
        assert [engine.containers.get(container.id).status for container in containers] == ["running"] * 2
    finally:
        for container in containers:
            container.remove(force=True)


def test_15_worker_answers_with_invalid_tickets_in_queue(queue: Queue, tmp_path: Path) -> None:
    """The whole program, as another process: a FIFO would block it for ever."""
    for kind, make in KINDS.items():
        make(queue.folder / f"000000000001-{kind.replace(' ', '-')}.json")
    program = (
        "import sys; from pathlib import Path; from train_classifier.worker.gpus import gpu_queue\n"
        "gpu_queue.enqueue(Path(sys.argv[1]), job='a', model='m', directory=Path('/'), want=1, min_vram_mib=None)\n"
        "print([entry.job for entry in gpu_queue.snapshot(Path(sys.argv[1]))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, queue.folder], cwd=Path(__file__).parents[2], capture_output=True,
        text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "['a']\n"), done.stderr
