"""Queries of jobs: `read` (log and status, waiting for changes), `follow` (repeatedly), `list`, `cancel`."""

import base64
import contextlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any, Iterator, Optional

from train_classifier.core.errors import BadInput, Cancelled, NotReady, TrainClassifierError
from train_classifier.core.regular_file import open_regular
from train_classifier.worker.jobs import recover
from train_classifier.worker.state import files
from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Host

#: Seconds between two checks for changes.
POLL_S = 0.02
#: Seconds for which lines are collected while the log grows slowly.
GATHER_S = 0.05
#: Seconds between two looks whether the worker still lives.
ALIVE_S = 1.0
#: Seconds between two renewals of the lease, and between two progress lines of `pack`.
RENEW_S = 1.0
MOST_WAIT_S = 60.0
PAUSE_BYTES = 1 << 16
DEFAULT_BYTES = 4 << 20
MOST_BYTES = 16 << 20
MOST_INLINE = 1 << 20


def read(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return the log past an offset and the status; wait for changes up to `wait` seconds.

    A status that the caller has not seen, bytes past the offset, or the end of the job end the wait.
    """
    job = store.find(request.get("id"))
    offset = _number(request, "offset", 0, 1 << 62)
    wait = min(_number(request, "wait", 0, MOST_WAIT_S * 60), MOST_WAIT_S)
    most = int(min(_number(request, "max", DEFAULT_BYTES, 1 << 40), MOST_BYTES)) or DEFAULT_BYTES
    seen = request.get("seen")
    if request.get("renew"):
        _renew(job)
    until = time.monotonic() + wait
    look_at = 0.0
    while True:
        now = time.monotonic()
        if now >= look_at:
            look_at = now + ALIVE_S
            recover.finish_if_dead(job, host)
        status = job.status()
        # Read the size after the status: the log of a finished job does not grow any more.
        size = log_size(job)
        if size > offset or status["version"] != seen or now >= until:
            break
        time.sleep(POLL_S)
    data = _log(job, int(offset), most) if size > offset else b""
    over = status["state"] == "finished"
    return {
        "id": job.id,
        "offset": int(offset),
        "data": base64.b64encode(zlib.compress(data, 1)).decode("ascii") if data else "",
        "log_size": size,
        "status": status,
        "result": job.result() if over else None,
        "archive": str(job.archive) if over and job.archive.exists() else None,
    }


def _renew(job: Job) -> None:
    """Renew the lease, which shows the worker that the controller is connected, at most once a second.

    Only the file's time is changed: this works on a full disk too, and it must never make a query fail.
    """
    with contextlib.suppress(OSError):
        if not 0 <= time.time() - os.lstat(job.lease).st_mtime < RENEW_S:
            os.utime(job.lease, follow_symlinks=False)


def follow(request: dict[str, Any], host: Host, store: Store) -> Iterator[dict[str, Any]]:
    """Yield the answers of `read`, for `for` seconds or until the whole log of a finished job was sent.

    One process serves many answers. With `renew` the lease is renewed at each of them. The last answer holds
    the archive itself, as `content`, if the archive has at most `inline` bytes.
    """
    until = time.monotonic() + _number(request, "for", 0, MOST_WAIT_S * 60)
    inline = _number(request, "inline", 0, MOST_INLINE)
    while True:
        answer = read(request, host, store)
        size = len(zlib.decompress(base64.b64decode(answer["data"]))) if answer["data"] else 0
        offset = answer["offset"] + size
        over = answer["status"]["state"] == "finished" and offset >= answer["log_size"]
        if over and inline and answer["archive"]:
            content = _small(answer["archive"], inline)
            if content:
                answer["content"] = base64.b64encode(content).decode("ascii")
        yield answer
        if over:
            return
        if time.monotonic() >= until:
            return
        if 0 < size < PAUSE_BYTES:
            time.sleep(GATHER_S)
        request = {**request, "offset": offset, "seen": answer["status"]["version"]}


def _small(archive: str, most: float) -> bytes:
    """Return an archive's bytes, b"" if it is larger or unreadable: the controller then fetches it."""
    try:
        with open(open_regular(Path(archive)), "rb") as file:
            return file.read() if os.fstat(file.fileno()).st_size <= most else b""
    except OSError:
        return b""


def log_size(job: Job) -> int:
    """Return the bytes that the log has by now."""
    try:
        return os.lstat(job.log).st_size
    except FileNotFoundError:
        return 0


def _log(job: Job, offset: int, most: int) -> bytes:
    try:
        descriptor = open_regular(job.log)
    except OSError as error:
        raise NotReady(f"the log of job {job.id} cannot be read: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        file.seek(offset)
        return file.read(most)


def _number(request: dict[str, Any], name: str, default: float, most: float) -> float:
    value = request.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise BadInput(f"{name} is {value!r}, wanted a number from 0 to {most:g}")
    return value


def status(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return status, result and specification of one job."""
    job = store.find(request.get("id"))
    recover.finish_if_dead(job, host)
    found = job.status()
    return {
        "id": job.id,
        "status": found,
        "result": job.result() if found["state"] == "finished" else None,
        "spec": job.spec().to_dict(),
    }


def list_jobs(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return one entry for each unfinished job and the newest twenty; with `all`, for every job."""
    lines = [line for line in (_line(job, host) for job in store.all_jobs()) if line is not None]
    if not request.get("all"):
        newest = {line["id"] for line in lines[-20:]}
        lines = [line for line in lines if line["state"] != "finished" or line["id"] in newest]
    return {"jobs": lines}


def _line(job: Job, host: Host) -> Optional[dict[str, Any]]:
    try:
        # When the engine is down, the last known status is shown.
        with contextlib.suppress(NotReady):
            recover.finish_if_dead(job, host)
        found = job.status()
        result = job.result() if found["state"] == "finished" else None
    except (TrainClassifierError, OSError):
        # The job is partly created or removed, damaged, or of another version of this program.
        return None
    return {
        "id": job.id,
        "model": found.get("model"),
        "state": found["state"],
        "phase": found.get("phase"),
        "outcome": result.get("outcome") if result else None,
        "exit_code": result["exit_code"] if result else None,
        "submitter": found.get("submitter"),
        "submitted": found.get("submitted"),
        "started": found.get("started"),
        "finished": result.get("finished") if result else None,
        "gpus": [gpu.get("uuid") for gpu in result.get("gpus", [])] if result else found.get("gpus", []),
        "message": found.get("message"),
    }


def cancel(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Ask a job to stop; harmless when it has ended or was asked before.

    If its worker is gone, the job is finished here, and its container is removed.
    """
    job = store.find(request.get("id"))
    found = job.status()
    # A second cancel stops the packing that follows the first one.
    again = found.get("phase") == "artefacts"
    if found["state"] != "finished" and (again or not os.path.lexists(job.cancel)):
        # Written first, so that a push or a submission in progress sees it too.
        by = str(request.get("by") or "")[:200]
        if job.is_foreign:
            program.call(host.job_user(), files.write_part, {"path": str(job.cancel), "text": by})
        else:
            write_bytes(job.cancel, by.encode("utf-8", "replace"))
    if found["state"] in ("prepared", "pushed") and recover.remove(
        job, host.job_user(), unless_submitted=True
    ):
        return {"id": job.id, "state": "removed"}
    recover.finish_if_dead(job, host)
    return {"id": job.id, "state": job.status()["state"]}


def pack(request: dict[str, Any], host: Host, store: Store) -> Iterator[dict[str, Any]]:
    """Pack the artefacts that stayed on the host, and yield the job's result; `most` may exceed its limit.

    One line is printed every second; when that fails, the caller is gone and packing stops.
    """
    job = store.find(request.get("id"))
    recover.finish_if_dead(job, host)
    most = _number(request, "most", -1, 1 << 60)
    spoken = time.monotonic()

    def check() -> None:
        nonlocal spoken
        if time.monotonic() - spoken < RENEW_S:
            return
        spoken = time.monotonic()
        try:
            print(json.dumps({"id": job.id, "state": "packing"}), flush=True)
        except BrokenPipeError as error:
            raise Cancelled("whoever asked for the archive is gone") from error

    result = recover.pack(job, host, None if most < 0 else int(most), check)
    yield {"id": job.id, "result": result, "archive": str(job.archive) if result.get("archive") else None}
