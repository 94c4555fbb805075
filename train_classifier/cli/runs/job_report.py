"""report: how a job went, as text with plots or as a page for a browser."""

import base64
import binascii
import json
import os
import sys
import webbrowser
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_classifier.cli.console import Console, encoding_of
from train_classifier.controller import find_jobs
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import BadInput, ExitCode, NotReady
from train_classifier.core.job import JOB_ID
from train_classifier.core.report import document, page
from train_classifier.reports import archive_reader, run_comparison, terminal_report

#: Most runs that a job is compared with, itself included.
MOST_RUNS = 10


def from_host(hosts: Sequence[RemoteHost], job: str) -> dict[str, Any]:
    """Return the document of a job's report, beside the earlier runs of its model on all hosts."""
    located = find_jobs.find_job(hosts, job).require_started()
    shown = document_of(located)
    if shown is None:
        raise NotReady(
            f"Job {located.id} on {located.host.name} is not finished.",
            f"Wait for it: train-classifier attach {located.id}{located.host.flags}",
        )
    model = (located.answer.get("result") or {}).get("model") or shown.get("model")
    request = {"verb": "runs", "model": model, "until": located.id, "most": MOST_RUNS}
    answers = find_jobs.ask_hosts(hosts, lambda host: host.call(request))
    runs = [run for _, each in answers if isinstance(each, dict) for run in each.get("runs") or ()]
    newest = sorted(runs, key=lambda run: str(run.get("id")))[-MOST_RUNS:]
    return {**shown, "comparison": run_comparison.comparison(located.id, newest)}


def document_of(located: find_jobs.LocatedJob) -> dict[str, Any] | None:
    """Return the document of the report that the host made of a job, or could make; None before its end."""
    answer = located.host.call({"verb": "report", "id": located.id})
    if not answer.get("result"):
        return None
    return page.document_of(_unpacked(answer.get("page"))) or _without_page(answer, located.host.name)


def _unpacked(content: Any) -> bytes:
    """Return the page of a host's answer; a host that sends too much of it sends none."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(str(content or "")), 2 * page.MAX_PAGE)
    except (binascii.Error, zlib.error, ValueError):
        return b""


def _without_page(answer: dict[str, Any], host: str) -> dict[str, Any]:
    """Return what is known of a job that never came to its training, or that an earlier version packed."""
    spec = answer.get("spec") or {}
    manifest = {"host": {"name": host}, "times": (answer.get("status") or {}).get("times")}
    keys = ("arguments", "submitter", "repository")
    manifest.update({key: spec[key] for key in keys if key in spec})
    return document.build(document.JobRecords(result=answer["result"], manifest=manifest))


def from_archive(path: Path) -> dict[str, Any]:
    """Return the document of the report in an archive. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    shown = page.document_of(archive_reader.read(path).report)
    if shown is None:
        raise BadInput(
            f"{path} holds no report.",
            hint="It is no archive of a job, or was packed by a version without reports.",
        )
    return shown


def show(shown: dict[str, Any], output: str | None, is_opened: bool, console: Console) -> ExitCode:
    """Write a report: as JSON, as a page at `output`, into a browser, or as text to standard output.

    Raises BadInput for a document that no worker made: it may come from anybody's host or archive.
    """
    is_page = bool(output) or is_opened
    words, content = [], b""
    try:
        if console.json_mode:
            pictures = [
                {key: value for key, value in each.items() if key != "data"} for each in shown["images"]
            ]
            words.append(json.dumps({**shown, "images": pictures}, allow_nan=False))
        if is_page:
            content = page.render(shown)
        elif not console.json_mode:
            has_braille = "utf" in encoding_of(sys.stdout).lower()
            words.append(terminal_report.render(shown, console.width, console.colour_out, has_braille))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise BadInput("The report is damaged.", hint="Fetch the archive again.") from error
    if is_page:
        path = write(Path(output) if output else _cached(shown.get("job")), content, makes_folder=not output)
        if is_opened and webbrowser.open(path.absolute().as_uri()):
            console.say(f"{path} is opened in the browser.")
        else:
            console.say(f"The report is {path}")
    for each in words:
        console.out(each)
    return ExitCode.TRAINED


def _cached(job: Any) -> Path:
    """Return where the page of a job goes that is only looked at."""
    name = job if isinstance(job, str) and JOB_ID.match(job) else "report"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "train-classifier", "reports")
    return folder / f"{name}.html"


def write(path: Path, content: bytes, makes_folder: bool = False) -> Path:
    """Write a page and return its path. Raises BadInput where it cannot be written."""
    try:
        if makes_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path} cannot be written: {reason}.") from error
    return path
