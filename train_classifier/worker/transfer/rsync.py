"""The two rsync commands: receive sources into the mirror, send the archive."""

import base64
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import locks
from train_classifier.core.errors import BadInput, Cancelled, JobLocked, NotReady
from train_classifier.core.regular_file import open_regular
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account, Host
from train_classifier.worker.transfer import workspace_copy

#: Arguments that rsync's client passes to its server for the options that a transport may use.
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
        raise BadInput(f"the list of files cannot be decoded: {error}") from error
    if unpacker.unconsumed_tail:
        raise BadInput("the list of files is over 1 GiB")
    if not unpacker.eof:
        raise BadInput("the list of files is cut off")
    file_trees.parse_list(data)
    return data


def receive(job: Job, host: Host, arguments: Sequence[str]) -> int:
    """Let rsync write into the job's mirror, then start to copy the mirror; return rsync's exit status.

    Raises BadInput for a job that was submitted, NotReady during another push of it or without rsync.
    """
    options = _checked_options(arguments, sending=False)
    account = host.job_user()
    store = Store.of(job.dir)
    if job.is_foreign:
        raise BadInput(f"job {job.id} was prepared by another version of train-classifier")
    with locks.hold_now(job.lock) as is_locked:
        if not is_locked:
            raise JobLocked(f"job {job.id} is being pushed or run by another process")
        if job.cancel.exists():
            raise Cancelled(f"job {job.id} was cancelled before its sources arrived")
        if job.status()["state"] not in ("prepared", "pushed"):
            raise BadInput(f"job {job.id} was submitted already: its sources cannot be changed")
        mirror = store.mirror(job.spec().repository.key)
        with locks.hold(mirror / "lock") as lock:
            _fingerprint(mirror).unlink(missing_ok=True)
            _remove_unlisted(account, mirror / "tree", job.dir / "files")
            # rsync inherits the lock: if this process is killed, the next push waits until rsync has ended.
            status = _rsync(account, options, "./", mirror / "tree", lock)
            if status not in (0, 24):
                return status
            # Remove what a broken connection left, and files that are not in the list.
            _remove_unlisted(account, mirror / "tree", job.dir / "files")
            fingerprint = job.dir / "fingerprint"
            if status == 0 and fingerprint.exists():
                write_bytes(_fingerprint(mirror), fingerprint.read_bytes())
            workspace_copy.start(job, account, mirror / "tree", lock)
        job.write_status(state="pushed", message="")
    return 0


def copy_matching_mirror(job: Job, account: Account, mirror: Path, fingerprint: Any) -> bool:
    """Copy the mirror into the workspace if it holds exactly the files of a push; True when it does.

    `fingerprint` identifies the files: it is the controller's hash of their identities, sent with each push.
    The caller holds the job's lock.
    """
    if not isinstance(fingerprint, str) or not fingerprint:
        return False
    write_bytes(job.dir / "fingerprint", fingerprint.encode())
    try:
        with locks.hold(mirror / "lock", shared=True, timeout=0) as lock:
            if _fingerprint(mirror).read_text() != fingerprint:
                return False
            workspace_copy.start(job, account, mirror / "tree", lock)
    except (TimeoutError, FileNotFoundError):
        # Another push is in progress, or the mirror has no fingerprint.
        return False
    job.write_status(state="pushed")
    return True


def holds(mirror: Path, fingerprint: str) -> bool:
    """Tell whether a mirror has just the files that `fingerprint` identifies."""
    try:
        return bool(fingerprint) and _fingerprint(mirror).read_text() == fingerprint
    except (FileNotFoundError, NotADirectoryError):
        return False


def _fingerprint(mirror: Path) -> Path:
    """The file with the fingerprint of the mirror's files; missing while the mirror is written."""
    return mirror / "fingerprint"


def send(job: Job, host: Host, arguments: Sequence[str]) -> int:
    """Let rsync read only the job's archive; return rsync's exit status."""
    options = _checked_options(arguments, sending=True)
    try:
        os.close(open_regular(job.archive))
    except OSError as error:
        raise NotReady(f"job {job.id} has no archive yet") from error
    # In the last release the folder belongs to the job's account, which may have put a link there.
    account = host.job_user() if job.is_foreign else None
    return _rsync(account, options, job.archive.name, job.dir, -1)


def _checked_options(arguments: Sequence[str], sending: bool) -> list[str]:
    """Return rsync's options for the server side, without its paths: the worker supplies the path.

    Raises BadInput for the other direction and for options that give access to more than that path.
    """
    if "--server" not in arguments or ("--sender" in arguments) != sending or len(arguments) < 3:
        direction = "send the archive" if sending else "receive sources"
        raise BadInput(f"expected `rsync --server` to {direction}, not {' '.join(arguments)!r}")
    # After the first `.` come paths.
    options = list(arguments[: arguments.index(".")] if "." in arguments else arguments[:-1])
    refused = [option for option in options if not OPTION.match(option)]
    if refused:
        raise BadInput(f"rsync options that are not allowed: {', '.join(refused)}")
    return [*options, "."]


def _remove_unlisted(account: Account, mirror: Path, names: Path) -> None:
    """Remove from the mirror everything that is not in the list of names."""
    with open(names, "rb") as file:
        request = {"tree": str(mirror), "names": file.fileno()}
        program.call(account, file_trees.remove_unlisted_part, request, [file.fileno()])


def _rsync(account: Optional[Account], options: Sequence[str], path: str, folder: Path, lock: int) -> int:
    """Run rsync on this process's standard input and output, in `folder`, with `path` as the only path."""
    rsync = shutil.which("rsync")
    if rsync is None:
        raise NotReady("rsync is not installed on the host", "apt-get install rsync")
    return subprocess.run(
        [rsync, *options, path],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
        pass_fds=[lock] if lock >= 0 else [],
        check=False,
        **(account.options() if account is not None else {}),
    ).returncode
