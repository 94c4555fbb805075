"""A job on several nodes: one worker a node, of which the first starts the others and ends with them.

Each further worker is a step of Slurm's job and has a folder of its own in the job's shared one. Short
messages between them are files that exist from the start and are written in place; see `slurm.shared_folder`.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Callable, Optional

from train_classifier.core.errors import BadInput, ExitCode, Lost, TrainClassifierError, topic_of
from train_classifier.core.job import SCHEMA
from train_classifier.worker.jobs.secrets import remove_secrets
from train_classifier.worker.slurm import accounting, allocation, shared_folder
from train_classifier.worker.slurm_node import rendezvous
from train_classifier.worker.slurm_node.rendezvous import Rendezvous
from train_classifier.worker.state import results
from train_classifier.worker.state.files import make_folder, read_bytes, read_json, write_bytes, write_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system import host_faults, program
from train_classifier.worker.system.host import Account, Host

#: In the shared folder of a job: a folder for each attempt, with one for each further worker.
FOLDER = "ranks"
#: Holds the Rendezvous.
MEETING_FILE = "rendezvous.json"
#: Filled by a worker that could begin to train, and by the first one when all can.
READY_FILE = "ready"
GO_FILE = "go"
LOOK_S = 0.5
#: Seconds beside the grace of the model in which a worker that was asked to stop ends.
END_S = 120.0
#: Most models whose failure is told in the reason of a job.
MOST_REASONS = 4
#: Slurm's variables for the batch script that would be options of srun.
BATCH_ONLY = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NNODES")

Check = Callable[[], None]


def attempt_folder(shared: Job, variables: Mapping[str, str]) -> Path:
    """Return the folder of this attempt of a job."""
    return shared.dir / FOLDER / attempt_name(variables)


def attempt_name(variables: Mapping[str, str]) -> str:
    """Return what tells the attempts of a job apart."""
    return f"{variables['SLURM_JOB_ID']}-{variables.get('SLURM_RESTART_COUNT', '0')}"


def refuse_host_network(host: Host, nodes: int) -> None:
    """Raise BadInput where containers may not use the network of this node."""
    problem = allocation.host_network_problem(host, nodes)
    if problem:
        raise BadInput(problem)


def mark(path: Path) -> None:
    """Fill a file that is there already."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"1\n")
    finally:
        os.close(descriptor)


def wait_for_mark(path: Path, check: Check) -> None:
    """Wait until a file is filled; `check` is called repeatedly and may raise."""
    while not read_bytes(path, 100):
        check()
        time.sleep(LOOK_S)


class Member:
    """What a further worker knows of the group."""

    def __init__(self, folder: Path, rank: int, local: Job, variables: dict[str, str]) -> None:
        self.rank = rank
        self.variables = variables
        self._folder = folder
        self._local = local

    def failure(self) -> Optional[TrainClassifierError]:
        """Return nothing: the first worker watches the others, and asks this one to stop."""
        return None

    def stop(self, reason: str) -> None:
        """Do nothing: the exit status tells the first worker."""

    def wait_ready(self, say: Callable[[str], None], check: Check) -> None:
        """Wait until every worker can begin to train."""
        mark(self._folder / str(self.rank) / READY_FILE)
        say("waiting for the other nodes")
        wait_for_mark(self._folder / GO_FILE, check)

    def end(self, error: Optional[TrainClassifierError], check: Check) -> Optional[TrainClassifierError]:
        """Deliver nothing: the results are those of rank 0."""
        self._local.stock.unlink(missing_ok=True)
        return error


