"""Fetches a job's archive, or single files of it: only a file with the right checksum gets its name."""

import base64
import contextlib
import dataclasses
import errno
import hashlib
import os
import shlex
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from train_classifier.controller.events import Reporter
from train_classifier.controller.follow import PATIENCE_S, retry_while_unreachable
from train_classifier.controller.processes import Progress
from train_classifier.controller.transport import RemoteHost, Unreachable
from train_classifier.core import locks
from train_classifier.core.errors import NothingDelivered, NotReady, OutOfTouch, TrainClassifierError
from train_classifier.core.job import archive_name_pattern
from train_classifier.core.text import printable

T = TypeVar("T")
BLOCK = 1 << 20
#: Seconds without output after which the controller stops waiting for a host that packs.
PACKING_S = 60.0
#: Seconds without a line after which a host that sends files is given up, and most bytes in one line.
FILES_S = 60.0
MOST_BLOCK = 1 << 20
#: Most single files of one archive.
MOST_FILES = 100_000
#: Most bytes of a file's name (NAME_MAX).
MOST_NAME = 255
#: Seconds between two progress events.
PROGRESS_INTERVAL_S = 0.25


def pack(
    host: RemoteHost, job: str, max_bytes: int | None, report: Reporter, patience: float = PATIENCE_S
) -> dict[str, Any]:
    """Have the host pack the artefacts that stayed there when a job ended; return the job's new result.

    `max_bytes` replaces the job's own limit. Raises BadInput when there is more than that.
    """
    report.event("message", level="info", text=f"Packing the artefacts of job {job} on {host.name}.")

    def request_packing() -> dict[str, Any]:
        request = {"verb": "pack", "id": job, "most": max_bytes}
        result: dict[str, Any] = {}
        for answer in host.stream(request, PACKING_S):
            result = answer.get("result") or {}
        return result

    try:
        result = _retry(host, job, request_packing, report, patience)
    except TrainClassifierError as error:
        error.hint = complete_hint(host, job, error.hint)
        raise
    return result


def _retry(
    host: RemoteHost,
    job: str,
    action: Callable[[], T],
    report: Reporter,
    patience: float,
    paths: Sequence[str] = (),
) -> T:
    """Return what `action` returns, as `retry_while_unreachable` does; the hint is that of an ended job."""
    try:
        return retry_while_unreachable(host, job, action, report, patience)
    except OutOfTouch as error:
        command = shlex.join(["train-classifier", "fetch", job, *paths])
        cause = getattr(error.__cause__, "hint", None)
        error.hint = f"The job has ended, and what it left is still on {host.name}: {command}{host.flags}" + (
            f" ({cause})" if cause else ""
        )
        raise


def complete_hint(host: RemoteHost, job: str, hint: str | None) -> str | None:
    """Return a hint of the host, with the flags that the caller's `fetch` needs to find that host again."""
    command = f"train-classifier fetch {job}"
    return hint.replace(command, command + host.flags) if hint else hint


def fetch(
    host: RemoteHost,
    job: str,
    archive: dict[str, Any],
    output: Path,
    report: Reporter,
    patience: float = PATIENCE_S,
) -> dict[str, Any]:
    """Put the archive ({sha256, bytes}) of `job` at `output` and return {path, bytes, sha256}.

    A missing folder is made. The file at `output` is replaced only by a complete archive; it belongs to the
    caller.
    Raises NothingDelivered when it cannot be written or stays corrupt, OutOfTouch when the host is gone.
    """
    fetch_hint = f"The archive is still on {host.name}: train-classifier fetch {job}{host.flags}"
    report_progress = progress_callback(report, "fetch", int(archive["bytes"]))
    try:
        with (
            _pinned_folder(output.parent) as folder,
            _locked_part_file(folder / part_name(output, job)) as (part, descriptor),
        ):
            for attempt in (1, 2):
                if attempt == 1 and _is_complete(part, archive):
                    report_progress(int(archive["bytes"]))
                    break
                _retry(host, job, lambda: host.pull(job, part, report_progress), report, patience)
                if _sha256(part) == archive["sha256"]:
                    break
                if attempt == 2:
                    raise NothingDelivered(
                        f"{output.name} arrived damaged twice: its checksum differs from {host.name}'s.",
                        f"Check the disks and memory on both sides. {fetch_hint}",
                    )
                report.event(
                    "message", level="warning", text=f"{output.name} arrived damaged: it is fetched again."
                )
                os.ftruncate(descriptor, 0)
            size = part.stat().st_size
            part.replace(folder / output.name)
            _sync_folder(folder)
            remove_old_part_files(folder / output.name)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise NothingDelivered(f"{output} cannot be written: {reason}.", fetch_hint) from error
    except (NothingDelivered, OutOfTouch):
        raise
    except NotReady as error:
        raise NothingDelivered(
            f"{output} was not delivered. {error.reason}", fetch_hint, error.detail
        ) from error
    except TrainClassifierError as error:
        error.hint = error.hint or fetch_hint
        raise
    return {"path": str(output), "bytes": size, "sha256": archive["sha256"]}


