"""The folder that all hosts of a cluster share, on any file system; root never writes there.

A job's files there are its snapshot until a node takes it, and what the submit host reads afterwards.
Files are replaced whole. Two are exceptions: the log grows, and the stop file is written in place, since a
network file system shows the new content of a file to those who open it, while a new name may stay hidden for
a minute.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.regular_file import open_regular
from train_classifier.worker.state.files import new_file, read_json, write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import host_faults, program
from train_classifier.worker.system.host import Account, Host

#: The launcher in status.json of a job that Slurm starts.
LAUNCHER = "slurm"
#: In a job's folder: empty until somebody cancels the job, then who.
STOP_FILE = "stop"
#: In a job's folder: Slurm's number of the job.
NUMBER_FILE = "slurm.json"
#: Written by the worker on the node every few seconds: its time.
ALIVE_FILE = "alive"
BLOCK = 1 << 20
#: Where every account may make folders, on no disk.
MEMORY = Path("/dev/shm")


def become_service_account(host: Host) -> None:
    """Give up root's rights for good: everything for Slurm is done by the account of root's jobs.

    Network file systems often give root no rights (root_squash).
    """
    account = host.job_user()
    # The rest of this program is imported when it is needed.
    program.open_to_all()
    os.initgroups(account.name, account.gid)
    os.setgid(account.gid)
    os.setuid(account.uid)
    os.environ.update(account.environment())


def make(host: Host, store: Store) -> None:
    """Make the account's folder in the shared one, closed to others. Raises NotReady."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(store.root, 0o700)
        # Refuses a folder or a link that another account was quicker to make, before anything is done there.
        host.state_dir({})
        os.chmod(store.root, 0o700)
    except OSError as error:
        raise NotReady(
            f"{store.root} cannot be created: {error.strerror}",
            f"{host.slurm_shared_dir} must be open to all accounts, as /tmp is: mode 1777",
        ) from error


def copy_program(store: Store) -> Path:
    """Return this program in the shared folder, from which nodes run it; copy it there first if needed."""
    target = store.workers / program.PROGRAM.name
    if (target / "__main__.py").is_file():
        # `clean` removes programs that were not used lately.
        os.utime(target)
        return target
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=store.workers))
    try:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(program.PROGRAM, folder / "program", ignore=ignored)
        with contextlib.suppress(OSError):
            # Another submission may have been quicker.
            os.rename(folder / "program", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not (target / "__main__.py").is_file():
        raise NotReady(f"the worker's program could not be copied to {target}")
    return target


def write_number(job: Job, number: str) -> None:
    """Record Slurm's number of a job; status.json is the worker's as soon as Slurm has the job."""
    write_json(job.dir / NUMBER_FILE, {"number": number})


def number(job: Job) -> Optional[str]:
    """Return Slurm's number of a job, None when its submission was killed before it was recorded."""
    return (read_json(job.dir / NUMBER_FILE) or {}).get("number")


def copy_file(source: Path, target: Path) -> None:
    """Replace a file of the shared folder by a local one or the reverse; a source that is missing is fine."""
    try:
        descriptor = open_regular(source)
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as file, new_file(target) as copy:
        while block := file.read(BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(copy, view) :]


def ask_to_stop(job: Job, by: str) -> None:
    """Write the stop file in place; the worker on the node reads it every second."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(job.dir / STOP_FILE, flags, 0o600)
    try:
        os.write(descriptor, (by or "somebody").encode("utf-8", "replace") + b"\n")
    finally:
        os.close(descriptor)


def try_to_stop(job: Job, by: str) -> bool:
    """Do `ask_to_stop`; return False when the shared folder is full, or the quota of the account."""
    try:
        ask_to_stop(job, by)
    except OSError as error:
        if not host_faults.of_disk(error):
            raise
        return False
    return True


def stop_request(job: Job) -> Optional[tuple[bytes, int]]:
    """Return who asked last for the end of the job, and a mark of when; None when nobody did."""
    try:
        descriptor = open_regular(job.dir / STOP_FILE)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        by = file.read(1000).strip()
        return (by, os.fstat(descriptor).st_mtime_ns) if by else None


def local_lock(account: Account, job: Job) -> Path:
    """Return the lock under which this submit host finishes a job: on its own disk, in memory.

    Everybody may make folders beside it. One of another account with its usual name is passed over, and since
    no one can make a folder that belongs to this account, all processes find the same one.
    """
    name = f"train-classifier-{account.uid}"

    def own_folders() -> list[Path]:
        names = sorted(found for found in os.listdir(MEMORY) if f"{found}.".startswith(f"{name}."))
        return [MEMORY / found for found in names if _is_own_folder(MEMORY / found, account)]

    folders = own_folders()
    if not folders:
        try:
            os.mkdir(MEMORY / name, 0o700)
        except FileExistsError:
            tempfile.mkdtemp(prefix=f"{name}.", dir=MEMORY)
        folders = own_folders()
    return folders[0] / f"{job.id}.lock"


def _is_own_folder(path: Path, account: Account) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == account.uid