class Leader:
    """The group for the first worker, which starts the others."""

    rank = 0

    def __init__(self, shared: Job, local: Job, meeting: Rendezvous, slurm: Mapping[str, str]) -> None:
        self.shared = shared
        self.local = local
        self.folder = attempt_folder(shared, slurm)
        self.nodes = meeting.nodes
        self.variables = rendezvous.variables(meeting, 0, slurm)
        self._meeting = meeting
        self._processes: dict[int, "subprocess.Popen[bytes]"] = {}
        self._failure: Optional[TrainClassifierError] = None
        self._is_stopped = False

    def start(self, gpus: int) -> None:
        """Start a worker on each further node."""
        make_folder(self.folder.parent, 0o700)
        # Slurm may have launched the attempt before; that launch has ended.
        shutil.rmtree(self.folder, ignore_errors=True)
        make_folder(self.folder, 0o700)
        write_json(self.folder / MEETING_FILE, self._meeting.to_dict())
        for name in (GO_FILE, shared_folder.STOP_FILE):
            write_bytes(self.folder / name, b"")
        for rank in range(1, len(self.nodes)):
            member = Job(make_folder(self.folder / str(rank), 0o700))
            write_bytes(member.dir / READY_FILE, b"")
            first: dict[str, Any] = {
                "schema": SCHEMA,
                "id": self.shared.id,
                "version": 0,
                "state": "submitted",
            }
            write_json(member.dir / "status.json", first)
        for rank in range(1, len(self.nodes)):
            with open(self._output(rank), "wb") as output:
                self._processes[rank] = self._start(rank, gpus, output)

    def _start(self, rank: int, gpus: int, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        command = [
            "srun", "--quiet", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={self.nodes[rank]}",
            f"--gres=gpu:{gpus}" if gpus else "--gres=none", "--mpi=none", "--input=none", "--chdir=/",
            # sbatch was asked for a clean environment, and hands that down: this one is clean already.
            "--export=ALL",
            *program.command("run", str(self.shared.dir), str(rank)),
        ]  # fmt: skip
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={name: value for name, value in os.environ.items() if name not in BATCH_ONLY},
            cwd="/",
            # A signal to this worker makes it stop the others in order.
            start_new_session=True,
        )

    def _output(self, rank: int) -> Path:
        return self.local.dir / f"srun-rank{rank}.txt"

    def _job(self, rank: int) -> Job:
        return Job(self.folder / str(rank))

    def failure(self) -> Optional[TrainClassifierError]:
        """Return the error of another worker that ended badly, None while there is none."""
        if self._failure is None and not self._is_stopped:
            failed = [rank for rank, process in self._processes.items() if process.poll()]
            if failed:
                self._failure = self._error(min(failed, key=self._training_end))
        return self._failure

    def _result(self, rank: int) -> dict[str, Any]:
        with contextlib.suppress(TrainClassifierError, OSError):
            # Opening the folder makes a network file system look at it again.
            os.listdir(self._job(rank).dir)
            return self._job(rank).result() or {}
        return {}

    def _error(self, rank: int) -> TrainClassifierError:
        place = f"rank {rank} on {self.nodes[rank]}"
        result = self._result(rank)
        if not result.get("exit_code"):
            output = self._output(rank).read_bytes()[-2000:].decode("utf-8", "replace").strip()
            return Lost(f"the worker of {place} was killed or could not start", None, output or None)
        # Not a TrainingFailed: the log of this node would be searched for its cause.
        hint = f"its log is job/log-rank{rank}.txt of the archive"
        error = TrainClassifierError(
            f"{place}: {result.get('reason')}",
            f"{result['hint']}; {hint}" if result.get("hint") else hint,
            result.get("detail"),
            ExitCode(result["exit_code"]),
        )
        error.topic = topic_of(result)
        return error

    def _training_end(self, rank: int) -> float:
        """Return when the model of a rank ended, by its node's clock; infinity when it never ran."""
        job = self._job(rank) if rank else self.local
        with contextlib.suppress(TrainClassifierError, KeyError, TypeError, OSError):
            return float(read_json(job.dir / "status.json")["times"]["training"][1])
        return float("inf")

    def stop(self, reason: str) -> None:
        """Ask the others to stop, once; a shared folder that is full or away is tried again by `end`."""
        if not self._is_stopped:
            with contextlib.suppress(OSError):
                shared_folder.ask_to_stop(Job(self.folder), f"rank 0 on {self.nodes[0]}: {reason}"[:900])
                self._is_stopped = True

    def wait_ready(self, say: Callable[[str], None], check: Check) -> None:
        """Wait until every worker can begin to train: frameworks wait for each other for minutes only."""
        say("waiting for the other nodes")
        for rank in self._processes:
            wait_for_mark(self._job(rank).dir / READY_FILE, check)
        if not self.local.spec().requeue:
            # Each worker has read them.
            remove_secrets(self.shared)
        mark(self.folder / GO_FILE)

    def end(self, error: Optional[TrainClassifierError], check: Check) -> Optional[TrainClassifierError]:
        """Wait for the end of the others, stop them after an error, bring their logs; return the cause."""
        own = error
        if error is None:
            try:
                while self._running():
                    check()
                    time.sleep(LOOK_S)
                check()
            except TrainClassifierError as cause:
                error = cause
        deadline = time.monotonic() + self.local.spec().grace_s + END_S
        while self._running() and time.monotonic() < deadline:
            if error is not None:
                self.stop(error.reason)
            time.sleep(LOOK_S)
        for rank in self._running():
            # Slurm ends the step.
            self._processes[rank].terminate()
        self._bring_records()
        return self._with_others(own, error)

    def _bring_records(self) -> None:
        """Copy the logs of the others beside that of this one; a job does not fail for lack of them."""
        for rank in self._processes:
            for stem, suffix in (("log", "txt"), ("usage", "csv")):
                name = f"{stem}-rank{rank}.{suffix}"
                try:
                    shared_folder.copy_file(self._job(rank).dir / f"{stem}.{suffix}", self.local.dir / name)
                except OSError as problem:
                    with host_faults.ignore_disk_errors():
                        self.local.add_note(f"{name} is not in the archive: {problem.strerror}")

    def _running(self) -> list[int]:
        return [rank for rank, process in self._processes.items() if process.poll() is None]

    def _with_others(
        self, own: Optional[TrainClassifierError], error: Optional[TrainClassifierError]
    ) -> Optional[TrainClassifierError]:
        """Return the error with every model that failed by itself, the first to end before the others.

        A model that loses another one fails too, within milliseconds: people must see which was the cause.
        """
        if error is None or error.code != ExitCode.FAILED:
            return error
        failed = [r for r in self._processes if self._result(r).get("exit_code") == ExitCode.FAILED]
        errors = {rank: self._error(rank) for rank in failed}
        if own is not None and own is not self._failure:
            errors[0] = TrainClassifierError(f"rank 0 on {self.nodes[0]}: {own.reason}", own.hint, own.detail)
        elif failed:
            first = self._result(min(failed, key=self._training_end))
            keys = ("training_exit_status", "signal", "out_of_memory")
            results.record_facts(self.local, training={key: first.get(key) for key in keys})
        if list(errors) in ([], [0]):
            return error
        ranks = sorted(errors, key=self._training_end)
        reasons = [errors[rank].reason for rank in ranks[:MOST_REASONS]]
        if ranks[MOST_REASONS:]:
            reasons.append(f"so did {len(ranks) - MOST_REASONS} more")
        first_error = errors[ranks[0]]
        return TrainClassifierError("; ".join(reasons), first_error.hint, first_error.detail, ExitCode.FAILED)


def arrange(shared: Job, host: Host, account: Account, slurm: Mapping[str, str]) -> Optional[Rendezvous]:
    """Return how the nodes of a job meet; None for a job on one node. Raises BadInput, NotReady."""
    count = shared.spec().nodes or 1
    if count == 1:
        return None
    refuse_host_network(host, count)
    names = accounting.node_names(account, slurm)
    return rendezvous.arrange(account, names, allocation.node_name(slurm), slurm["SLURM_JOB_ID"])


def start(shared: Job, local: Job, meeting: Rendezvous, slurm: Mapping[str, str]) -> Leader:
    """Start the other workers of a job on several nodes."""
    leader = Leader(shared, local, meeting, slurm)
    leader.start(int(shared.status().get("gpus_wanted") or 0))
    return leader


def join(shared: Job, local: Job, host: Host, rank: int, slurm: Mapping[str, str]) -> Member:
    """Return the group for a further worker. Raises BadInput, NotReady."""
    refuse_host_network(host, shared.spec().nodes or 1)
    folder = attempt_folder(shared, slurm)
    meeting = Rendezvous(**read_json(folder / MEETING_FILE))
    return Member(folder, rank, local, rendezvous.variables(meeting, rank, slurm))