@dataclasses.dataclass
class FetchedFiles:
    """Single files of a job's archive. Paths are those in the archive, and below `folder` here."""

    paths: list[str]
    folder: Path
    #: Whether files that are here already are replaced.
    replaces: bool = False
    #: The folder as the caller names it.
    named: str = "."
    files: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    #: Here already, and left as they are.
    existing: list[str] = dataclasses.field(default_factory=list)
    #: Paths that the archive lacks, each with files of the same name, and links, which are not fetched.
    missing: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    #: Where the archive lacks a path: its first files.
    names: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)


def fetch_files(
    host: RemoteHost, job: str, fetched: FetchedFiles, most: int, report: Reporter, patience: float
) -> None:
    """Put files of a finished job's archive, of `most` bytes together, below a folder, and note which.

    What is below a path that is a folder comes with it. Raises NothingDelivered when a file cannot be
    written, OutOfTouch when the host is gone, and the worker's own failures.
    """

    def receive() -> None:
        done = {file["path"] for file in fetched.files} | set(fetched.existing)
        request = {"verb": "files", "id": job, "paths": fetched.paths, "most": most}
        count, left = 0, most
        with contextlib.closing(host.stream(request, FILES_S)) as lines:  # type: ignore[type-var]
            for line in lines:
                if line.get("file"):
                    size = line.get("bytes") or 0
                    count, left = count + 1, left - max(size, 0)
                    if count > MOST_FILES or left < 0:
                        raise NothingDelivered(f"{host.name} sent more than was asked for.")
                    _receive_file(line["file"], size, lines, fetched, job, done)
                elif "missing" in line:
                    left_out = line.get("left_out")
                    fetched.missing, fetched.names = line["missing"] or {}, line.get("names") or []
                    fetched.left_out = left_out if isinstance(left_out, list) else []

    try:
        _retry(host, job, receive, report, patience, fetched.paths)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        is_link = error.errno in (errno.ENOTDIR, errno.ELOOP)
        raise NothingDelivered(
            f"{printable(str(fetched.folder))} cannot be written to: {reason}.",
            "A link in the place of a folder is not followed."
            if is_link
            else "-o DIR chooses another folder.",
        ) from error


def _receive_file(
    path: str,
    size: int,
    lines: Iterator[dict[str, Any]],
    fetched: FetchedFiles,
    job: str,
    done: set[str],
) -> None:
    """Take one file from the lines of a host; it gets its name once it is complete."""
    is_asked = any(path == asked or path.startswith(f"{asked}/") for asked in fetched.paths)
    parts = parts_of(path)
    if not is_asked or not parts:
        raise NothingDelivered(f"The host sent a file that nobody asked for: {printable(path)[:200]}.")
    if path in done:
        read_content(lines, None, size)
        return
    target = fetched.folder.joinpath(*parts)
    with (
        _pinned_folder(target.parent) as folder,
        _locked_part_file(folder / part_name(target, job)) as (part, descriptor),
    ):
        if os.path.lexists(folder / target.name) and not fetched.replaces:
            read_content(lines, None, size)
            fetched.existing.append(path)
            return
        # Not by its name again: others may write to the folder, and put a link there.
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.truncate()
            digest = read_content(lines, file, size)
        part.replace(folder / target.name)
    fetched.files.append({"path": path, "bytes": size, "sha256": digest})


