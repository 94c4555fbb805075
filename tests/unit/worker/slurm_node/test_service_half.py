"""What the service account refuses, which has Docker rights, from a person who has none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core import locks
from train_classifier.core.errors import BadInput, NotReady, TrainClassifierError
from train_classifier.core.job import JobSpec, Repository, new_job_id
from train_classifier.worker.slurm import shared_folder
from train_classifier.worker.slurm_node import person_half, service_half
from train_classifier.worker.slurm_node.pipe import Malformed, Pipe
from train_classifier.worker.slurm_node.service_half import ServiceHalf
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Host

FILE = {"mode": 0o644}


class Service:
    """The service account's half for one person, and what a person says to it."""

    def __init__(self, folder: Path) -> None:
        self.offered = folder / "offered"
        self.offered.mkdir()
        self.host = Host(
            disk_floor_bytes=0, data_roots=(str(self.offered),), queue_dir=folder / "queue",
            slurm_shared_dir=folder / "shared",
        )  # fmt: skip
        self.store = Store(folder / "people" / "1000").make()

    def run(self, *messages: dict[str, Any] | bytes) -> None:
        """Run a job of which the person says this."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            person = Pipe(ours.makefile("rb"), ours.makefile("wb"))

            def say() -> None:
                for message in messages:
                    person.send_block(message) if isinstance(message, bytes) else person.send(message)
                ours.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=say)
            thread.start()
            pipe = Pipe(theirs.makefile("rb"), theirs.makefile("wb"))
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ServiceHalf(pipe, self.host, self.store, self.host.caller()).run("7")
            finally:
                signal.signal(signal.SIGTERM, handler)
                theirs.shutdown(socket.SHUT_RDWR)
                thread.join()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    yield Service(tmp_path)
    # Nothing of a job that was refused stays.
    assert not list((tmp_path / "people" / "1000" / "jobs").iterdir())


def header(change: Callable[[dict[str, Any]], object] = lambda data: None, **spec: Any) -> dict[str, Any]:
    """Return what a person's half says first."""
    job = JobSpec(new_job_id(), "look", Repository("look", "0" * 16)).to_dict()
    data: dict[str, Any] = {"protocol": person_half.PROTOCOL, "spec": {**job, **spec}, "secrets": {}}
    change(data)
    return data


def data_folder(path: object) -> dict[str, Any]:
    # A flag of the person is no more than a file of a checkout.
    return {"data": [{"path": str(path), "name": "mnist", "from_checkout": False}]}


@pytest.mark.parametrize(
    "path",
    ["/etc", "/", "/root", "/var/lib/train-classifier", "{offered}/link", "{offered}/../other", "{offered}x"],
)
def test_folder_that_the_node_does_not_offer_is_refused(service: Service, path: str) -> None:
    (service.offered / "link").symlink_to("/etc")
    (service.offered.parent / "other").mkdir()
    Path(f"{service.offered}x").mkdir()
    with pytest.raises(
        BadInput, match=r"offers only what lies below .*/offered to accounts without Docker rights"
    ):
        service.run(header(**data_folder(path.format(offered=service.offered))))


def test_folder_that_is_offered_and_no_job_may_read_is_refused(service: Service) -> None:
    service.host = Host(disk_floor_bytes=0, data_roots=("/etc",))
    with pytest.raises(BadInput, match="no job may read it"):
        service.run(header(**data_folder("/etc/ssl")))


def test_folder_that_others_could_replace_is_refused(service: Service) -> None:
    """Between the check and the engine's mount, which follows links as root."""
    folder = service.offered / "lab" / "mnist"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o2775)
    with pytest.raises(BadInput, match=r"accounts other than root can change .*/lab, and so what it names"):
        service.run(header(**data_folder(folder)))
    # It may be made before the next look at it.
    with pytest.raises(BadInput, match="cannot be used"):
        service.run(header(**data_folder(folder / "missing" / "below")))
    with pytest.raises(BadInput, match="cannot be used"):
        service.run(header(**data_folder("/\ud800")))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes folders of root")
def test_folder_in_which_a_person_could_listen_is_refused(tmp_path: Path) -> None:
    """A person's process would hand the model a folder of the host by a socket, also on a read-only mount."""
    folder = tmp_path / "data"
    (folder / "train" / "cats").mkdir(parents=True)
    (folder / "train" / "cats" / "1.png").write_text("")
    assert service_half._shared_place(folder) is None
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder / "train")
        listener.bind("s")
        os.chdir("/")
        assert service_half._shared_place(folder) == str(folder / "train" / "s")
        (folder / "train" / "s").unlink()
    (folder / "train" / "cats").chmod(0o2775)
    assert service_half._shared_place(folder) == str(folder / "train" / "cats")
    (folder / "train" / "cats").chmod(0o755)
    os.chown(folder / "train" / "cats", 5000, 0)
    assert service_half._shared_place(folder) == str(folder / "train" / "cats")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"protocol": 2}, "of another version"),
        ({}, "of another version"),
        (header(nodes=2), "--nodes needs Docker rights"),
        (header(requeue=True), "--requeue needs Docker rights"),
        (header(model="../look"), "model"),
        (header(unknown=1), "unknown field"),
        (header(id="../../x"), "job id"),
        (header(lambda data: data.update(spec=[])), "not a JSON object"),
        (header(lambda data: data["spec"]["repository"].update(key="../../../x")), "repository key"),
        (header(lambda data: data.update(secrets={"TOKEN": "x"})), "not those of the specification"),
        (header(lambda data: data.update(secrets={}), secrets=["TOKEN"]), "not those of the specification"),
        (header(lambda data: data.update(secrets={"TOKEN": 7}), secrets=["TOKEN"]), "is not text"),
        (header(lambda data: data.update(secrets={"TOKEN": "a\0"}), secrets=["TOKEN"]), "is not text"),
        (header(lambda data: data.update(secrets=[])), "not those of the specification"),
    ],
)
def test_request_is_refused_before_anything_is_made(service: Service, said: Any, reason: str) -> None:
    with pytest.raises(TrainClassifierError, match=reason):
        service.run(said)


