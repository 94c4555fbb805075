"""Slurm's commands: submit, look at the caller's jobs, cancel. Their output is read in formats of our own.

Every command runs with a clean environment: variables such as SBATCH_PARTITION change what is submitted.
"""

import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Optional

from train_classifier.core.errors import BadInput, NotReady
from train_classifier.core.job import JOB_ID
from train_classifier.worker.system.host import Account

#: The name of each job in Slurm is this and our own id.
NAME_PREFIX = "tc-"
#: The name comes first and the reason, which may hold any character, last.
FORMAT = "%j|%i|%T|%S|%N|%P|%r"
#: Seconds that a command may take; Slurm's own tools give up after some ten seconds without a controller.
LIMIT_S = 30.0
#: Seconds between two looks at the queue by one process.
LOOK_S = 5.0
SILENCE = (
    "Unable to contact slurm controller", "Connection refused", "Connection timed out",
    "timed out on send/recv",
    "Zero Bytes were transmitted", "Unable to establish controller", "Munge encode failed", "authentication",
    "Could not establish a configuration source", "Transport endpoint is not connected",
    "No route to host", "Unexpected message received",
)  # fmt: skip


class SlurmSilent(NotReady):
    """Slurm's controller does not answer, so that nothing is known about its jobs."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            "Slurm does not answer",
            "look at its controller: systemctl status slurmctld munge; jobs that run go on meanwhile",
            detail or None,
        )


@dataclasses.dataclass(frozen=True)
class QueueLine:
    """One job of Slurm, as squeue lists it."""

    #: Slurm's own number of the job.
    number: str
    state: str
    #: Seconds since the epoch of the start, for a waiting job the expected one; None: not known.
    start: Optional[float]
    nodes: str
    partition: str
    #: Slurm's word for why the job waits, or why it ended.
    reason: str


def is_installed() -> bool:
    """Tell whether Slurm's commands are on this machine."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel", "scontrol"))


def environment(account: Account) -> dict[str, str]:
    """Return the environment of every command."""
    values = {**account.environment(), "SLURM_TIME_FORMAT": "%s"}
    if os.environ.get("SLURM_CONF"):
        values["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return values


def run(account: Account, arguments: Sequence[str], text: str = "") -> str:
    """Run a command and return its output. Raises SlurmSilent, BadInput with Slurm's words for a refusal."""
    try:
        process = subprocess.run(
            list(arguments), input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env=environment(account), timeout=LIMIT_S, check=False, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except FileNotFoundError as error:
        raise NotReady(
            f"{arguments[0]} is not installed on this submit host", "run the role slurm_controller on it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmSilent(f"{arguments[0]} did not end within {LIMIT_S:.0f} s") from error
    if process.returncode == 0:
        return process.stdout
    message = process.stderr.strip()
    if any(words in message for words in SILENCE):
        raise SlurmSilent(message)
    last = message.splitlines()[-1] if message else f"exit status {process.returncode}"
    words = re.sub(r"^\w+: (error: )?(Batch job submission failed: )?", "", last)
    raise BadInput(f"Slurm refused the request: {words}", hint="see sinfo on the submit host")


def parse_queue(output: str) -> dict[str, QueueLine]:
    """Return the jobs of a squeue in our format, by our own ids; other jobs are left out.

    Of several jobs of one id the last one counts.
    """
    jobs = {}
    for line in output.splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7 or not fields[0].startswith(NAME_PREFIX):
            continue
        name, number, state, start, nodes, partition, reason = fields
        job = name[len(NAME_PREFIX) :]
        if JOB_ID.match(job):
            seconds = float(start) if start.isdigit() else None
            jobs[job] = QueueLine(number, state, seconds, nodes, partition, reason.strip())
    return jobs


def queue_command(account: Account) -> list[str]:
    """Return the command that lists the account's jobs, also those that ended lately."""
    return [
        "squeue", "--noheader", "--states=all", f"--user={account.name}", "--sort=i", f"--format={FORMAT}",
    ]  # fmt: skip


#: Lists the waiting jobs of all users, as far as Slurm shows them: those that start first come first.
WAITING = ["squeue", "--noheader", "--states=PENDING", "--sort=P,-p,i", "--format=%P|%i"]
SEPARATOR = "-----"


def parse_places(output: str) -> dict[str, int]:
    """Return the place of each waiting job in its partition, from 1 on, from the output of WAITING."""
    places: dict[str, int] = {}
    counts: dict[str, int] = {}
    for line in output.splitlines():
        partition, _, number = line.partition("|")
        counts[partition] = places[number] = counts.get(partition, 0) + 1
    return places


class QueueLook:
    """Looks at the caller's jobs, at most every LOOK_S; a look runs beside its caller.

    Without a controller squeue takes some ten seconds, for which nobody who follows a log should wait.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        #: The answer of the last look that Slurm answered, and when that look began.
        self.jobs: dict[str, QueueLine] = {}
        #: The places of waiting jobs, by Slurm's numbers.
        self.places: dict[str, int] = {}
        self.asked_at: Optional[float] = None
        #: Why the last look had no answer; None when it had one.
        self.silence: Optional[SlurmSilent] = None
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._output: Optional[IO[bytes]] = None
        self._began = float("-inf")
        self._began_at = 0.0

    def refresh(self, wait_s: float) -> None:
        """Begin a look if the last one is old, and wait up to `wait_s` for its answer."""
        if self._process is None:
            if time.monotonic() - self._began < LOOK_S:
                return
            self._start()
        assert self._process is not None
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            if time.monotonic() - self._began < LIMIT_S:
                return
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._take_answer()

    def _start(self) -> None:
        self._began, self._began_at = time.monotonic(), time.time()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        own, others = shlex.join(queue_command(self.account)), shlex.join(WAITING)
        script = f"{own} && echo {SEPARATOR} && {others}"
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script], start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=self._output, stderr=self._output, cwd="/", env=environment(self.account),
            )  # fmt: skip
        except OSError as error:
            raise NotReady("squeue cannot be started on this submit host", detail=str(error)) from error

    def _take_answer(self) -> None:
        assert self._process is not None and self._output is not None
        with self._output as file:
            file.seek(0)
            text = file.read().decode("utf-8", "replace")
        status, self._process, self._output = self._process.returncode, None, None
        self._began = time.monotonic()
        if status == 0:
            own, _, others = text.partition(f"{SEPARATOR}\n")
            self.jobs, self.places = parse_queue(own), parse_places(others)
            self.asked_at, self.silence = self._began_at, None
        else:
            self.silence = SlurmSilent(text.strip()[-2000:])


def recorded_state(account: Account, number: str, job: str) -> Optional[str]:
    """Return the state of a job that squeue no longer lists, from the accounting; None where there is none.

    By its own id, too: a controller that lost its state counts anew. Raises SlurmSilent.
    """
    if not shutil.which("sacct"):
        return None
    command = [
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={number}",
        f"--name={NAME_PREFIX}{job}",
    ]  # fmt: skip
    try:
        lines = run(account, command).split("\n")
    except BadInput:
        # Most clusters of one lab have no accounting.
        return None
    # CANCELLED by 1000
    words = lines[0].split()
    return words[0] if words else None
