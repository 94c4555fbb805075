"""Queries of jobs: `read` (log and status, waiting for changes), `follow` (repeatedly), `list`, `cancel`."""

import base64
import contextlib
import json
import math
import os
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from train_classifier.core.errors import BadInput, Cancelled, NotReady, TrainClassifierError, from_dict
from train_classifier.core.regular_file import open_regular
from train_classifier.core.report import metrics
from train_classifier.worker.jobs import recover, removal
from train_classifier.worker.state import files, run_records
from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.state.store import Job, Store, is_settled
from train_classifier.worker.system import host_faults, program
from train_classifier.worker.system.host import Host

#: Seconds between two checks for changes.
POLL_S = 0.02
#: Seconds between two checks in a folder that other hosts write to: each is a request to its server.
SHARED_POLL_S = 0.2
#: Seconds between two checks of a group of up to twenty jobs; more jobs are checked less often.
GROUP_POLL_S = 0.2
#: Seconds for which lines are collected while the log grows slowly.
COLLECT_S = 0.05
#: Seconds between two checks whether the worker still lives.
ALIVE_CHECK_S = 1.0
#: Seconds between two renewals of the lease, and between two progress lines of `pack`.
RENEW_S = 1.0
#: Seconds between two looks at what a model uses; it is measured as often.
LOOK_S = 5.0
MAX_WAIT_S = 60.0
PAUSE_BYTES = 1 << 16
DEFAULT_BYTES = 4 << 20
MAX_BYTES = 16 << 20
MAX_INLINE_BYTES = 1 << 20
LOG_END_BYTES = 4 << 10
#: Most jobs in training of which `list` tells what they use.
MOST_FIGURES = 64
#: Ended jobs in the list that is not of all.
NEWEST_JOBS = 20
#: Most jobs that are looked at for the earlier runs of a model.
MAX_RUNS = 1000
#: Most bytes of the metrics in one entry of `list`, which has one for each job.
MAX_METRICS = 8 << 10


