"""The half of a job's worker that runs as a person without Docker rights: the service account runs the job.

Where role slurm_node lets a group do so, sudo starts `service_half` for a job of Slurm. Nothing is shared
with it but a socket: sources and secrets go there, log, status and results come back, and are taken as a
stranger's.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Optional

from train_classifier.core import errors, locks
from train_classifier.core.errors import OUTCOMES, BadInput, ExitCode, Lost, NotReady, TrainClassifierError
from train_classifier.core.job import PHASES, SCHEMA, JobSpec
from train_classifier.core.text import short
from train_classifier.worker.containers import engine
from train_classifier.worker.jobs import conclude
from train_classifier.worker.jobs import run as local_run
from train_classifier.worker.jobs.secrets import take_secrets
from train_classifier.worker.slurm import people, shared_folder
from train_classifier.worker.slurm_node import tree_stream
from train_classifier.worker.slurm_node.pipe import Malformed, Pipe
from train_classifier.worker.slurm_node.tree_stream import Room
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import change_mark, make_folder, new_file
from train_classifier.worker.state.store import MOST_NOTES, Job
from train_classifier.worker.system.host import Account, Host

#: Written by role slurm_node where a group may start it by sudo; its argument is Slurm's number of a job.
START = Path("/var/lib/train-classifier/slurm/run-job")
SERVICE_USER = "train-classifier"
PROTOCOL = 1
#: Seconds between two looks for what the other half must know.
LOOK_S = 0.2
TICK_S = 0.001
#: Seconds for which the end of the other half is waited for.
END_S = 120.0
#: Records that are brought back at the end; result.json and status.json come after them.
RECORDS = (
    "usage.csv", "facts.json", "stock.json", "packed.json", "manifest.json", "report.html",
    "artefacts.tar.gz",
)  # fmt: skip
#: Most characters of a text that the other half sends, and most bytes of its lines in the log.
MOST_TEXT = 1 << 17
MOST_LINES = 1 << 16


def is_needed() -> bool:
    """Tell whether a job of this account runs through the service account: Docker is closed to it here."""
    is_closed = os.path.exists(engine.SOCKET) and not os.access(engine.SOCKET, os.W_OK)
    return is_closed and START.exists()


def require_docker_rights() -> None:
    """Raise NotReady for an account that cannot enter the containers of its jobs."""
    if is_needed():
        raise NotReady(
            "to enter a container needs Docker rights on the node, which this account does not have"
        )


def host_of(folder: Path) -> Host:
    """Return the host for a job in the shared folder: host.json is for those who have Docker rights."""
    return Host(slurm_node=True, slurm_shared_dir=folder.parents[2])


def command(number: str) -> list[str]:
    """Return the command that has the service account run the job that Slurm has under this number."""
    return ["sudo", "-n", "-u", SERVICE_USER, "--", str(START), number]


@contextlib.contextmanager
def temporary_state() -> Iterator[Optional[Path]]:
    """Yield a state folder for the job's records, on a disk of this node; None where none is needed.

    The person's home is often on a network file system, and host.json, which may name a disk, is closed.
    """
    if not is_needed():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="train-classifier-", dir="/var/tmp") as folder:
        yield Path(folder)


class PersonHalf:
    """One job while the service account's half runs it; afterwards it has ended as by `run.run_job`."""

    def __init__(self, local: Job, shared: Job, host: Host) -> None:
        self.local = local
        self.shared = shared
        self.host = host
        self.spec = local.spec()
        self._is_asked_to_end = False
        self._ended = threading.Event()

    def run(self, account: Account, command: list[str]) -> None:
        """Run the job to its end; `command` starts the other half."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with locks.hold(self.local.lock, timeout=60), tempfile.TemporaryFile() as words:
            try:
                refused = people.problems(self.spec)
                if refused:
                    raise BadInput(*refused)
                own, other = socket.socketpair()
                with own:
                    with other:
                        process = subprocess.Popen(
                            command,
                            stdin=other.fileno(),
                            stdout=other.fileno(),
                            stderr=words,
                            cwd="/",
                            env=account.environment(),
                        )
                    try:
                        self._talk(own, words)
                    finally:
                        # The other half ends the job then, if it has not ended.
                        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                            own.shutdown(socket.SHUT_RDWR)
                            process.wait(END_S)
            except Exception as error:
                cause = local_run.as_error(self.local, error)
                conclude.conclude(self.local, self.spec, cause, {}, {})

    def _on_signal(self, number: int, frame: Any) -> None:
        self._is_asked_to_end = True

    def _talk(self, own: socket.socket, words: IO[bytes]) -> None:
        pipe = Pipe(own.makefile("rb"), own.makefile("wb"))
        threading.Thread(target=self._send, args=(pipe,), name="sender", daemon=True).start()
        has_answered = False
        try:
            first = pipe.receive_object()
            has_answered = True
            self._receive(pipe, first)
        except EOFError:
            words.seek(0)
            detail = words.read(2000).decode("utf-8", "replace").strip() or None
            if has_answered:
                raise Lost(
                    "the service account's half of the job's worker was killed", None, detail
                ) from None
            raise NotReady(
                "the service account of this node does not run the job",
                "have the administrator look at slurm_node_people of role slurm_node",
                detail,
            ) from None
        finally:
            self._ended.set()

    def _send(self, pipe: Pipe) -> None:
        """Send the job, then what happens to it: a cancel, a signal, a sign of its controller."""
        local, cancel, is_signalled = self.local, None, False
        # The other half is gone: what it said before is received.
        with contextlib.suppress(OSError):
            names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_PARTITION", "SLURM_RESTART_COUNT")
            variables = {name: os.environ.get(name) for name in names}
            secrets = take_secrets(local)
            pipe.send(
                {
                    "protocol": PROTOCOL,
                    "spec": self.spec.to_dict(),
                    "secrets": secrets,
                    "variables": variables,
                }
            )
            for folder in (self.shared.workspace, self.shared.checkpoints):
                tree_stream.send_tree(pipe, folder, lambda: None)
            lease = change_mark(local.lease)
            while not self._ended.wait(LOOK_S):
                if self._is_asked_to_end and not is_signalled:
                    is_signalled = True
                    pipe.send({"signal": True})
                if change_mark(local.cancel) != cancel:
                    cancel = change_mark(local.cancel)
                    by = local.cancel.read_text(encoding="utf-8", errors="replace")
                    pipe.send({"cancel": short(by, 1000)})
                if change_mark(local.lease) != lease:
                    lease = change_mark(local.lease)
                    pipe.send({"lease": True})

    def _receive(self, pipe: Pipe, first: dict[str, Any]) -> None:
        """Receive what the other half says from its first message on, until it has said all."""
        result: Optional[dict[str, Any]] = None
        with _Log(self.local, self.spec, Room(self.local.dir, self.host.disk_floor_bytes)) as log:
            message: Any = first
            while not (isinstance(message, dict) and message.get("done")):
                if isinstance(message, bytes):
                    log.add(message)
                elif "status" in message:
                    self.local.write_status(**checked_status(message["status"]))
                elif "record" in message:
                    self._receive_record(pipe, message["record"])
                elif "result" in message:
                    result = checked_result(message["result"], self.local.id)
                elif "tree" in message and result is not None:
                    self._receive_tree(pipe, message["tree"], result)
                elif "error" in message:
                    raise checked_error(message["error"])
                elif message:
                    raise Malformed
                message = pipe.receive()
        if result is None:
            raise Malformed
        self.local.write_result(result)
        conclude.set_finished(self.local, result)

    def _receive_record(self, pipe: Pipe, name: Any) -> None:
        if name not in RECORDS:
            raise Malformed
        room = Room(self.local.dir, self.host.disk_floor_bytes)
        with new_file(self.local.dir / name) as descriptor:
            tree_stream.raise_failure(tree_stream.receive_content(pipe, descriptor, room))

    def _receive_tree(self, pipe: Pipe, name: Any, result: dict[str, Any]) -> None:
        """Put a tree in the place of the one in the shared folder, which stays if not all of it arrives."""
        if name not in ("workspace", "checkpoints"):
            raise Malformed
        account = self.host.caller()
        target, arriving, before = (self.shared.dir / f"{name}{end}" for end in ("", ".new", ".old"))
        file_trees.remove(account, arriving, before)
        make_folder(arriving, 0o700)
        if name == "workspace":
            # What is newer counts as a result when `fetch` packs it, by times that have the system's ticks.
            shared_folder.copy_file(self.local.stock, self.shared.stock)
            while self.shared.stock.exists() and not _is_newer(arriving, self.shared.stock):
                time.sleep(TICK_S)
                os.utime(arriving)
        try:
            tree_stream.receive_tree(pipe, arriving, Room(self.shared.dir, self.host.disk_floor_bytes))
        except Malformed:
            file_trees.remove(account, arriving)
            raise
        except (NotReady, OSError) as error:
            if not isinstance(error, tree_stream.Stopped):
                tree_stream.skip_rest(pipe)
            file_trees.remove(account, arriving)
            result["remarks"] = [
                *result["remarks"],
                f"its {name} could not be brought from the node: {error}",
            ]
            if name == "workspace":
                result.pop("unpacked", None)
            return
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, before)
        os.rename(arriving, target)
        file_trees.remove(account, before)


class _Log:
    """The job's log, into which the other half writes within its limit."""

    def __init__(self, job: Job, spec: JobSpec, room: Room) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(job.log, flags, 0o600), "wb", buffering=0)  # noqa: SIM115
        self._room = room
        # That of an earlier start, and a few lines of the worker, come on top.
        self._left = spec.log_max_bytes + MOST_LINES

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, data: bytes) -> None:
        """Append to the log. Raises Malformed above its limit, NotReady without room."""
        self._left -= len(data)
        if self._left < 0:
            raise Malformed
        self._room.use(len(data))
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def _is_newer(path: Path, other: Path) -> bool:
    return os.stat(path).st_ctime_ns > os.stat(other).st_ctime_ns


