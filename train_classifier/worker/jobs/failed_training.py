"""Adds the cause of a failed training, as the end of its log names it, to the error that ends the job."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any, Callable, Optional

from train_classifier.core.errors import TrainingFailed
from train_classifier.core.regular_file import open_regular, read_open
from train_classifier.worker.state import results
from train_classifier.worker.state.files import O_FOLDER, opened_folder
from train_classifier.worker.state.store import Job
from train_classifier.worker.system import failure_causes

MOST_REQUIREMENTS = 1 << 20


def add_cause(
    error: TrainingFailed,
    job: Job,
    facts: dict[str, Any],
    packages: Sequence[str],
    cards: Optional[Callable[[], str]],
) -> None:
    """Add the cause to the error's reason and replace its hint, when a cause is recognised.

    `facts` are those of the training, `packages` what the model sees; `cards` describes the job's GPUs.
    """
    if facts.get("out_of_memory") or facts.get("signal") == "SIGKILL":
        return
    spec = job.spec()
    file = next(iter(results.read_facts(job).get("environment", {}).get("files", ())), "")
    circumstances = failure_causes.Circumstances(
        model=spec.model,
        network=spec.network != "none",
        data=[folder.name for folder in spec.data],
        has_gpu=cards is not None,
        shm_bytes=spec.shm_bytes,
        pids=spec.pids,
        packages=packages,
        chosen_file=file,
        top_requirements="" if file == "requirements.txt" else _requirements(job),
        in_repository=lambda parts: _exists(job, parts),
        cards=cards or (lambda: ""),
    )
    cause = failure_causes.find(_end_of_log(job), circumstances)
    cause = cause or failure_causes.of_signal(facts.get("signal"), circumstances)
    if cause is not None:
        error.reason = f"{error.reason}: {cause.reason}"
        error.hint = cause.hint
        error.topic = cause.topic


def _end_of_log(job: Job) -> str:
    """Return the end of the log; nothing when it cannot be read."""
    with contextlib.suppress(OSError), open(open_regular(job.log), "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - failure_causes.TAIL_BYTES, 0))
        return file.read(failure_causes.TAIL_BYTES).decode("utf-8", "replace")
    return ""


def _requirements(job: Job) -> str:
    """Return the text of the requirements.txt at the top of the repository; nothing when there is none."""
    with contextlib.suppress(OSError, ValueError), opened_folder(job.workspace) as workspace:
        content = read_open(open_regular("requirements.txt", workspace), MOST_REQUIREMENTS)
        return content.decode("utf-8", "replace")
    return ""


def _exists(job: Job, parts: Sequence[str]) -> bool:
    """Tell whether the workspace has a file or a folder; no link on the way is followed."""
    if not all(part and part.strip(".") for part in parts):
        return False
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        folder = stack.enter_context(opened_folder(job.workspace))
        for part in parts[:-1]:
            folder = os.open(part, O_FOLDER, dir_fd=folder)
            stack.callback(os.close, folder)
        os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        return True
    return False
