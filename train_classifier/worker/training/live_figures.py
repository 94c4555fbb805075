"""What a job in training has used and written so far, for commands that look while it runs."""

import contextlib
import csv
import os
from collections.abc import Sequence
from typing import Any, Optional

from train_classifier.core.regular_file import open_regular
from train_classifier.core.report.metrics import MOST_NAME, number
from train_classifier.worker.state.files import O_FOLDER
from train_classifier.worker.state.store import Job
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account
from train_classifier.worker.training.usage import COLUMNS

#: Bytes of a file's end that are looked at; 64 GPUs take 6 KB of usage.csv.
END_BYTES = 16 << 10
#: Most columns of history.csv.
MOST_COLUMNS = 50


def look(jobs: Sequence[tuple[Job, dict[str, Any]]], account: Account) -> list[dict[str, Any]]:
    """Return for each job in training, which comes with its status, what it uses and its metrics (`history`).

    The model owns its files: they are read as its account, in one process for all jobs.
    """
    requests = []
    descriptors = []
    try:
        for job, status in jobs:
            began = (status.get("times") or {}).get("training") or [None]
            workspace = -1
            with contextlib.suppress(OSError):
                workspace = os.open(job.workspace, O_FOLDER)
                descriptors.append(workspace)
            requests.append([workspace, began[0] if isinstance(began[0], (int, float)) else 0.0])
        if account.options() and descriptors:
            # The version that prepared a job may have been another one.
            program.open_to_all()
        rows = program.call(account, histories_part, {"workspaces": requests}, descriptors)["rows"]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return [{**_usage(job), "history": row} for (job, _), row in zip(jobs, rows)]


@program.part
def histories_part(request: dict[str, Any]) -> dict[str, Any]:
    """Return the `rows` of the open folders in `workspaces`, each with the time since which it counts."""
    return {"rows": [_history(workspace, since) for workspace, since in request["workspaces"]]}


def _history(workspace: int, since: float) -> dict[str, float]:
    """Return the last row of artefacts/history.csv, {} without one; a file of the checkout does not count."""
    row: dict[str, float] = {}
    with contextlib.suppress(OSError):
        folder = os.open("artefacts", O_FOLDER, dir_fd=workspace) if workspace >= 0 else -1
        if folder < 0:
            return row
        try:
            descriptor = open_regular("history.csv", folder)
        finally:
            os.close(folder)
        with open(descriptor, "rb") as file:
            if os.fstat(descriptor).st_ctime < since:
                return row
            head, last = _ends(file)
        for name, value in list(zip(_cells(head), _cells(last)))[:MOST_COLUMNS]:
            with contextlib.suppress(ValueError):
                valid = number(float(value))
                if valid is not None and name.isprintable() and 0 < len(name) <= MOST_NAME:
                    row.setdefault(name, valid)
    return row


def _ends(file: Any) -> tuple[bytes, bytes]:
    """Return the first line of a file and its last whole one, empty where it has but one."""
    start = file.read(END_BYTES)
    head = start.split(b"\n", 1)[0]
    size = os.fstat(file.fileno()).st_size
    file.seek(max(len(head), size - END_BYTES))
    # The first piece is the end of a line, and what comes after the last newline is being written.
    lines = file.read(END_BYTES).split(b"\n")[1:-1]
    return head, next((line for line in reversed(lines) if line.strip()), b"")


def _cells(line: bytes) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line.decode("utf-8-sig", "replace")]), [])]
    except csv.Error:
        return []


def _usage(job: Job) -> dict[str, Any]:
    """Return what usage.csv says last: `cpu_percent`, `memory_bytes`, and of each card `gpus`."""
    lines: list[bytes] = []
    with contextlib.suppress(OSError), open(open_regular(job.usage), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
        lines = file.read(END_BYTES).split(b"\n")[:-1]
    rows = [dict(zip(COLUMNS, cells)) for cells in map(_cells, lines) if len(cells) == len(COLUMNS)]
    newest = [row for row in rows if row["time_s"] == rows[-1]["time_s"] != "time_s"]
    usage: dict[str, Any] = {"cpu_percent": None, "memory_bytes": None, "gpus": []}
    for row in newest:
        usage["cpu_percent"], usage["memory_bytes"] = (
            _number(row["cpu_percent"]),
            _number(row["memory_bytes"]),
        )
        if row["gpu_uuid"]:
            card = {"percent": _number(row["gpu_util_percent"]), "memory_mib": _number(row["gpu_memory_mib"])}
            usage["gpus"].append({"uuid": row["gpu_uuid"], **card})
    return usage


def _number(cell: str) -> Optional[float]:
    try:
        return number(float(cell))
    except ValueError:
        return None
