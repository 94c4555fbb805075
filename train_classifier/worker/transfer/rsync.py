"""The two doors for rsync: sources into the mirror, the archive out."""

import base64
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable

from train_classifier.core import locks
from train_classifier.core.errors import BadInput, Cancelled, NotReady
from train_classifier.core.regular_file import open_regular
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account, Host
from train_classifier.worker.transfer import workspace_copy

#: What rsync's client says to its server for the options that a transport of ours may use.
OPTION = re.compile(
    r"--(server|sender|partial|inplace|append|from0|dirs|numeric-ids|ignore-missing-args|no-[a-z-]+|stats"
    r"|(timeout|bwlimit|block-size|checksum-choice|compress-choice|compress-level|log-format|out-format)=[\w%.,-]+"
    r"|files-from=-)\Z|-[A-Za-z0-9.,]+\Z"
)
#: Bytes of the unpacked list of files: 100,000 names take about ten million.
LIST_BYTES = 1 << 30


def unpack_list(text: Any) -> bytes:
    """Return the NUL-separated list of a request, checked. Raises BadInput."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), LIST_BYTES)
    except (TypeError, ValueError, zlib.error) as error:
        raise BadInput(f"the list of files cannot be read: {error}") from error
    if unpacker.unconsumed_tail:
        raise BadInput("the list of files is over 1 GiB")
    if not unpacker.eof:
        raise BadInput("the list of files is cut off")
    file_trees.parse_list(data)
    return data


def receive(job: Job, host: Host, arguments: Sequence[str]) -> int:
    """Let rsync write into the job's mirror, then begin to copy that; returns rsync's exit status.

    Raises BadInput for a job that was submitted, NotReady during another push of it or without rsync.
    """
    arguments = _refuse_sender(arguments, wanted=False)
    account = host.job_user()
    store = Store.of(job.dir)
    if job.is_foreign:
        raise BadInput(f"job {job.id} was prepared by another version of train-classifier")
    with locks.hold_now(job.lock) as mine:
        if not mine:
            raise NotReady(f"job {job.id} is being pushed or run by another process")
        if job.cancel.exists():
            raise Cancelled(f"job {job.id} was cancelled: it is not pushed any more")
        if job.status()["state"] not in ("prepared", "pushed"):
            raise BadInput(f"job {job.id} was submitted already: its sources stay as they are")
        mirror = store.mirror(job.spec().repository.key)
        with locks.hold(mirror / "lock") as lock:
            _fingerprint(mirror).unlink(missing_ok=True)
            tidy = _tidying(account, mirror / "tree", job)
            tidy()
            # The lock goes with rsync: should we be killed, the next push waits until it has ended.
            status = _rsync(account, arguments, "./", mirror / "tree", lock)
            if status not in (0, 24):
                return status
            # What a cut connection left, and names that came without being asked for.
            tidy()
            told = job.dir / "fingerprint"
            if status == 0 and told.exists():
                write_bytes(_fingerprint(mirror), told.read_bytes())
            workspace_copy.start(job, account, mirror, lock)
        job.write_status(state="pushed", message="")
    return 0


def adopt(job: Job, account: Account, mirror: Path, fingerprint: Any) -> bool:
    """Copy the mirror as it is into the workspace, if it holds just what would be pushed; tell whether so.

    `fingerprint` stands for that: the controller's hash of the files' identities, told again by each push.
    The caller holds the job's lock.
    """
    if not isinstance(fingerprint, str) or not fingerprint:
        return False
    write_bytes(job.dir / "fingerprint", fingerprint.encode())
    try:
        with locks.hold(mirror / "lock", shared=True, timeout=0) as lock:
            if _fingerprint(mirror).read_text() != fingerprint:
                return False
            workspace_copy.start(job, account, mirror, lock)
    except (TimeoutError, FileNotFoundError):
        # Another push is under way, or nothing is known of the mirror.
        return False
    job.write_status(state="pushed")
    return True


def _fingerprint(mirror: Path) -> Path:
    """The file that tells what the mirror was made from; missing while it is written to."""
    return mirror / "fingerprint"


def send(job: Job, host: Host, arguments: Sequence[str]) -> int:
    """Let rsync read the job's archive, and nothing else; returns rsync's exit status."""
    arguments = _refuse_sender(arguments, wanted=True)
    try:
        os.close(open_regular(job.archive))
    except OSError as error:
        raise NotReady(f"job {job.id} has no archive yet") from error
    # The last release gave the folder to the job's account: that may have put a link there meanwhile.
    account = host.job_user() if job.is_foreign else None
    return _rsync(account, arguments, job.archive.name, job.dir, -1)


def _refuse_sender(arguments: Sequence[str], wanted: bool) -> list[str]:
    """Return rsync's own words for the server's side, without any path: the door has one, which is ours.

    Raises BadInput for another direction and for options that reach further than that path.
    """
    if "--server" not in arguments or ("--sender" in arguments) != wanted or len(arguments) < 3:
        raise BadInput(f"this door is for rsync only, not for {' '.join(arguments)!r}")
    # After the first `.` come paths.
    options = list(arguments[: arguments.index(".")] if "." in arguments else arguments[:-1])
    odd = [word for word in options if not OPTION.match(word)]
    if odd:
        raise BadInput(f"this door knows no option {', '.join(odd)} of rsync")
    return [*options, "."]


def _tidying(account: Account, mirror: Path, job: Job) -> Callable[[], Any]:
    """Return what removes from the mirror all that is not in the job's list."""
    names = job.dir / "files"
    if not account.options():
        return partial(file_trees.tidy, mirror, *file_trees.parse_list(names.read_bytes()))

    def as_account() -> None:
        with open(names, "rb") as listed:
            request = {"tree": str(mirror), "names": listed.fileno()}
            program.call(account, file_trees.tidy_part, request, [listed.fileno()])

    return as_account


def _rsync(account: Any, arguments: Sequence[str], path: str, folder: Path, lock: int) -> int:
    """Run rsync on our standard input and output, in `folder`, with the one path that the door is for."""
    rsync = shutil.which("rsync")
    if rsync is None:
        raise NotReady("rsync is not installed on the host", "apt-get install rsync")
    os.umask(0o022)
    return subprocess.run(
        [rsync, *arguments, path],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
        pass_fds=[lock] if lock >= 0 else [],
        check=False,
        **(account.options() if account is not None else {}),
    ).returncode
