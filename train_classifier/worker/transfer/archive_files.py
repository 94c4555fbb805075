"""Sends single files of a job's archive, as lines of JSON with their content, without unpacking the rest.

The archive holds what a model wrote. It is read as the job's account, from a descriptor, and nothing of it is
written on the host.
"""

import base64
import contextlib
import hashlib
import json
import os
import tarfile
import time
import zlib
from collections.abc import Iterator
from typing import IO, Any, Optional, cast

from train_classifier.core.errors import BadInput, NotReady, TrainClassifierError
from train_classifier.core.regular_file import open_regular
from train_classifier.core.text import printable, short, show_bytes
from train_classifier.worker.state import files
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Host

#: Bytes of a file in one line.
BLOCK = 1 << 18
#: Seconds between two lines while nothing is found.
QUIET_S = 1.0
#: Most paths of a request, and names of an answer.
MOST_PATHS, MOST_NAMES = 1000, 50
#: Most files that are sent, as fetch.MOST_FILES.
MOST_FILES = 100_000


def send(request: dict[str, Any], host: Host, store: Store) -> Iterator[dict[str, Any]]:
    """Print the files at and below `paths` of a finished job's archive, then yield what was not found.

    A file is one line with its path and size, lines with `data` (base64 of zlib), and one with its `sha256`.
    The last answer: `id`; `missing`: for each path that the archive lacks, files of that name elsewhere in
    it; `names`: where it lacks any, its first files; `left_out`: links, which are not sent.
    Raises BadInput for more than `most` bytes, NotReady.
    """
    job = store.find(request.get("id"))
    paths, most = request.get("paths"), request.get("most")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise BadInput("paths must be a list of texts")
    if len(paths) > MOST_PATHS or not isinstance(most, int):
        raise BadInput(f"more than {MOST_PATHS} paths, or no number of bytes")
    if job.is_foreign:
        raise BadInput(f"job {job.id} is of an earlier version: only its whole archive can be fetched")
    try:
        archive = open_regular(job.archive)
    except OSError as error:
        raise NotReady(f"job {job.id} has no archive") from error
    if os.geteuid() == 0:
        # The version that prepared the job may have been another one.
        program.open_to_all()
    # The part's own standard output is its answer.
    output = os.dup(1)
    try:
        question: dict[str, Any] = {"archive": archive, "output": output, "paths": paths, "most": most}
        question["checksums"] = _checksums(job, set(paths))
        answer = program.call(host.job_user(), send_part, question, [archive, output])
    finally:
        os.close(output)
        os.close(archive)
    yield {"id": job.id, **answer}


def _checksums(job: Job, paths: set[str]) -> dict[str, str]:
    """Return the checksums of the manifest for the files at and below these paths; {} where it has none.

    A damaged byte in the archive may unpack to another one, which its own format does not notice.
    """
    try:
        manifest = files.read_json(job.manifest)
        packed = {str(each["path"]): str(each["sha256"]) for each in manifest["artefacts"] if each["sha256"]}
    except (TrainClassifierError, OSError, LookupError, TypeError):
        return {}
    return {path: packed[path] for path in packed if not paths.isdisjoint(_with_parents(path))}


@program.part
def send_part(request: dict[str, Any]) -> dict[str, Any]:
    """Write the files of an archive to the descriptor `output`, and return what was not found."""
    with open(os.dup(request["output"]), "wb") as output, open(os.dup(request["archive"]), "rb") as archive:
        search = _Search(request["paths"], request["most"])
        lines = Lines(output)
        with damage_named():
            for tar, member in members(archive, lines):
                if search.wants(member):
                    _send_member(tar, member, lines, request["checksums"].get(member.name))
                if search.is_complete():
                    break
    missing = search.missing()
    return {"missing": missing, "names": search.names if missing else [], "left_out": search.left_out}


@contextlib.contextmanager
def damage_named() -> Iterator[None]:
    """Have a damaged archive, found while its members or their content are read, end in NotReady."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise NotReady(f"the archive of the job is damaged: {error}") from error


def members(archive: IO[bytes], lines: "Lines") -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield each member of an archive from its beginning; the content is to be read before the next one."""
    archive.seek(0)
    source = cast("IO[bytes]", Ticking(archive, lines))
    with tarfile.open(fileobj=source, mode="r|gz", encoding="utf-8") as tar:
        for member in tar:
            # TarFile remembers every member: a million of them would take a gigabyte.
            tar.members = []  # type: ignore[attr-defined]
            yield tar, member