def checked_status(data: Any) -> dict[str, Any]:
    """Return the changes of a status that the other half may make. Raises Malformed."""
    if not isinstance(data, dict):
        raise Malformed
    times, notes, gpus = (data.get(name) for name in ("times", "notes", "gpus"))
    are_times = isinstance(times, dict) and all(
        phase in PHASES and isinstance(pair, list) and len(pair) == 2 and all(map(_is_time, pair))
        for phase, pair in times.items()
    )
    are_notes = isinstance(notes, list) and len(notes) <= MOST_NOTES and all(map(_is_text, notes))
    are_gpus = isinstance(gpus, list) and len(gpus) <= 64 and all(map(_is_text, gpus))
    is_phase = data.get("phase") is None or data.get("phase") in PHASES
    known = is_phase and _is_text(data.get("message")) and _is_time(data.get("started"))
    if not (are_times and are_notes and are_gpus and known):
        raise Malformed
    names = ("phase", "message", "times", "notes", "gpus", "started")
    return {"state": "running", **{name: data[name] for name in names}}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_TEXT


def _is_time(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and 0 <= value < 1 << 40)


def checked_result(data: Any, job: str) -> dict[str, Any]:
    """Return the result of a job that the other half sends. Raises Malformed."""
    if not isinstance(data, dict) or data.get("exit_code") not in list(ExitCode):
        raise Malformed
    code = ExitCode(data["exit_code"])
    texts = (data.get(name) for name in ("reason", "hint", "detail", "link"))
    remarks, unpacked, seconds = (data.get(name) or kind() for name, kind in RESULT_KINDS.items())
    is_sound = all(text is None or _is_text(text) for text in texts) and all(
        isinstance(value, kind) for value, kind in zip((remarks, unpacked, seconds), RESULT_KINDS.values())
    )
    if not is_sound or len(remarks) > MOST_NOTES or not all(map(_is_text, remarks)):
        raise Malformed
    return {**data, "id": job, "schema": SCHEMA, "outcome": OUTCOMES[code], "remarks": remarks}


#: Parts of a result that are read as such.
RESULT_KINDS: dict[str, type] = {"remarks": list, "unpacked": dict, "seconds": dict}


def checked_error(data: Any) -> TrainClassifierError:
    """Return the error that the other half says. Raises Malformed."""
    words = (data.get(name) for name in ("reason", "hint", "detail")) if isinstance(data, dict) else (0,)
    if not all(word is None or _is_text(word) for word in words):
        raise Malformed
    return errors.from_dict(data)