def read(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return the log past an offset and the status; wait for changes up to `wait` seconds.

    A status that the caller has not seen, bytes past the offset, or the end of the job end the wait.
    """
    job = store.find(request.get("id"))
    offset = number(request, "offset", 0, 1 << 62)
    wait = min(number(request, "wait", 0, MAX_WAIT_S * 60), MAX_WAIT_S)
    max_bytes = int(min(number(request, "max", DEFAULT_BYTES, 1 << 40), MAX_BYTES)) or DEFAULT_BYTES
    known_version = request.get("seen")
    deadline = time.monotonic() + wait
    next_check = 0.0
    while True:
        now = time.monotonic()
        if now >= next_check:
            next_check = now + ALIVE_CHECK_S
            if request.get("renew"):
                # Also while there is no news: a lease may be shorter than the wait.
                _renew(job)
            recover.finish_if_dead(job, host, slurm_wait_s=0)
        status = _status(job, host, slurm_wait_s=0)
        # Read the size after the status: the log of a finished job does not grow any more.
        is_shared = status.get("launcher") == recover.SLURM
        size = shared_log_size(job) if is_shared else log_size(job)
        pause = SHARED_POLL_S if is_shared else POLL_S
        if size > offset or status["version"] != known_version or now >= deadline:
            break
        time.sleep(pause)
    data = _log(job, int(offset), max_bytes) if size > offset else b""
    is_finished = status["state"] == "finished"
    return {
        "id": job.id,
        "offset": int(offset),
        "data": base64.b64encode(zlib.compress(data, 1)).decode("ascii") if data else "",
        "log_size": size,
        "status": status,
        "result": job.result() if is_finished else None,
        "archive": str(job.archive) if is_finished and job.archive.exists() else None,
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
    the archive itself, as `content`, if the archive has at most `inline` bytes. With `figures` an answer has
    what the model uses and has measured, every few seconds.
    """
    next_look = math.inf
    deadline = time.monotonic() + number(request, "for", 0, MAX_WAIT_S * 60)
    max_inline = number(request, "inline", 0, MAX_INLINE_BYTES)
    while True:
        answer = read(request, host, store)
        size = _data_size(answer)
        offset = answer["offset"] + size
        if request.get("figures") and _is_training(answer["status"]):
            # Not at once: a short training would wait for it.
            next_look = min(next_look, time.monotonic() + LOOK_S)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_S
                answer["figures"] = _figures([Job(store.jobs / answer["id"])], host).get(answer["id"])
        is_complete = answer["status"]["state"] == "finished" and offset >= answer["log_size"]
        if is_complete and max_inline and answer["archive"]:
            content = _inline_content(answer["archive"], max_inline)
            if content:
                answer["content"] = base64.b64encode(content).decode("ascii")
        yield answer
        if is_complete or time.monotonic() >= deadline:
            return
        if 0 < size < PAUSE_BYTES:
            time.sleep(COLLECT_S)
        request = {**request, "offset": offset, "seen": answer["status"]["version"]}


def _inline_content(archive: str, max_bytes: float) -> bytes:
    """Return an archive's bytes, b"" if it is larger or unreadable: the controller then fetches it."""
    try:
        with open(open_regular(Path(archive)), "rb") as file:
            return file.read() if os.fstat(file.fileno()).st_size <= max_bytes else b""
    except OSError:
        return b""


def log_size(job: Job) -> int:
    """Return the present size of the log in bytes."""
    try:
        return os.lstat(job.log).st_size
    except FileNotFoundError:
        return 0


def log_end(job: Job) -> str:
    """Return the end of the log, which says how far a training is."""
    try:
        with open(open_regular(job.log), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_END_BYTES))
            return file.read(LOG_END_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def shared_log_size(job: Job) -> int:
    """Return the size of a log that another host writes: network file systems ask for it at each opening."""
    try:
        descriptor = open_regular(job.log)
    except FileNotFoundError:
        return 0
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _status(job: Job, host: Host, slurm_wait_s: Optional[float] = None) -> dict[str, Any]:
    """Return the status of a job; what Slurm says about one that waits is its message."""
    status = job.status()
    if status.get("launcher") != recover.SLURM:
        return status
    from train_classifier.worker.slurm import liveness

    seconds = liveness.PATIENCE_S if slurm_wait_s is None else slurm_wait_s
    return liveness.with_message(job, host, status, seconds)


def _log(job: Job, offset: int, max_bytes: int) -> bytes:
    try:
        descriptor = open_regular(job.log)
    except OSError as error:
        raise NotReady(f"the log of job {job.id} cannot be read: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        file.seek(offset)
        return file.read(max_bytes)


def number(request: dict[str, Any], name: str, default: float, largest: float) -> float:
    """Return a number of the request. Raises BadInput when it is not from 0 to `largest`."""
    value = request.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= largest:
        raise BadInput(f"{name} is {value!r}: it must be a number from 0 to {largest:g}")
    return value


def follow_group(request: dict[str, Any], host: Host, store: Store) -> Iterator[dict[str, Any]]:
    """Yield what is new of several jobs, {"jobs": [answers of `read`]}, for `for` seconds or until all ended.

    `jobs` of the request has, for each id, the `offset` and the version `seen` so far; `max` bytes of each
    log are sent at once. One process and one connection serve all: a server allows few of them.
    """
    deadline = time.monotonic() + number(request, "for", 0, MAX_WAIT_S * 60)
    wait = min(number(request, "wait", 0, MAX_WAIT_S * 60), MAX_WAIT_S)
    jobs = request.get("jobs")
    if not isinstance(jobs, dict) or not all(isinstance(known, dict) for known in jobs.values()):
        raise BadInput("jobs must be an object of ids and what is known of each")
    fields = {name: request.get(name) for name in ("renew", "inline", "max")}
    waiting = {str(id): {**known, **fields, "id": str(id), "for": 0, "wait": 0} for id, known in jobs.items()}
    answered = time.monotonic()
    while True:
        answers: list[dict[str, Any]] = []
        size = 0
        for job, query in list(waiting.items()):
            if size >= MAX_BYTES:
                # The next answer begins with those that come after.
                break
            try:
                answer = next(follow(query, host, store))
            except TrainClassifierError as error:
                # `clean` removed it: the others go on.
                del waiting[job]
                answers.append({"id": job, "error": error.to_dict()})
                continue
            size += _data_size(answer)
            offset = answer["offset"] + _data_size(answer)
            if answer["status"]["state"] == "finished" and offset >= answer["log_size"]:
                del waiting[job]
            elif offset == query.get("offset", 0) and answer["status"]["version"] == query.get("seen"):
                continue
            else:
                del waiting[job]
                waiting[job] = {**query, "offset": offset, "seen": answer["status"]["version"]}
            answers.append(answer)
        now = time.monotonic()
        if answers or now - answered >= wait:
            answered = now
            yield {"jobs": answers}
        if not waiting or now >= deadline:
            return
        if size < PAUSE_BYTES:
            time.sleep(max(GROUP_POLL_S, GROUP_POLL_S * len(waiting) / 20))


def _data_size(answer: dict[str, Any]) -> int:
    return len(zlib.decompress(base64.b64decode(answer["data"]))) if answer["data"] else 0


def status(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return status, result and specification of one job; of a group, its id and all of these as `jobs`.

    `failures` has the id and the error of each job of the group that cannot be read.
    """
    group = store.group(request.get("id"))
    if group:
        answers, errors = _ask_each(group, lambda job: _answer(job, host))
        failures = [{"id": job.id, "error": host_faults.describe(error)} for job, error in errors]
        return {"id": group[0].id[:-2], "jobs": answers, "failures": failures}
    job = store.find(request.get("id"))
    answer = _answer(job, host)
    if request.get("figures") and _is_training(answer["status"]):
        answer["figures"] = _figures([job], host).get(job.id)
    return answer


def _ask_each(
    group: list[Job], ask: Callable[[Job], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[tuple[Job, Exception]]]:
    """Return the answers of a group's jobs and the errors of the others: one that is damaged hides no other.

    Raises the last error when no job answers.
    """
    answers: list[dict[str, Any]] = []
    errors: list[tuple[Job, Exception]] = []
    for job in group:
        try:
            answers.append(ask(job))
        except (TrainClassifierError, OSError) as error:
            errors.append((job, error))
    if errors and not answers:
        raise errors[-1][1]
    return answers, errors


def _answer(job: Job, host: Host) -> dict[str, Any]:
    recover.finish_if_dead(job, host)
    status = _status(job, host)
    return {
        "id": job.id,
        "status": status,
        "result": job.result() if status["state"] == "finished" else None,
        "spec": job.spec().to_dict(),
    }


def list_jobs(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return one entry for each unfinished job and the newest twenty; with `all`, for every job.

    With `all_users` also for the unfinished jobs of others. One in training has `figures`.
    """
    ids = store.job_ids()
    lines: list[dict[str, Any]] = []
    for job_id in reversed(ids):
        is_old = len(lines) >= NEWEST_JOBS and not request.get("all")
        if is_old and is_settled(os.path.join(store.jobs, job_id)):
            continue
        line = entry_of(Job(store.jobs / job_id), host)
        if line is not None and not (is_old and line["state"] == "finished"):
            lines.append(line)
    lines.reverse()
    jobs = [Job(store.jobs / line["id"]) for line in lines if _is_training(line)][-MOST_FIGURES:]
    figures = _figures(jobs, host)
    lines = [{**line, "figures": figures[line["id"]]} if line["id"] in figures else line for line in lines]
    if request.get("all_users"):
        from train_classifier.worker.jobs import other_users

        lines += other_users.list_jobs(host, set(ids))
    return {"jobs": lines}


def _is_training(status: dict[str, Any]) -> bool:
    return status["state"] == "running" and status.get("phase") == "training"


def _figures(jobs: list[Job], host: Host) -> dict[str, dict[str, Any]]:
    """Return by its id what each job in training uses and has measured, and the end of its log.

    A job of which that cannot be read, or that has just ended, is left out.
    """
    # In a folder of the last release, the job's account can put anything in the place of these files.
    jobs = [job for job in jobs if not job.is_foreign]
    if not jobs:
        return {}
    from train_classifier.worker.training import live_figures

    try:
        figures = live_figures.look([(job, job.status()) for job in jobs], host.job_user())
    except (TrainClassifierError, OSError):
        return {}
    return {job.id: {**one, "log_end": log_end(job)} for job, one in zip(jobs, figures)}


def report(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return the answer of `status` and the page of the job's report, "" for a job that has none."""
    job = store.find(request.get("id"))
    answer = _answer(job, host)
    content = b""
    with contextlib.suppress(FileNotFoundError):
        content = files.read_bytes(job.report, MAX_BYTES)
    return {**answer, "page": base64.b64encode(zlib.compress(content, 1)).decode("ascii") if content else ""}


def list_runs(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Return the newest `most` entries of `list` for ended jobs of `model`, also of those that were cleaned.

    With `until` only those up to this job.
    """
    model, until = request.get("model"), str(request.get("until") or "~")
    most = number(request, "most", 10, MAX_RUNS)
    lines: list[dict[str, Any]] = []
    ids = [job_id for job_id in store.job_ids() if job_id <= until]
    for job_id in reversed(ids[-MAX_RUNS:]):
        if len(lines) >= most:
            break
        # Cheaper than the whole entry of a job of another model.
        with contextlib.suppress(NotReady, OSError):
            status = files.read_json(store.jobs / job_id / "status.json")
            is_run = isinstance(status, dict) and status.get("state") == "finished"
            if is_run and status.get("model") == model:
                lines += filter(None, [entry_of(Job(store.jobs / job_id), host)])
    there = set(ids)
    lines += [run for run in run_records.kept(store, model) if run["id"] <= until and run["id"] not in there]
    return {"runs": sorted(lines, key=lambda line: str(line["id"]))[-int(most) :]}


def entry_of(job: Job, host: Host) -> Optional[dict[str, Any]]:
    """Return a job's entry of `list`; None while it cannot be read."""
    try:
        if not is_settled(job.dir):
            # When the engine is down, the last known status is shown.
            with contextlib.suppress(NotReady):
                recover.finish_if_dead(job, host)
        status = _status(job, host)
        result = job.result() if status["state"] == "finished" else None
        asked = _asked(job)
    except (TrainClassifierError, OSError):
        # The job is partly created or removed, damaged, or of another version of this program.
        return None
    return {
        "id": job.id,
        "model": status.get("model"),
        "state": status["state"],
        "phase": status.get("phase"),
        "outcome": result.get("outcome") if result else None,
        "exit_code": result["exit_code"] if result else None,
        "submitter": status.get("submitter"),
        "submitted": status.get("submitted"),
        "started": status.get("started"),
        "finished": result.get("finished") if result else None,
        "gpus": [gpu.get("uuid") for gpu in result.get("gpus", [])] if result else status.get("gpus", []),
        "message": status.get("message"),
        **asked,
        "metrics": metrics.first(result.get("metrics"), MAX_METRICS) if result else None,
    }


def _asked(job: Job) -> dict[str, Any]:
    """Return what an entry of `list` has from the job's specification.

    Only the kinds of these values are checked: to check a whole specification takes longer than the rest.
    """
    spec: Any = None
    with contextlib.suppress(NotReady):
        spec = files.read_json(job.dir / "spec.json")

    def of_kind(data: Any, name: str, default: Any) -> Any:
        value = data.get(name) if isinstance(data, dict) else None
        return value if isinstance(value, type(default)) else default

    return {
        "arguments": list(map(str, of_kind(spec, "arguments", []))),
        "group": of_kind(spec, "group", "") or None,
        "sweep": {name: str(value) for name, value in of_kind(spec, "sweep", {}).items()},
        "commit": of_kind(of_kind(spec, "repository", {}), "commit", "") or None,
    }


def cancel(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Ask a job to stop, or all of a group; has no effect when it has ended or was asked before.

    If its worker is gone, the job is finished here, and its container is removed. Of a group all are asked,
    then the first error is raised.
    """
    group = store.group(request.get("id"))
    if group:
        return _cancel_group(group, request, host, store)
    job = store.find(request.get("id"))
    status = job.status()
    by = str(request.get("by") or "")[:200]
    is_told = True
    # A second cancel stops the packing that follows the first one.
    is_packing = status.get("phase") == "artefacts"
    if status["state"] != "finished" and (is_packing or not os.path.lexists(job.cancel)):
        # Written first, so that a push or a submission in progress sees it too.
        if job.is_foreign:
            program.call(host.job_user(), files.write_part, {"path": str(job.cancel), "text": by})
        else:
            _write_request(job, by)
        # Again: a submission that did not see the request has changed it before.
        status = job.status()
        if status.get("launcher") == recover.SLURM:
            from train_classifier.worker.slurm import shared_folder

            # Also without a controller: the worker on the node reads it.
            is_told = shared_folder.try_to_stop(job, by)
    if status["state"] in ("prepared", "pushed") and removal.remove(
        job, host.job_user(), unless_submitted=True
    ):
        return {"id": job.id, "state": "removed"}
    if status.get("launcher") == recover.SLURM and status["state"] in ("submitted", "running"):
        _cancel_in_slurm(job, host, status, by, is_told)
    recover.finish_if_dead(job, host)
    return {"id": job.id, "state": job.status()["state"]}


def _cancel_group(group: list[Job], request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    # The last first, so that none that waits for another starts meanwhile.
    jobs, errors = _ask_each(group[::-1], lambda job: cancel({**request, "id": job.id}, host, store))
    for job, error in errors:
        # A job that is not complete, or was removed meanwhile, does not run.
        if not isinstance(error, BadInput):
            cause = from_dict(host_faults.describe(error))
            reason = f"job {job.id} may run on; the others of its group were asked to stop: {cause.reason}"
            raise NotReady(reason, cause.hint, cause.detail) from error
    states = {job["state"] for job in jobs}
    state = states.pop() if len(states) == 1 else "cancelling"
    return {"id": group[0].id[:-2], "state": state, "jobs": jobs[::-1]}


def _write_request(job: Job, by: str) -> None:
    """Write who cancels a job; a full disk has room for an empty file, which says enough."""
    try:
        write_bytes(job.cancel, by.encode("utf-8", "replace"))
    except OSError as error:
        if not host_faults.of_disk(error):
            raise
        os.close(os.open(job.cancel, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        os.utime(job.cancel)


def _cancel_in_slurm(job: Job, host: Host, status: dict[str, Any], by: str, is_told: bool) -> None:
    """Take a waiting job out of Slurm's queue; have Slurm signal one that could not be told by a file."""
    from train_classifier.worker.slurm import liveness

    if liveness.cancel_waiting(job, host, status):
        recover.finish_slurm_job(job, host, Cancelled(f"cancelled by {by}" if by else "cancelled"))
    elif not is_told:
        liveness.signal_worker(job, host)


def pack(request: dict[str, Any], host: Host, store: Store) -> Iterator[dict[str, Any]]:
    """Pack the artefacts that stayed on the host, and yield the job's result; `most` may exceed its limit.

    One line is printed every second; when that fails, the caller is gone and packing stops.
    """
    job = store.find(request.get("id"))
    recover.finish_if_dead(job, host)
    max_bytes = number(request, "most", -1, 1 << 60)
    last_line = time.monotonic()

    def check() -> None:
        nonlocal last_line
        if time.monotonic() - last_line < RENEW_S:
            return
        last_line = time.monotonic()
        try:
            print(json.dumps({"id": job.id, "state": "packing"}), flush=True)
        except BrokenPipeError as error:
            raise Cancelled("the caller that asked for the archive has disconnected") from error

    result = recover.pack(job, host, None if max_bytes < 0 else int(max_bytes), check)
    yield {"id": job.id, "result": result, "archive": str(job.archive) if result.get("archive") else None}
