"""Packs artefacts/ and the job's papers into artefacts.tar.gz, following no link and trusting no name.

Runs in a child as the job's user. Memory stays flat whatever the number and the size of the files: lists go
through temporary files, never through the heap.
"""

import contextlib
import gzip
import hashlib
import json
import math
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Optional, cast

from train_classifier.errors import OUTCOMES, ExitCode
from train_classifier.worker import listing
from train_classifier.worker.listing import Entry
from train_classifier.worker.store import write_json

BLOCK = 1 << 20
METRICS_BYTES = 1 << 20


def pack(request: dict[str, Any]) -> dict[str, Any]:
    """Write manifest.json and artefacts.tar.gz into the job's folder.

    The request: `job` (folder), `manifest` (its head), `need_new` (nothing new in artefacts/ means
    nothing-delivered), `ending` (what ended the job, kept as it is). The answer: `new, files, bytes,
    left_out, metrics, metrics_problem, archive`; it lies in packed.json too, should whoever asked die.
    """
    job = Path(request["job"])
    root = job / "workspace" / "artefacts"
    stock = listing.read_stock(job / "stock.json")
    answer: dict[str, Any] = {"new": 0, "files": 0, "bytes": 0, "left_out": 0}
    (job / "packed.json").unlink(missing_ok=True)
    temporary = job / ".artefacts.tar.gz.tmp"
    try:
        with contextlib.ExitStack() as stack:
            packed, left_out = stack.enter_context(_notes(job)), stack.enter_context(_notes(job))
            with _compressed(temporary) as (stream, digest), _tar(stream) as tar:
                for entry in listing.walk(root):
                    if entry.left_out:
                        answer["left_out"] += 1
                        _note(left_out, {"path": entry.shown, "reason": entry.left_out})
                        continue
                    noted = _add(tar, entry)
                    if noted is None:
                        continue
                    noted["new"] = stock.get(entry.shown) != entry.mark()
                    answer["new"] += noted["new"]
                    answer["files"] += 1
                    answer["bytes"] += noted["bytes"]
                    _note(packed, noted)
                head = request["manifest"]
                if request["need_new"] and not answer["new"]:
                    code = ExitCode.NOTHING_DELIVERED
                    head = {**head, "outcome": OUTCOMES[code], "exit_code": int(code)}
                answer["metrics"], answer["metrics_problem"] = _metrics(root)
                head = {**head, "metrics": answer["metrics"]}
                _write_manifest(job / "manifest.json", head, packed, left_out)
                for name in ("manifest.json", "log.txt", "usage.csv"):
                    _add_paper(tar, job / name, f"job/{name}")
        answer["archive"] = {"sha256": digest.hexdigest(), "bytes": os.stat(temporary).st_size}
        os.replace(temporary, job / "artefacts.tar.gz")
        # The archive counts: a disk that is full now is no reason to have none.
        with contextlib.suppress(OSError):
            write_json(job / "packed.json", {**answer, "ending": request.get("ending")})
    finally:
        temporary.unlink(missing_ok=True)
    return answer


def _add(tar: Any, entry: Entry) -> Optional[dict[str, Any]]:
    """Add one entry; return its line in the manifest, None for a folder."""
    member = tarfile.TarInfo(os.fsdecode(entry.name))
    member.mtime = int(max(entry.stat.st_mtime, 0))
    # Owner and setuid bits of the host mean nothing elsewhere; the owner must be able to read.
    mode = stat.S_IMODE(entry.stat.st_mode) & 0o777
    member.uid = member.gid = 0
    if stat.S_ISDIR(entry.stat.st_mode):
        member.type, member.mode = tarfile.DIRTYPE, mode | 0o700
        tar.addfile(member)
        noted = None
    elif stat.S_ISLNK(entry.stat.st_mode):
        member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, os.fsdecode(entry.target)
        tar.addfile(member)
        noted = {"path": entry.shown, "bytes": 0, "link": _text(entry.target)}
    else:
        member.mode = mode | 0o400
        with entry.open() as source:
            member.size = os.fstat(source.fileno()).st_size
            digesting = _Digesting(source, member.size)
            tar.addfile(member, cast("IO[bytes]", digesting))
        noted = {"path": entry.shown, "bytes": member.size, "sha256": digesting.digest.hexdigest()}
    # TarFile remembers every member: a million of them would take a gigabyte.
    tar.members = []
    return noted


