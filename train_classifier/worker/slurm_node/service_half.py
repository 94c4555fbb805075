"""The half of a job's worker that runs as the service account, for a person without Docker rights here.

sudo starts it with one argument, Slurm's number of a job. Docker rights equal root, so nothing that the
person says is believed: sudo says who calls, Slurm says whose the job is and what it has. The request counts
as written by a checkout.
"""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Optional

from train_classifier.core import locks
from train_classifier.core.errors import BadInput, Cancelled, NotReady, TrainClassifierError
from train_classifier.core.job import NAME, SCHEMA, JobSpec, new_job_id
from train_classifier.core.regular_file import open_regular
from train_classifier.core.text import printable, short
from train_classifier.worker.containers import engine
from train_classifier.worker.jobs import removal
from train_classifier.worker.jobs import run as local_run
from train_classifier.worker.jobs.secrets import store_secrets
from train_classifier.worker.slurm import accounting, allocation, people, running_job, shared_folder
from train_classifier.worker.slurm_node import node_job, person_half, tree_stream
from train_classifier.worker.slurm_node.pipe import MOST_BLOCK, Pipe
from train_classifier.worker.state import results
from train_classifier.worker.state.files import make_folder, read_json, write_bytes, write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import host_faults, program
from train_classifier.worker.system.host import Account, Host, boot_id, uptime
from train_classifier.worker.training import data_folders
from train_classifier.worker.transfer import workspace_copy

#: In the service account's state folder: a state folder for each person.
PEOPLE = "people"
#: Seconds between two looks at log and status.
LOOK_S = 0.1
#: Seconds between two cancels of a job whose person's half is gone.
GONE_S = 5.0
#: Seconds that a new job may take until it has its number.
NEW_S = 60.0
#: Of what slurmd told the person's half, for the records alone.
RECORDED = {
    "SLURM_CLUSTER_NAME": r"[\w.-]{1,100}", "SLURM_JOB_PARTITION": r"[\w.-]{1,100}",
    "SLURM_RESTART_COUNT": r"[0-9]{1,9}",
}  # fmt: skip


def main(number: str) -> int:
    """Run the person's job that Slurm has under this number; return the exit status."""
    caller = os.environ.get("SUDO_UID", "")
    # Whoever starts this chooses all of these.
    os.chdir("/")
    os.environ.clear()
    # With a mask of theirs sudo would let them close the folders that all these people share.
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # Ignored, it would make each child look as if it had succeeded.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A terminal sends it to both halves, and the person's one says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nothing else that is printed may get between the messages.
    sink = os.fdopen(os.dup(1), "wb")
    pipe = Pipe(os.fdopen(os.dup(0), "rb"), sink)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    try:
        host = Host.load()
        account = host.caller()
        if account.name != host.service_user or not caller.isdigit() or int(caller) in (0, account.uid):
            raise BadInput(f"sudo starts this as {host.service_user}, for somebody else")
        os.environ.update(account.environment())
        node = socket.gethostname().partition(".")[0]
        os.environ.update(running_job.variables(account, number, int(caller), node))
        folder = host.local_state_dir({}) / PEOPLE
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o700)
        store = Store(folder / caller).make()
        # No login of the service account, for a registry or an index, reaches a job.
        os.environ["HOME"] = str(store.root)
        lock = lock_of(store, number)
        with locks.hold_now(lock) as is_locked:
            if not is_locked:
                raise NotReady(f"job {number} of Slurm is being run already")
            pipe.send({})
            ServiceHalf(pipe, host, store, account).run(number)
            lock.unlink()
    except EOFError:
        return 1
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send({"error": host_faults.describe(error)})
        return 1
    finally:
        # Else Python reports what it cannot write at its end.
        with contextlib.suppress(OSError):
            sink.close()
    return 0


def lock_of(store: Store, number: object) -> Path:
    """Return the lock that is held while this program runs the job that Slurm has under this number."""
    return store.root / f"slurm-{number}.lock"