def _send_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, lines: "Lines", checksum: Optional[str]
) -> None:
    lines.write({"file": member.name, "bytes": member.size})
    source = tar.extractfile(member)
    assert source is not None
    send_content(source, member.size, lines, checksum)


def send_content(source: IO[bytes], size: int, lines: "Lines", checksum: Optional[str] = None) -> None:
    """Write the next bytes of a file as lines with `data`, and one with its `sha256`.

    A file that shrank meanwhile is filled with zeros. Raises NotReady for another checksum than a given one.
    """
    digest = hashlib.sha256()
    while size:
        count = min(size, BLOCK)
        data = source.read(count) or bytes(count)
        size -= len(data)
        digest.update(data)
        lines.write({"data": base64.b64encode(zlib.compress(data, 1)).decode("ascii")})
    if checksum not in (None, digest.hexdigest()):
        raise NotReady(
            "the archive of the job is damaged: the checksum of a file is not that of the manifest"
        )
    lines.write({"sha256": digest.hexdigest()})


class _Search:
    """Which members of an archive are wanted, and which paths were not found."""

    def __init__(self, paths: list[str], most: int) -> None:
        self._found = dict.fromkeys(paths, False)
        #: Paths that are folders may have more to come.
        self._files: set[str] = set()
        self._most = self._left = most
        self._alike: dict[str, list[str]] = {}
        self._names = {path.rpartition("/")[2] for path in paths}
        self._count = 0
        self.left_out: list[str] = []
        #: The first files, but for the records of the job.
        self.names: list[str] = []

    def wants(self, member: tarfile.TarInfo) -> bool:
        """Tell whether a member is to be sent. Raises BadInput when that would be too much."""
        name = member.name
        if member.isreg() and not name.startswith("job/") and len(self.names) < MOST_NAMES:
            self.names.append(name)
        matches = [path for path in _with_parents(name) if path in self._found]
        base = name.rpartition("/")[2]
        if not matches and base in self._names:
            alike = self._alike.setdefault(base, [])
            alike += [name] if len(alike) < 3 else []
        for path in matches:
            self._found[path] = True
        if not matches or member.isdir():
            return False
        if not member.isreg():
            if len(self.left_out) < MOST_NAMES:
                self.left_out.append(f"{name} -> {member.linkname}" if member.issym() else name)
            return False
        self._files.update({name} & set(matches))
        self._left -= member.size
        self._count += 1
        if self._count > MOST_FILES:
            raise BadInput(
                f"there are more than {MOST_FILES} files below these paths: fetch the whole archive"
            )
        if self._left < 0:
            raise BadInput(
                f"{short(printable(name), 200)} and what comes before it have more than "
                f"{show_bytes(self._most)}",
                hint="--max-size SIZE allows more",
            )
        return True

    def is_complete(self) -> bool:
        """Tell whether every path is a file that was sent: then the rest need not be read."""
        return len(self._files) == len(self._found)

    def missing(self) -> dict[str, list[str]]:
        """Return the paths that the archive lacks, each with a few files of the same name."""
        missing = [path for path, is_found in self._found.items() if not is_found]
        return {path: self._alike.get(path.rpartition("/")[2], []) for path in missing}


def _with_parents(name: str) -> Iterator[str]:
    """Yield a path and the folders that it is in."""
    while name:
        yield name
        name = name.rpartition("/")[0]


class Lines:
    """Writes lines of JSON."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self._last = time.monotonic()

    def write(self, line: dict[str, Any]) -> None:
        """Write a line at once."""
        self._output.write(json.dumps(line).encode("ascii") + b"\n")
        self._output.flush()
        self._last = time.monotonic()

    def tick(self) -> None:
        """Write an empty line when nothing was written for a second, so that the caller knows of us."""
        if time.monotonic() - self._last > QUIET_S:
            self.write({})


class Ticking:
    """Reads a file, and ticks meanwhile."""

    def __init__(self, file: IO[bytes], lines: Lines) -> None:
        self._file, self._lines = file, lines

    def read(self, size: Optional[int] = -1) -> bytes:
        """Return the next bytes of the file."""
        self._lines.tick()
        return self._file.read(-1 if size is None else size)
