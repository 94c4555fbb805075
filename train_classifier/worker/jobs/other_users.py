"""The unfinished jobs of other users, as far as every user of Docker may see them.

Their state folders are private. What is shown comes from the tickets of the GPU queue and the labels of
containers; every user of Docker can write both, so nothing in them is trusted beyond its form.
"""

import re
from typing import Any, Callable, Optional

from train_classifier.core.errors import NotReady
from train_classifier.core.job import JOB_ID
from train_classifier.worker.containers import engine
from train_classifier.worker.gpus import gpu_queue
from train_classifier.worker.gpus.tickets import GPU
from train_classifier.worker.system.host import Host, account_name

#: Most jobs that are shown.
MOST_JOBS = 1000
#: Keys of an entry that only a job's state folder has; a ticket has the model.
UNKNOWN = (
    "model", "outcome", "exit_code", "submitted", "started", "finished", "message", "commit", "metrics",
    "group",
)  # fmt: skip
_UID = re.compile(r"[0-9]{1,9}\Z")


def list_jobs(host: Host, own: set[str]) -> list[dict[str, Any]]:
    """Return one entry for each unfinished job that is not in `own`, like those of the caller's jobs.

    Raises NotReady when neither the queue nor the engine can be asked.
    """
    jobs: dict[str, dict[str, Any]] = {}
    problems = []
    sources: list[Callable[[], list[dict[str, Any]]]] = [lambda: _from_queue(host), _from_containers]
    for source in sources:
        try:
            entries = source()
        except NotReady as problem:
            problems.append(problem)
            continue
        for entry in entries[:MOST_JOBS]:
            if JOB_ID.match(entry["id"]) and entry["id"] not in own:
                job = jobs.setdefault(entry["id"], entry)
                job["phase"] = entry["phase"] or job["phase"]
    if len(problems) == len(sources):
        raise problems[0]
    return sorted(jobs.values(), key=lambda entry: str(entry["id"]))[:MOST_JOBS]


def _from_queue(host: Host) -> list[dict[str, Any]]:
    entries = []
    for ticket in gpu_queue.snapshot(host.queue_dir):
        state = "submitted" if ticket.state == "new" else "running"
        phase = "queue" if ticket.state == "waiting" else None
        entry = _entry(ticket.job, ticket.user, state, phase, ticket.gpus)
        entries.append({**entry, "model": ticket.model})
    return entries


def _from_containers() -> list[dict[str, Any]]:
    client = engine.connect()
    try:
        containers = client.containers.list(sparse=True, filters={"label": f"{engine.LABEL}.job"})
    except Exception as error:
        if not engine.is_outage(error):
            raise
        raise NotReady("the Docker engine does not answer", detail=str(error)) from error
    entries = []
    for container in containers:
        labels = container.attrs.get("Labels") or {}
        phase = "training" if labels.get(f"{engine.LABEL}.kind") == "job" else None
        uid = labels.get(f"{engine.LABEL}.uid", "")
        user = account_name(int(uid)) if _UID.match(uid) else None
        gpus = [gpu for gpu in labels.get(f"{engine.LABEL}.gpus", "").split(",") if GPU.match(gpu)]
        entries.append(_entry(labels.get(f"{engine.LABEL}.job", ""), user, "running", phase, gpus[:64]))
    return entries


def _entry(
    job: str, user: Optional[str], state: str, phase: Optional[str], gpus: list[str]
) -> dict[str, Any]:
    return {
        **dict.fromkeys(UNKNOWN),
        "id": job,
        "state": state,
        "phase": phase,
        "submitter": user,
        "gpus": gpus,
        "arguments": [],
        "sweep": {},
        "other_user": True,
    }