class _Digesting:
    """Reads exactly `size` bytes, digesting them; a file that shrank meanwhile is filled up with zeros."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self.source = source
        self.left = size
        self.digest = hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        wanted = self.left if count < 0 else min(count, self.left)
        data = self.source.read(wanted)
        data += bytes(wanted - len(data))
        self.left -= wanted
        self.digest.update(data)
        return data


def _add_paper(tar: tarfile.TarFile, path: Path, name: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as source:
        member = tarfile.TarInfo(name)
        member.size = os.fstat(descriptor).st_size
        member.mtime = int(time.time())
        member.mode = 0o644
        tar.addfile(member, source)


@contextlib.contextmanager
def _compressed(path: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """Yield a stream to write into and the digest of what lands in the file; pigz when the host has it."""
    digest = hashlib.sha256()
    pigz = shutil.which("pigz")
    with open(path, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        if pigz is None:
            sink = _Sink(file, digest)
            with gzip.GzipFile("", "wb", 1, fileobj=cast("IO[bytes]", sink), mtime=0) as stream:
                yield cast("BinaryIO", stream), digest
        else:
            with subprocess.Popen([pigz, "-1", "-n"], stdin=subprocess.PIPE, stdout=file) as process:
                assert process.stdin is not None
                with process.stdin as stream:
                    yield cast("BinaryIO", stream), digest
            if process.returncode:
                raise OSError(f"pigz ended with exit status {process.returncode}")
            with open(path, "rb") as written:
                while block := written.read(BLOCK):
                    digest.update(block)
        file.flush()
        os.fsync(file.fileno())


class _Sink:
    """A file that digests what is written into it."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self.file = file
        self.digest = digest

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@contextlib.contextmanager
def _tar(stream: BinaryIO) -> Iterator[Any]:
    # GNU's form keeps any bytes as a name, and files over 8 GiB, without an extra header for every file.
    archive: Any = tarfile.open(  # noqa: SIM115
        mode="w|",
        fileobj=stream,
        bufsize=BLOCK,
        format=tarfile.GNU_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    )
    archive.copybufsize = BLOCK
    with archive:
        yield archive


@contextlib.contextmanager
def _notes(job: Path) -> Iterator[IO[bytes]]:
    # Not in /tmp, which may lie in memory: a million files take hundreds of megabytes.
    with tempfile.TemporaryFile(dir=job) as file:
        yield file


def _note(file: IO[bytes], line: dict[str, Any]) -> None:
    file.write((b",\n  " if file.tell() else b"\n  ") + json.dumps(line).encode())


def _write_manifest(path: Path, head: dict[str, Any], packed: IO[bytes], left_out: IO[bytes]) -> None:
    temporary = path.with_name(".manifest.json.tmp")
    with open(temporary, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(json.dumps(head, indent=1).encode()[:-2])
        for name, notes in (("artefacts", packed), ("left_out", left_out)):
            file.write(f',\n "{name}": ['.encode())
            notes.seek(0)
            shutil.copyfileobj(notes, file)
            file.write(b"\n ]" if notes.tell() else b"]")
        file.write(b"\n}\n")
    os.replace(temporary, path)


def _metrics(root: Path) -> tuple[Optional[dict[str, float]], Optional[str]]:
    """Return artefacts/metrics.json if it is flat name -> finite number, else None and why not."""
    try:
        with open(os.open(root / "metrics.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None, "metrics.json is not a regular file"
            data = file.read(METRICS_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except OSError as error:
        return None, f"metrics.json cannot be read: {error}"
    if len(data) > METRICS_BYTES:
        return None, "metrics.json is larger than 1 MiB"
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        return None, f"metrics.json is not JSON: {error}"
    if not isinstance(found, dict):
        return None, "metrics.json is not an object of names and numbers"
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None, f"metrics.json: {name[:80]!r} is not a finite number"
    return found, None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