class ServiceHalf:
    """One job of a person, from its request to its results."""

    def __init__(self, pipe: Pipe, host: Host, store: Store, account: Account) -> None:
        self.pipe = pipe
        self.host = host
        self.store = store
        self.account = account
        #: What is only recorded.
        self.recorded: dict[str, str] = {}
        self.is_gone = threading.Event()
        self._ended = threading.Event()

    def run(self, number: str) -> None:
        """Run the job, and send what it comes to. Raises EOFError, OSError, TrainClassifierError."""
        signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
        self._remove_killed(number)
        spec, secrets = self._receive_request()
        # Its own id: another person may have a job of the id that this one names.
        job = Job(self.store.jobs / new_job_id())
        job.make(self.account)
        try:
            shared_folder.write_number(job, number)
            # Another job of the person that ends meanwhile removes abandoned ones.
            with locks.hold(job.lock):
                granted = self._fill(job, spec, secrets)
            if signals:
                raise Cancelled("Slurm ended the job when it began (SIGTERM)")
            listener = threading.Thread(target=self._listen, args=(job,), name="listener", daemon=True)
            listener.start()
            sender = threading.Thread(target=self._send_news, args=(job,), name="sender", daemon=True)
            sender.start()
            try:
                local_run.run_job(job, granted)
            finally:
                self._ended.set()
                sender.join()
            self._send_results(job)
        finally:
            self._remove(job)

    def _remove_killed(self, own: str) -> None:
        """Remove the person's jobs whose half here was killed; `own` is the job whose lock is held."""
        for job in self.store.all_jobs():
            number = shared_folder.number(job)
            is_new = number is None and time.time() - os.lstat(job.dir).st_mtime < NEW_S
            if number == own or not (is_new or locks.is_held(lock_of(self.store, number))):
                self._remove(job)

    def _remove(self, job: Job) -> None:
        """Remove a job with its containers; what cannot be removed now stays for the person's next job."""
        state = (read_json(job.dir / "status.json") or {}).get("state")
        # Containers are made from `submitted` on; the folder `run` is removed last when a job ends.
        if job.run.exists() and state not in (None, "pushed"):
            engine.remove_all(engine.connect(), job.id)
        removal.remove(job, self.account)

    def _receive_request(self) -> tuple[JobSpec, dict[str, str]]:
        header = self.pipe.receive_object()
        if header.get("protocol") != person_half.PROTOCOL:
            raise NotReady("the worker of this node is of another version", "run site.yml for this node")
        try:
            spec = JobSpec.from_dict(header.get("spec"))
        except ValueError as error:
            raise BadInput(*str(error).splitlines()) from error
        secrets = header.get("secrets")
        if not isinstance(secrets, dict) or set(secrets) != set(spec.secrets):
            raise BadInput("the secrets are not those of the specification")
        for name, value in secrets.items():
            if not NAME.match(name) or not isinstance(value, str) or "\0" in value:
                raise BadInput(f"the value of secret {name} is not text, or holds a NUL")
        refused = people.problems(spec) + self._data_problems(spec)
        # Looked at again when the container is made.
        data = tuple(dataclasses.replace(folder, from_checkout=True) for folder in spec.data)
        spec = dataclasses.replace(spec, data=data)
        refused = refused or data_folders.examine(spec, self.host, self.store.root)[1]
        if refused:
            raise BadInput(*refused)
        recorded = header.get("variables")
        for name, form in RECORDED.items():
            value = recorded.get(name) if isinstance(recorded, dict) else None
            if isinstance(value, str) and re.fullmatch(form, value, re.ASCII):
                self.recorded[name] = value
        return spec, secrets

    def _data_problems(self, spec: JobSpec) -> list[str]:
        """Return a sentence for each data folder that is not for people who could not mount it themselves."""
        roots = self.host.data_roots
        offer = f"only what lies below {', '.join(roots)}" if roots else "no folder"
        problems = []
        for folder in spec.data:
            subject = f"data folder {folder.path} (/data/{folder.name})"
            try:
                real = Path(os.path.realpath(folder.path))
            except (OSError, ValueError) as error:
                problems.append(f"{subject} cannot be used: {getattr(error, 'strerror', None) or 'no path'}")
                continue
            if not data_folders.is_offered(str(real), roots):
                problems.append(
                    f"{subject}: this node offers {offer} to accounts without Docker rights "
                    "(training_host_data_roots of role training_host)"
                )
                continue
            try:
                open_folder = next(filter(_is_open, real.parents), None)
                place = _shared_place(real)
            except OSError as error:
                problems.append(f"{subject} cannot be used: {error.strerror}")
                continue
            if open_folder is not None:
                # The engine mounts it by its path, as root.
                problems.append(
                    f"{subject}: accounts other than root can change {open_folder}, and so what it names"
                )
            elif place is not None:
                problems.append(
                    f"{subject}: accounts other than root can write in {short(printable(place), 200)}, "
                    "which is only for folders that root alone can write"
                )
        return problems

    def _fill(self, job: Job, spec: JobSpec, secrets: dict[str, str]) -> allocation.Allocation:
        """Write the job's files, and receive its sources; return what Slurm gave it."""
        # Who may not use the engine has no more of the node than Slurm gave.
        granted = dataclasses.replace(allocation.read(self.host, os.environ), limits_builds=True)
        write_json(job.dir / "spec.json", spec.to_dict())
        write_bytes(job.lease, b"")
        make_folder(self.store.cache / spec.repository.key, 0o700)
        job.write_status(
            schema=SCHEMA, id=job.id, model=spec.model, submitter=spec.submitter, state="pushed", phase=None,
            message="", boot_id=boot_id(), pid=None, pid_start=None, worker=str(program.PROGRAM),
            launcher=node_job.LOCAL_LAUNCHER, unit=None, container=None, gpus=[], times={},
            submitted=time.time(), started=None, finished=None, gpus_wanted=len(granted.gpus),
        )  # fmt: skip
        results.record_facts(job, slurm=accounting.read(self.account, {**self.recorded, **os.environ}))
        for folder in (job.workspace, job.checkpoints):
            tree_stream.receive_tree(
                self.pipe, folder, tree_stream.Room(self.store.root, self.host.disk_floor_bytes)
            )
        write_bytes(job.copy, workspace_copy.COPIED)
        store_secrets(job, self.account, secrets)
        job.write_status(state="submitted", submitted_uptime=uptime())
        return granted

    def _listen(self, job: Job) -> None:
        """Take what the person's half says while the job runs; when it is gone, the job ends."""
        with contextlib.suppress(EOFError, TrainClassifierError, OSError):
            while True:
                message = self.pipe.receive_object()
                if "cancel" in message:
                    write_bytes(job.cancel, short(message["cancel"], 1000).encode("utf-8", "replace"))
                elif "signal" in message:
                    os.kill(os.getpid(), signal.SIGTERM)
                elif "lease" in message:
                    os.utime(job.lease)
        self.is_gone.set()
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                write_bytes(job.cancel, b"the end of the job's worker")
            # The second one ends the packing, too.
            self._ended.wait(GONE_S)

    def _send_news(self, job: Job) -> None:
        """Send log and status as they grow, and the rest when the job has ended."""
        version, is_last, offset = None, False, 0
        with contextlib.suppress(OSError):
            while not is_last:
                is_last = self._ended.wait(LOOK_S)
                offset = self._send_log(job, offset)
                status = read_json(job.dir / "status.json")
                if status["version"] != version and status["state"] == "running":
                    version = status["version"]
                    names = ("phase", "message", "times", "gpus", "started")
                    news = {name: status.get(name) for name in names}
                    self.pipe.send({"status": {**news, "notes": status.get("notes") or []}})

    def _send_log(self, job: Job, offset: int) -> int:
        """Send the log from a place on; return its end."""
        if not job.log.exists():
            return offset
        with open(open_regular(job.log), "rb", buffering=0) as log:
            log.seek(offset)
            while block := log.read(MOST_BLOCK):
                self.pipe.send_block(block)
                offset += len(block)
        return offset

    def _check(self) -> None:
        if self.is_gone.is_set():
            raise Cancelled("the person's half of the worker is gone")

    def _send_results(self, job: Job) -> None:
        result = job.result()
        if result is None:
            raise NotReady(f"job {job.id} has no result")
        for name in person_half.RECORDS:
            tree_stream.send_file(self.pipe, job.dir / name, self._check)
        self.pipe.send({"result": result})
        trees = ["checkpoints", *(["workspace"] if result.get("unpacked") else [])]
        for name in trees:
            self.pipe.send({"tree": name})
            tree_stream.send_tree(self.pipe, job.dir / name, self._check)
        self.pipe.send({"done": True})


def _shared_place(folder: Path) -> Optional[str]:
    """Return a place in a folder where an account other than root can have a socket; None when there is none.

    Through one, which a read-only mount does not close, a process of the person would hand the model a folder
    of the host, and the model has the rights of the service account there. Files are not looked at: a data
    set has many. Raises OSError for a folder that cannot be looked into and may be entered.
    """
    stack = [str(folder)]
    while stack:
        place = stack.pop()
        if _is_open(Path(place)):
            return place
        try:
            entries = os.scandir(place)
        except PermissionError:
            if os.stat(place).st_mode & 0o011:
                raise
            # The model cannot enter it either.
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif not (entry.is_symlink() or entry.is_file(follow_symlinks=False)):
                    return entry.path
    return None


def _is_open(folder: Path) -> bool:
    """Tell whether an account other than root can rename what lies in a folder."""
    status = os.stat(folder)
    return status.st_uid != 0 or bool(status.st_mode & 0o022)
