"""The end of a job, in this order: pack, write the result, set the state `finished`, remove leftover files.

Each step keeps what the next one needs, so any process that finds a partly ended job continues from there.
Packing may take long: only the job's worker and `fetch` do it, never a command that only looks at a job.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core import errors
from train_classifier.core.errors import Cancelled, NothingDelivered, TrainClassifierError
from train_classifier.core.job import JobSpec
from train_classifier.core.options import show_option
from train_classifier.core.regular_file import open_regular
from train_classifier.core.text import printable, short, show_bytes
from train_classifier.worker.state import file_trees, results
from train_classifier.worker.state.files import new_file, read_json, write_json
from train_classifier.worker.state.store import Job
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account
from train_classifier.worker.transfer import archive, artefacts, elsewhere, workspace_copy
from train_classifier.worker.transfer.archive import HOLES

#: The packer's answer, and the error that ended the job, which is None after a success.
PackResult = tuple[dict[str, Any], Optional[TrainClassifierError]]
Check = Callable[[], None]
#: Records of the other nodes of a job, beside log.txt and usage.csv.
RANK_RECORDS = ("log-rank*.txt", "usage-rank*.csv")


def record_initial_artefacts(
    job: Job, spec: JobSpec, account: Account, folders: Sequence[Path], check: Check
) -> None:
    """List the folders of results before training; restore the access to `folders` that a job closed."""
    with _opened_workspace(job) as workspace, new_file(job.stock) as stock:
        request = {
            "workspace": workspace,
            "stock": stock,
            "folders": [str(folder) for folder in folders],
            "results": spec.artefacts,
        }
        program.call(account, artefacts.record_initial_artefacts, request, [workspace, stock], check)


def pack(
    job: Job,
    spec: JobSpec,
    account: Account,
    cause: Optional[TrainClassifierError],
    check: Check,
    max_bytes: Optional[int] = None,
    elsewhere_too: bool = False,
) -> PackResult:
    """Pack the job's artefacts and records; return the packer's answer and the error that ended the job.

    A job that did not reach training has nothing to pack. `unpacked` in the answer says why something stays
    on the host: also what a model that succeeded wrote outside its folders of results, which is packed only
    with `elsewhere_too`. `check` is called repeatedly, and an exception from it stops the packing.
    """
    if not job.stock.exists():
        return {}, cause
    limit = spec.artefacts_max_bytes if max_bytes is None else max_bytes
    try:
        status = job.status()
        result = results.result(job, spec, status, cause)
        request = {
            "manifest": results.head(job, spec, status, result),
            "result": result,
            "need_new": cause is None and not spec.allow_empty,
            "most_bytes": limit,
            "threads": _threads(spec),
            "results": spec.artefacts,
            "elsewhere": "pack" if elsewhere_too else "list" if cause is None else None,
        }
        answer = write_archive(job, account, request, cause.to_dict() if cause else None, check)
    except TooLarge as error:
        return _too_large(spec, limit, error, cause, is_artefacts=not (elsewhere_too or spec.artefacts))
    except Cancelled as error:
        hint = f"the results stay on the host: train-classifier fetch {spec.id} packs them"
        error.hint = f"{error.hint}; {hint}" if error.hint else hint
        return _unpacked("stopped", f"packing was stopped: {error.reason}", hint), cause or error
    except (TrainClassifierError, OSError) as error:
        detail = error.detail if isinstance(error, TrainClassifierError) else None
        failure = NothingDelivered(
            "the artefacts could not be packed",
            "check whether the disk of the host is full; the artefacts stay there: free some space, then run "
            f"train-classifier fetch {spec.id}",
            f"{error}\n{detail or ''}".strip(),
        )
        return _unpacked("failed", failure.reason, failure.hint), cause or failure
    return _judge(spec, answer, cause)


def write_archive(
    job: Job,
    account: Account,
    request: dict[str, Any],
    ending: Optional[dict[str, Any]],
    check: Check,
) -> dict[str, Any]:
    """Pack as the account, put archive and manifest into the job's folder, and return the packer's answer.

    `request` is that of `archive.pack` without the descriptors. Raises TooLarge, what `check` raises,
    TrainClassifierError and OSError.
    """
    job.packed.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        files = {
            "workspace": stack.enter_context(_opened_workspace(job)),
            "stock": stack.enter_context(open(open_regular(job.stock), "rb")).fileno(),
            "archive": stack.enter_context(new_file(job.archive)),
            # Not in /tmp, which may lie in memory: a million files take hundreds of megabytes.
            "packed": stack.enter_context(tempfile.TemporaryFile(dir=job.dir)).fileno(),
            "left_out": stack.enter_context(tempfile.TemporaryFile(dir=job.dir)).fileno(),
        }
        records = {}
        others = (path for pattern in RANK_RECORDS for path in sorted(job.dir.glob(pattern)))
        for path in (job.log, job.usage, *others):
            with contextlib.suppress(FileNotFoundError):
                records[path.name] = stack.enter_context(open(open_regular(path), "rb")).fileno()
        with new_file(job.manifest) as files["list"], new_file(job.report) as files["report"]:
            request = {**request, **files, "records": records}
            answer = program.call(account, archive.pack, request, [*files.values(), *records.values()], check)
            if "too_large" in answer:
                raise TooLarge(*answer["too_large"])
        if answer["archive"]["bytes"] != os.fstat(files["archive"]).st_size:
            raise OSError("the archive's size is not the number of bytes that were written")
        # Written before the archive appears, so that no archive is found without it. If the disk is full now,
        # the archive is still delivered, without this file.
        with contextlib.suppress(OSError):
            write_json(job.packed, {**answer, "ending": ending})
    return answer


@contextlib.contextmanager
def _opened_workspace(job: Job) -> Iterator[int]:
    """Yield a descriptor of the workspace, which a model may have closed."""
    descriptor = file_trees.open_folder(str(job.workspace))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _threads(spec: JobSpec) -> int:
    """Return the number of processors that the job had."""
    present = len(os.sched_getaffinity(0))
    return present if spec.cpus is None else max(1, min(present, math.ceil(spec.cpus)))


def not_packed_answer(job: Job) -> dict[str, Any]:
    """Return the substitute for the packer's answer when the worker died before it packed."""
    if not job.stock.exists():
        return {}
    return _unpacked("lost", "the results stay on the host", f"train-classifier fetch {job.id} packs them")