@pytest.mark.parametrize(
    ("sources", "error"),
    [
        ([{"path": "../../../out", **FILE}], Malformed),
        ([{"path": "link", "mode": 0, "link": "/tmp"}, {"path": "link/out", **FILE}], Malformed),
        ([{"failed": "no"}], NotReady),
        ([b"a block of no file"], Malformed),
        ([{"path": "file", **FILE}, b"half"], EOFError),
    ],
)
def test_sources_that_lie_leave_nothing(service: Service, sources: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        service.run(header(), *sources)


def test_person_who_says_nothing_ends_it(service: Service) -> None:
    with pytest.raises(EOFError):
        service.run()


def test_job_of_a_half_that_was_killed_is_removed_and_no_other(service: Service) -> None:
    account = service.host.caller()
    jobs = {}
    for number in ("7", "8", "9"):
        jobs[number] = Job(service.store.jobs / new_job_id())
        jobs[number].make(account)
        shared_folder.write_number(jobs[number], number)
    # Another start of the same person begins at this moment.
    begins = Job(service.store.jobs / new_job_id())
    begins.make(account)
    with locks.hold(service_half.lock_of(service.store, "8")), pytest.raises(EOFError):
        service.run()
    assert {job.dir.name for job in service.store.all_jobs()} == {jobs["8"].id, begins.id}
    begins.dir.rename(jobs["8"].dir.with_name("x"))
    for folder in (jobs["8"].dir, begins.dir.with_name("x")):
        subprocess.run(["rm", "-r", folder], check=True)


def test_builds_of_the_job_get_what_slurm_gave_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "300")
    job = Job(service.store.jobs / new_job_id())
    job.make(service.host.caller())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in ("workspace", "checkpoints"):
            Pipe(ours.makefile("rb"), ours.makefile("wb")).send({"end": True})
        pipe = Pipe(theirs.makefile("rb"), theirs.makefile("wb"))
        half = ServiceHalf(pipe, service.host, service.store, service.host.caller())
        granted = half._fill(job, JobSpec.from_dict(header()["spec"]), {})
    assert granted.limit_host(service.host).limits("a build").memory_bytes == 300 << 20
    subprocess.run(["rm", "-r", job.dir], check=True)


@pytest.mark.parametrize("caller", [None, "0", str(os.getuid()), "x", "1000"])
def test_who_is_not_started_by_sudo_as_the_service_account_gets_nothing(caller: str | None) -> None:
    """Each account can run the program itself, with variables of its own."""
    environment = {"PATH": os.environ["PATH"], "TRAIN_CLASSIFIER_HOST_JSON": "/nowhere"}
    if caller is not None:
        environment["SUDO_UID"] = caller
    code = "import sys; from train_classifier.worker.slurm_node import service_half; sys.exit(service_half.main('7'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, input=b"", capture_output=True, check=False
    )
    assert done.returncode == 1 and b"sudo starts this as train-classifier" in done.stdout, done.stderr


def test_mask_and_interrupts_of_the_person_are_not_those_of_the_service_account(tmp_path: Path) -> None:
    """Folders that the first of these people makes on a node are of all; sudo lets a mask be stricter."""
    code = """
import os, signal, sys
os.umask(0o777)
from train_classifier.worker.slurm_node import service_half
status = service_half.main('7')
os.kill(os.getpid(), signal.SIGINT)
os.makedirs(sys.argv[1])
sys.exit(status)
"""
    made = tmp_path / "state" / "people"
    environment = {"PATH": os.environ["PATH"], "SUDO_UID": "1000"}
    done = subprocess.run(
        [sys.executable, "-c", code, made], env=environment, input=b"", capture_output=True, check=False
    )
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert made.parent.stat().st_mode & 0o777 == 0o755


def test_program_finds_nothing_by_the_path_of_the_person(tmp_path: Path) -> None:
    """Where an administrator took secure_path away, sudo leaves PATH as it is."""
    for name in ("readlink", "python3", "sh"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho ran >{tmp_path}/ran\n")
        (tmp_path / name).chmod(0o755)
    program = Path(__file__).parents[4] / "roles/slurm_node/files/run-job"
    subprocess.run(
        ["/bin/sh", program, "7"], env={"PATH": str(tmp_path)}, input=b"", capture_output=True, check=False
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("descriptors", ["1<&0", "1>/dev/full", "0>&1 1>/dev/null", "2>&1"])
def test_person_who_hands_over_odd_files_gets_no_traceback(descriptors: str) -> None:
    """Python 3.13 says always what 3.11 says in its development mode."""
    code = "import sys; from train_classifier.worker.slurm_node import service_half; sys.exit(service_half.main('7'))"
    done = subprocess.run(
        ["bash", "-c", f'"$@" </dev/null {descriptors}', "bash", sys.executable, "-X", "dev", "-c", code],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr
