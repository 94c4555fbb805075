"""Packs results and the job's records into artefacts.tar.gz, following no link and trusting no name.

Runs as the job's account, in a child process if the caller is another account. It opens nothing by path: it
reads below the workspace's descriptor and writes into the descriptors of the request. Memory use does not
grow with the number and the size of the files: lists are in temporary files, never in memory.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import struct
import tarfile
import time
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Callable, Optional, cast

from train_classifier.core.errors import OUTCOMES, ExitCode
from train_classifier.core.regular_file import open_regular
from train_classifier.core.report import metrics
from train_classifier.worker.system import program
from train_classifier.worker.transfer import artefacts, elsewhere
from train_classifier.worker.transfer.artefacts import Artefact

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from train_classifier.worker.transfer.report_files import ReportFiles

#: Bytes that one thread compresses at a time: with 64 threads, about 64 MiB are in memory.
BLOCK = 1 << 18
#: The beginning of a block tells whether compressing it is worth the time: it must save this share.
SAMPLE = 1 << 14
WORTH = 0.1
#: Format, no name and no time, lowest level of compression, unknown system (RFC 1952).
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\x04\xff"
#: Largest apparent size as a multiple of the limit: a hole is read as zeros, in a tenth of the time of data.
HOLES = 4

Check = Callable[[], None]


def load() -> None:
    """Import what packing needs and no start of the worker does: it takes ten milliseconds."""
    import concurrent.futures.thread  # noqa: F401

    from train_classifier.worker.transfer import report_files  # noqa: F401


@program.checked_part
def pack(request: dict[str, Any], check: Check = lambda: None) -> dict[str, Any]:
    """Write manifest.json and artefacts.tar.gz; `check` is called repeatedly and may raise.

    The request: `manifest` (its head), `result` (for the report), `need_new` (nothing new in the folders of
    results means nothing-delivered), `most_bytes`, `threads` (that compress), `results` (folders beside
    artefacts/), `elsewhere` (what to do with other new files: `list`, `pack`, or nothing), and descriptors:
    `workspace`; `stock`; `archive`, `list` and `report` (new files); `packed` and `left_out` (for lists in
    between); `records` (name to descriptor). The answer: `new, files, bytes, left_out, metrics,
    metrics_problem, report_problem, archive`, and `elsewhere` when other files are listed; or only
    `too_large` (bytes on the disk and apparent).
    """
    # Every start of the worker imports this module, and few pack.
    from train_classifier.worker.transfer.report_files import ReportFiles

    workspace = request["workspace"]
    real, apparent = artefacts.measure(_entries(request, check), check)
    if real > request["most_bytes"] or apparent > HOLES * request["most_bytes"]:
        return {"too_large": [real, apparent]}
    answer: dict[str, Any] = {"new": 0, "files": 0, "bytes": 0, "left_out": 0}
    report_files = ReportFiles()
    with contextlib.ExitStack() as stack:
        packed, left_out = (
            stack.enter_context(open(os.dup(request[name]), "w+b")) for name in ("packed", "left_out")
        )
        with _compressed(request["archive"], request["threads"]) as (stream, digest), _tar(stream) as tar:
            for entry, is_new in _entries(request, check):
                check()
                if entry.left_out:
                    answer["left_out"] += 1
                    _append_line(left_out, {"path": entry.path, "reason": entry.left_out})
                    continue
                line = _add(tar, entry, check)
                if line is None:
                    continue
                line["new"] = is_new
                if is_new:
                    report_files.add(entry)
                answer["new"] += is_new and not elsewhere.is_in_archive(entry)
                answer["files"] += 1
                answer["bytes"] += line["bytes"]
                _append_line(packed, line)
            head = request["manifest"]
            if request["need_new"] and not answer["new"]:
                code = ExitCode.NOTHING_DELIVERED
                head = {**head, "outcome": OUTCOMES[code], "exit_code": int(code)}
            answer["metrics"], answer["metrics_problem"] = _metrics(workspace)
            head = {**head, "metrics": answer["metrics"]}
            _write_manifest(request["list"], head, packed, left_out)
            _add_record(tar, request["list"], "job/manifest.json", check)
            answer["report_problem"] = _write_report(request, report_files, head, answer)
            if answer["report_problem"] is None:
                _add_record(tar, request["report"], "job/report.html", check)
            for name, descriptor in request["records"].items():
                _add_record(tar, descriptor, f"job/{name}", check)
    answer["archive"] = {"sha256": digest.hexdigest(), "bytes": os.fstat(request["archive"]).st_size}
    if request["elsewhere"] == "list":
        answer["elsewhere"] = _elsewhere(request, check).summary()
    return answer


def _entries(request: dict[str, Any], check: Check) -> Iterator[tuple[Artefact, bool]]:
    """Yield what is packed, and whether it is new."""
    stock = artefacts.read_initial_artefacts(request["stock"])
    yield from artefacts.results(request["workspace"], request["results"], stock)
    if request["elsewhere"] == "pack":
        for entry in _elsewhere(request, check).files():
            yield dataclasses.replace(entry, name=elsewhere.FOLDER + entry.name), True


def _elsewhere(request: dict[str, Any], check: Check) -> elsewhere.Elsewhere:
    began_ns = os.fstat(request["stock"]).st_ctime_ns
    return elsewhere.Elsewhere(request["workspace"], request["results"], began_ns, check)


def _add(tar: Any, entry: Artefact, check: Check) -> Optional[dict[str, Any]]:
    """Add one entry; return its line in the manifest, None for a folder."""
    member = tarfile.TarInfo(os.fsdecode(entry.name))
    member.mtime = int(max(entry.stat.st_mtime, 0))
    # Owner and setuid bits of the host mean nothing elsewhere; the owner must be able to read.
    mode = stat.S_IMODE(entry.stat.st_mode) & 0o777
    member.uid = member.gid = 0
    if stat.S_ISDIR(entry.stat.st_mode):
        member.type, member.mode = tarfile.DIRTYPE, mode | 0o700
        tar.addfile(member)
        line = None
    elif stat.S_ISLNK(entry.stat.st_mode):
        member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, os.fsdecode(entry.target)
        tar.addfile(member)
        line = {"path": entry.path, "bytes": 0, "link": artefacts.show_name(entry.target)}
    else:
        member.mode = mode | 0o400
        with entry.open() as source:
            member.size = os.fstat(source.fileno()).st_size
            reader = _HashingReader(source, member.size, check)
            tar.addfile(member, cast("IO[bytes]", reader))
        line = {"path": entry.path, "bytes": member.size, "sha256": reader.digest.hexdigest()}
    # TarFile remembers every member: a million of them would take a gigabyte.
    tar.members = []
    return line


class _HashingReader:
    """Reads exactly `size` bytes and hashes them; a file that shrank meanwhile is padded with zeros."""

    def __init__(self, source: BinaryIO, size: int, check: Check) -> None:
        self.source = source
        self.remaining = size
        self.check = check
        self.digest = hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        self.check()
        size = self.remaining if count < 0 else min(count, self.remaining)
        data = self.source.read(size)
        data += bytes(size - len(data))
        self.remaining -= size
        self.digest.update(data)
        return data


def _add_record(tar: tarfile.TarFile, descriptor: int, name: str, check: Check) -> None:
    with open(os.dup(descriptor), "rb") as source:
        source.seek(0)
        member = tarfile.TarInfo(name)
        member.size = os.fstat(descriptor).st_size
        member.mtime = int(time.time())
        member.mode = 0o644
        tar.addfile(member, cast("IO[bytes]", _HashingReader(source, member.size, check)))


@contextlib.contextmanager
def _compressed(archive: int, threads: int) -> Iterator[tuple[BinaryIO, Any]]:
    """Yield a stream to write into and the digest of the compressed file."""
    # Every start of the worker imports this module, few compress, and this import is a tenth of a start.
    from concurrent.futures import ThreadPoolExecutor

    with open(os.dup(archive), "w+b") as file, ThreadPoolExecutor(threads) as pool:
        writer = _GzipWriter(file, pool, 2 * threads)
        yield cast("BinaryIO", writer), writer.digest
        writer.finish()


class _GzipWriter:
    """Compresses each written block on another thread into the one member of a gzip file; hashes the file.

    Several members would be simpler, but readers of streams, such as tarfile's `r|gz`, stop after the first.
    """

    def __init__(self, file: BinaryIO, pool: "Executor", most_waiting: int) -> None:
        self.file = file
        self.pool = pool
        self.most_waiting = most_waiting
        self.waiting: "collections.deque[Future[bytes]]" = collections.deque()
        self.digest = hashlib.sha256()
        self.checksum = self.size = 0
        self._write(GZIP_HEADER)

    def write(self, data: bytes) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        self.size += len(data)
        self.waiting.append(self.pool.submit(_deflate, data))
        if len(self.waiting) > self.most_waiting:
            self._write(self.waiting.popleft().result())
        return len(data)

    def finish(self) -> None:
        while self.waiting:
            self._write(self.waiting.popleft().result())
        self._write(zlib.compressobj(wbits=-zlib.MAX_WBITS).flush())
        self._write(struct.pack("<LL", self.checksum, self.size & 0xFFFFFFFF))
        self.file.flush()

    def _write(self, data: bytes) -> None:
        self.digest.update(data)
        self.file.write(data)


def _deflate(block: bytes) -> bytes:
    """Return a block as a part of gzip's content; it is stored as it is when it hardly compresses."""
    sample = block[:SAMPLE]
    is_stored = len(zlib.compress(sample, 1)) > (1 - WORTH) * len(sample)
    compressor = zlib.compressobj(0 if is_stored else 1, wbits=-zlib.MAX_WBITS)
    return compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)


@contextlib.contextmanager
def _tar(stream: BinaryIO) -> Iterator[Any]:
    # The GNU format stores any bytes as a name, and files over 8 GiB, without an extra header per file.
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


def _append_line(file: IO[bytes], line: dict[str, Any]) -> None:
    file.write((b",\n  " if file.tell() else b"\n  ") + json.dumps(line).encode())


def _write_manifest(descriptor: int, head: dict[str, Any], packed: IO[bytes], left_out: IO[bytes]) -> None:
    with open(os.dup(descriptor), "wb") as file:
        file.write(json.dumps(head, indent=1).encode()[:-2])
        for name, lines in (("artefacts", packed), ("left_out", left_out)):
            file.write(f',\n "{name}": ['.encode())
            lines.seek(0)
            shutil.copyfileobj(lines, file)
            file.write(b"\n ]" if lines.tell() else b"]")
        file.write(b"\n}\n")


def _write_report(
    request: dict[str, Any], files: "ReportFiles", manifest: dict[str, Any], answer: dict[str, Any]
) -> Optional[str]:
    """Write report.html, and return why it could not be: the archive is made in any case."""
    from train_classifier.worker.transfer import report_files

    notes = [f"metrics left out: {answer['metrics_problem']}"] if answer["metrics_problem"] else []
    if answer["left_out"]:
        notes.append(f"results left out: {answer['left_out']}, see manifest.json")
    try:
        report_files.write(request, files, manifest, notes)
    except Exception as error:
        with contextlib.suppress(OSError):
            os.ftruncate(request["report"], 0)
        return f"{type(error).__name__}: {error}"[:500]
    return None


def _metrics(workspace: int) -> tuple[Optional[dict[str, float]], Optional[str]]:
    """Return the readable part of artefacts/metrics.json, and what is wrong with the rest.

    The archive is made in any case, also when the file is wrong.
    """
    try:
        folder, _ = artefacts.open_top(workspace)
    except OSError:
        return None, None
    try:
        with open(open_regular("metrics.json", folder), "rb") as file:
            return metrics.read(file.read(metrics.MOST_BYTES + 1))
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"metrics.json cannot be read: {error.strerror}"
    finally:
        os.close(folder)
