"""Removes old jobs, and items kept for later jobs down to a budget; only files of this program."""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core.errors import BadInput, NotReady, TrainClassifierError
from train_classifier.worker.containers import engine
from train_classifier.worker.jobs import query, recover, removal
from train_classifier.worker.jobs.query import number
from train_classifier.worker.jobs.retention import FRESH_S, ReusableItems, children, live_jobs
from train_classifier.worker.state import file_trees, run_records
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account, Host

#: A worker newer than this many seconds stays: a controller may have installed it to call it next.
WORKER_S = 86400.0
KINDS = ("jobs", "images", "environments", "caches", "workers", "containers")


class Cleaning:
    """One run of `clean`, and the counts of what it removed, or with `dry_run` would remove."""

    def __init__(self, host: Host, store: Store, dry_run: bool) -> None:
        self.host = host
        self.store = store
        self.dry_run = dry_run
        self.account: Account = host.job_user()
        self.removed: dict[str, int] = {**dict.fromkeys(KINDS, 0), "bytes": 0}
        self.client: Optional[Any] = None
        #: The first item that could not be removed: the others are removed nevertheless.
        self.failure: Optional[TrainClassifierError] = None

    def count(self, kind: str, size: int, remove: Callable[[], Optional[bool]]) -> bool:
        """Remove one item and count it; False when it is in use, and `remove` therefore returns False."""
        try:
            if not self.dry_run and remove() is False:
                return False
        except TrainClassifierError as error:
            self.failure = self.failure or error
            return False
        self.removed[kind] += 1
        self.removed["bytes"] += size
        return True

    def jobs(self, older_s: float) -> None:
        """Remove jobs that ended long ago, and those that were never submitted."""
        now = time.time()
        for job in self.store.all_jobs():
            try:
                status = job.status()
                result = job.result()
            except BadInput:
                # The job was only partly created, by a controller that is gone.
                status, result = {"state": "prepared", "updated": self.store.created(job.id)}, None
            except NotReady:
                # The job is of another version, or damaged: a job that cannot be read is not removed.
                continue
            if job.is_foreign and recover.is_tampered(job, status):
                self.count("jobs", removal.disk_usage(job, self.account), partial(self._remove_tampered, job))
                continue
            old = result is not None and now - float(result.get("finished", now)) >= older_s
            if old or removal.is_abandoned(job, status):
                size = removal.disk_usage(job, self.account)
                self.count("jobs", size, partial(self._remove_job, job, old))

    def _remove_job(self, job: Job, is_run: bool) -> bool:
        entry = query.entry_of(job, self.host) if is_run else None
        # Before it goes: a run that is kept twice counts once. On a full disk there is room only afterwards.
        is_kept = self._keep_run(entry)
        is_removed = removal.remove(job, self.account)
        if is_removed and not is_kept:
            self._keep_run(entry)
        return is_removed

    def _keep_run(self, entry: Optional[dict[str, Any]]) -> bool:
        try:
            if entry is not None:
                run_records.keep(self.store, entry)
        except OSError:
            return False
        return True

    def _remove_tampered(self, job: Job) -> bool:
        if self.client is None:
            return False
        engine.remove_all(self.client, job.id)
        recover.remove_ticket(self.host, job)
        return removal.remove(job, self.account)

    def containers(self) -> None:
        """Remove containers of this state folder whose job has ended or is gone."""
        client = self.client
        if client is None:
            return
        filters = {"label": [f"{engine.LABEL}=1"]}
        containers = engine.retry(
            lambda: client.containers.list(all=True, filters=filters, ignore_removed=True)
        )
        for container in containers:
            folder = container.labels.get(f"{engine.LABEL}.dir", "")
            if engine.is_leftover(container):
                self.count("containers", 0, partial(engine.remove, container))
            if not folder or Path(folder).parent != self.store.jobs:
                continue
            job = Job(Path(folder))
            if not (job.dir / "result.json").exists() and job.dir.exists():
                continue
            self.count("containers", 0, partial(engine.remove, container))

    def workers(self) -> None:
        """Remove worker programs of other versions that no unfinished job names."""
        used_workers = {str(program.PROGRAM)}
        for job in live_jobs(self.store):
            try:
                used_workers.add(str(job.status().get("worker")))
            except TrainClassifierError:
                # The job is of an unknown version, and may need any of the programs.
                return
        for folder in children(self.store.workers):
            if str(folder) not in used_workers and time.time() - folder.stat().st_mtime > WORKER_S:
                self.count("workers", file_trees.disk_usage(None, folder), partial(shutil.rmtree, folder))

    def old_environments(self) -> None:
        """Remove the environments of the last release when no job is left that may still use them."""
        folder = self.store.old_environments
        if folder.is_dir() and not folder.is_symlink() and not live_jobs(self.store):
            remove = partial(file_trees.remove, self.account, folder)
            self.count("environments", file_trees.disk_usage(None, folder), remove)

    def budget(self, max_bytes: int) -> int:
        """Remove the least recently used items until the rest fits into `max_bytes`; return its bytes."""
        items = ReusableItems(self.store, self.account, self.client).all_items()
        total = sum(item.bytes for item in items)
        for item in items:
            if total <= max_bytes:
                break
            is_old = time.time() - item.used > FRESH_S
            if is_old and self.count(item.kind, item.bytes, item.remove):
                total -= item.bytes
        return total


def clean(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Remove jobs that ended more than `older_s` seconds ago, and kept items that exceed the budget.

    `keep_environments_bytes` bounds environments, caches, checkpoints and layers together; None leaves
    them. With `dry_run` nothing is removed, only counted. Raises BadInput, and at the end
    the error of the first item that could not be removed.
    """
    older_s = number(request, "older_s", -1, 1 << 62)
    max_bytes = number(request, "keep_environments_bytes", 1 << 62, 1 << 62)
    cleaning = Cleaning(host, store, bool(request.get("dry_run")))
    try:
        cleaning.client = engine.connect()
    except TrainClassifierError:
        # Folders can be cleaned without an engine, to make room for one to start.
        cleaning.client = None
    if not cleaning.dry_run and cleaning.client is not None:
        recover.finish_dead_jobs(store, host)
    if older_s >= 0:
        cleaning.jobs(older_s)
    cleaning.containers()
    cleaning.workers()
    cleaning.old_environments()
    remaining_bytes = cleaning.budget(int(max_bytes))
    if cleaning.failure is not None:
        raise cleaning.failure
    return {"removed": cleaning.removed, "kept_bytes": remaining_bytes}