class TooLarge(Exception):
    """Nothing was packed: the new files are not kept."""

    def __init__(self, real: int, apparent: int) -> None:
        super().__init__()
        self.real, self.apparent = real, apparent


def _unpacked(why: str, reason: str, hint: Optional[str], **more: Any) -> dict[str, Any]:
    return {"unpacked": {"why": why, "reason": reason, "hint": hint, **more}}


def _too_large(
    spec: JobSpec, limit: int, excess: TooLarge, cause: Optional[TrainClassifierError], is_artefacts: bool
) -> PackResult:
    """Return the answer and the error for results over the limit, which may be artefacts/ alone."""
    real, apparent = excess.real, excess.apparent
    hold, stay = ("artefacts/ holds", "it stays") if is_artefacts else ("the results hold", "they stay")
    size = max(real, -(-apparent // HOLES))
    holes = f" ({show_bytes(apparent)} with its holes)" if apparent > 2 * real else ""
    error = NothingDelivered(
        f"{hold} {show_bytes(real)}{holes}, more than the limit of {show_bytes(limit)}: {stay} on the host",
        f"to pack it: train-classifier fetch {spec.id} --max-size {-(-size // (1 << 20))}MiB; the limit of a "
        f"job is {show_option('artefacts_max')}",
    )
    return _unpacked(
        "too-large", error.reason, error.hint, bytes=real, apparent_bytes=apparent, most_bytes=limit
    ), cause or error


def earlier_packing(job: Job, spec: JobSpec) -> Optional[PackResult]:
    """Return the result of `pack` in a process that died afterwards, None when it had not packed."""
    answer: Optional[dict[str, Any]] = read_json(job.packed)
    try:
        size = os.lstat(job.archive).st_size
    except FileNotFoundError:
        return None
    if not answer or size != answer["archive"]["bytes"]:
        return None
    ending = answer.get("ending")
    cause = errors.from_dict(ending) if ending else None
    return _judge(spec, answer, cause)


def _judge(spec: JobSpec, answer: dict[str, Any], cause: Optional[TrainClassifierError]) -> PackResult:
    """Return the packer's answer, with `unpacked` for files elsewhere, and the error that ended the job.

    A file elsewhere is listed only where `cause` is None, so `error` is then the one that is made here.
    """
    error = cause
    if cause is None and not answer["new"] and not spec.allow_empty:
        error = NothingDelivered(
            f"the model succeeded, but wrote nothing new into {_places(spec, 'or')}",
            "write results into artefacts/ below the working directory, name another folder with "
            f"{show_option('artefacts')}, or use {show_option('allow_empty')}",
        )
    if not answer.get("elsewhere"):
        return answer, error
    files = elsewhere.describe(answer["elsewhere"])
    reason = f"the model also wrote {files} outside {_places(spec, 'and')}"
    names = [place["path"].rstrip("/") for place in answer["elsewhere"]["places"][:3]]
    example = ", ".join(short(name, 60) for name in names if name not in ("", "."))
    hint = (
        f"train-classifier fetch {spec.id} gets these files; {show_option('artefacts')} names folders and "
        f"files that always count as results{f' (here {example})' if example else ''}"
    )
    if error is not None:
        reason = f"{error.reason}; it wrote {files} elsewhere"
        error = NothingDelivered(reason, hint)
    return {**answer, **_unpacked("elsewhere", reason, hint, **answer["elsewhere"])}, error


def _places(spec: JobSpec, conjunction: str) -> str:
    """Return the places of results as a text."""
    places = ["artefacts/", *spec.artefacts]
    if len(places) > 4:
        places = [*places[:3], f"{len(places) - 3} more"]
    *first, last = map(printable, places)
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def remove_leftovers(job: Job, account: Account) -> None:
    """Remove what an ended job does not need: workspace, home and run/; the caller holds the job's lock.

    This is the last step. A workspace with results that are not packed stays, until they are packed.
    """
    workspace_copy.stop(job)
    with contextlib.suppress(FileNotFoundError):
        # A worker that was killed had no time to remove it.
        if os.lstat(job.crash).st_size == 0:
            job.crash.unlink()
    if not (job.result() or {}).get("unpacked"):
        file_trees.remove(account, job.workspace)
        file_trees.remove(None, job.packed, job.copy)
    file_trees.remove(account, job.home)
    # Remove run/ last: while it exists, the job still has files to remove.
    file_trees.remove(None, job.run)


def conclude(
    job: Job,
    spec: Optional[JobSpec],
    cause: Optional[TrainClassifierError],
    answer: dict[str, Any],
    durations: dict[str, float],
) -> None:
    """Write result.json, then the state `finished`. The caller holds the job's lock.

    An existing result.json is kept: its writer died before it could set the state.
    """
    job.release_reserve()
    result = job.result()
    if result is None:
        result = results.result(job, spec, job.status(), cause)
        result["seconds"].update(durations)
        result.update(archive_fields(answer))
        if "unpacked" in answer:
            result["unpacked"] = answer["unpacked"]
        job.write_result(result)
    set_finished(job, result)


def set_finished(job: Job, result: dict[str, Any]) -> None:
    """Set the state `finished`, with the message for the job's followers."""
    message = result["reason"] or "; ".join(result.get("remarks", ()))
    job.write_status(state="finished", phase=None, message=message, gpus=[])


def archive_fields(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the part of result.json that comes from the packer's answer."""
    remarks = []
    if answer.get("unpacked"):
        remarks.append(answer["unpacked"]["reason"])
    if answer.get("metrics_problem"):
        remarks.append(f"metrics left out: {answer['metrics_problem']}")
    if answer.get("report_problem"):
        remarks.append(f"report.html left out: {answer['report_problem']}")
    if answer.get("left_out"):
        remarks.append(f"results left out: {answer['left_out']}, see manifest.json")
    return {"archive": answer.get("archive"), "metrics": answer.get("metrics"), "remarks": remarks}