def parts_of(path: str) -> list[str]:
    """Return the parts of a path below a folder; none of a path that may lead elsewhere, or is no name."""
    parts = path.split("/")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return []
    return [] if "\0" in path or any(part in ("", ".", "..") for part in parts) else parts


def read_content(lines: Iterator[dict[str, Any]], file: IO[bytes] | None, size: int) -> str:
    """Read the lines of one file and return its checksum. Raises NothingDelivered if the host has another."""
    digest, received = hashlib.sha256(), 0
    for line in lines:
        if "sha256" in line:
            break
        try:
            data = zlib.decompressobj().decompress(base64.b64decode(line.get("data", "")), MOST_BLOCK)
        except (ValueError, TypeError, zlib.error):
            data = b""
        received += len(data)
        digest.update(data)
        if file is not None and received <= size:
            file.write(data)
    else:
        raise Unreachable("The host ended in the middle of a file.", kind="no-answer")
    if received != size or line["sha256"] != digest.hexdigest():
        raise NothingDelivered("A file arrived damaged: its size or checksum differs from the host's.")
    return digest.hexdigest()


@contextlib.contextmanager
def _pinned_folder(folder: Path) -> Iterator[Path]:
    """Yield a path that leads to the same folder even if its original path is renamed or replaced.

    What is missing of it is made. `folder` is a real path. A link in it was created later, by a user who can
    write to the repository: raises OSError for a link.
    """
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folder.parts[1:]:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=descriptor)
            child = os.open(name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        # With the process id, because child processes such as rsync open this path too.
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def write_part_file(output: Path, job: str, content: bytes) -> None:
    """Write an archive that came with the result to the part file that `fetch` reads, if possible."""
    with contextlib.suppress(OSError), _pinned_folder(output.parent) as folder:
        part = folder / part_name(output, job)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            # The lock is held when another fetch of this job writes the file now.
            if locks.try_lock(descriptor):
                file.truncate()
                file.write(content)


def part_name(output: Path, job: str) -> str:
    """Return the name of the file beside `output` that holds the received part of a job's archive."""
    name = f".{output.name}.{job}.part"
    if len(os.fsencode(name)) > MOST_NAME:
        name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()}.{job}.part"
    return name


def remove_old_part_files(output: Path) -> None:
    """Remove the part files that killed fetches left beside `output`: those whose lock is free."""
    files = archive_name_pattern(output.name)
    for part in output.parent.glob(".*.part"):
        if not files.fullmatch(part.name):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(part, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if locks.try_lock(descriptor):
                    part.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _locked_part_file(part: Path) -> Iterator[tuple[Path, int]]:
    """Create the part file as the caller, keep the bytes of an earlier try, and remove the file at the end.

    Yields it with its descriptor. Its lock distinguishes a part that is being written from one whose writer
    was killed.
    """
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        if not locks.try_lock(descriptor):
            raise NothingDelivered(
                f"{part.name} is being written by another fetch of this job.", "Wait for it, or stop it."
            )
        try:
            yield part, descriptor
        finally:
            part.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_complete(part: Path, archive: dict[str, Any]) -> bool:
    return part.stat().st_size == int(archive["bytes"]) and _sha256(part) == str(archive["sha256"])


def _sha256(path: Path) -> str:
    """Return the checksum of the file, and make sure that its bytes are on the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def progress_callback(report: Reporter, phase: str, total: int | None) -> Progress:
    """Return a function that reports the transferred bytes, not more often than readers need them."""
    last = 0.0

    def report_progress(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_INTERVAL_S or (total is not None and done >= total):
            last = time.monotonic()
            report.event("progress", phase=phase, done=done, total=total)

    return report_progress
