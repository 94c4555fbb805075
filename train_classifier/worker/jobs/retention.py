"""Items that are kept to make later jobs faster, and their size: environments, uv's cache, caches, layers.

Before an item is removed, it is checked again under the lock that its users take: measuring takes long, and a
new job may have started meanwhile.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.core import locks
from train_classifier.core.errors import TrainClassifierError
from train_classifier.worker.containers import package_layers
from train_classifier.worker.environments import build_folder
from train_classifier.worker.state import file_trees, results
from train_classifier.worker.state.store import Job, Store, take_over
from train_classifier.worker.system.host import Account

#: An item used within this many seconds is not removed for the budget: a job may be about to use it.
FRESH_S = 600.0


@dataclasses.dataclass(frozen=True)
class ReusableItem:
    """One item that is kept for later jobs."""

    kind: str
    #: Bytes on disk that no other item counts.
    bytes: int
    used: float
    remove: Callable[[], bool]


def live_jobs(store: Store) -> list[Job]:
    """Return the jobs that have not ended."""
    ids = [job_id for job_id in store.job_ids() if not (store.jobs / job_id / "result.json").exists()]
    return [Job(store.jobs / job_id) for job_id in ids]


def is_fresh(path: Path) -> bool:
    """Tell whether an item was used within the last FRESH_S seconds."""
    return time.time() - mtime(path) <= FRESH_S


def mtime(path: Path) -> float:
    """Return when a path was changed last, 0 when it is gone."""
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def children(folder: Path) -> list[Path]:
    """Return the folders in a folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:
        return []


class ReusableItems:
    """The reusable items of one state folder."""

    def __init__(self, store: Store, account: Account, client: Optional[Any]) -> None:
        self.store = store
        self.account = account
        self.client = client

    def all_items(self) -> list[ReusableItem]:
        """Return every item that may be removed, the least recently used first."""
        items = [
            *self._environments(),
            *self._uv_caches(),
            *self._caches(),
            *self._checkpoints(),
            *self._images(),
        ]
        return sorted(items, key=lambda item: item.used)

    def _in_use(self, *path: str) -> set[Any]:
        """Return the values of one recorded fact of all jobs that have not ended."""
        values = set()
        for job in live_jobs(self.store):
            value: Any = results.read_facts(job)
            for key in path:
                value = (value or {}).get(key)
            values.add(value)
        return values

    def _environments(self) -> Iterator[ReusableItem]:
        used = self._in_use("environment", "hash")
        for folder in children(self.store.envs):
            if folder.name not in used:
                used_at = mtime(folder / build_folder.RECORD)
                remove = partial(self._remove_environment, folder)
                yield ReusableItem("environments", file_trees.disk_usage(None, folder), used_at, remove)

    def _remove_environment(self, folder: Path) -> bool:
        # A job that takes an environment holds this lock until the environment is marked as used.
        with locks.hold_now(self.store.locks / f"environment-{folder.name}.lock") as is_locked:
            record = folder / build_folder.RECORD
            busy = is_fresh(record) or folder.name in self._in_use("environment", "hash")
            if not is_locked or busy:
                return False
            build_folder.remove(self.account, folder)
        return True

    def _uv_caches(self) -> Iterator[ReusableItem]:
        """Yield uv's caches; without one the next build downloads again."""
        for folder in children(self.store.uv_caches):
            lock = self.store.locks / f"{folder.name}.lock"
            yield ReusableItem(
                "caches",
                file_trees.disk_usage(None, folder),
                mtime(lock),
                partial(self._remove_uv_cache, folder, lock),
            )

    def _remove_uv_cache(self, folder: Path, lock: Path) -> bool:
        # Builds hold it shared.
        with locks.hold_now(lock) as is_locked:
            if not is_locked or is_fresh(lock):
                return False
            file_trees.remove(self.account, folder)
        return True

    def _repositories_in_use(self) -> set[str]:
        used = set()
        for job in live_jobs(self.store):
            try:
                used.add(job.spec().repository.key)
            except TrainClassifierError:
                continue
        return used

    def _caches(self) -> Iterator[ReusableItem]:
        used = self._repositories_in_use()
        for folder in children(self.store.cache):
            mirror = self.store.mirror(folder.name)
            if folder.name not in used:
                size = file_trees.disk_usage(self.account, folder, mirror / "tree")
                yield ReusableItem("caches", size, mtime(folder), partial(self._remove_cache, folder, mirror))

    def _remove_cache(self, folder: Path, mirror: Path) -> bool:
        if not mirror.exists():
            file_trees.remove(self.account, folder)
            return True
        take_over(mirror, self.account)
        with locks.hold_now(mirror / "lock") as is_locked:
            # `prepare` touches the cache before a push takes the mirror's lock.
            if not is_locked or is_fresh(folder) or folder.name in self._repositories_in_use():
                return False
            file_trees.remove(self.account, folder, mirror / "tree")
            file_trees.remove(None, mirror)
        return True

    def _checkpoints(self) -> Iterator[ReusableItem]:
        for job in self.store.all_jobs():
            if (job.dir / "result.json").exists() and os.path.lexists(job.checkpoints):
                size = file_trees.disk_usage(self.account, job.checkpoints)
                if size:
                    # A job with --resume updates the file `resumed` of the job whose checkpoints it copies.
                    used = max(mtime(job.dir / "result.json"), mtime(job.dir / "resumed"))
                    yield ReusableItem("caches", size, used, partial(self._remove_checkpoints, job))

    def _remove_checkpoints(self, job: Job) -> bool:
        if job.is_foreign:
            # No lock file is created in a folder of another account; the job has ended.
            file_trees.remove(self.account, job.checkpoints)
            return True
        with locks.hold_now(job.lock) as is_locked:
            if not is_locked or is_fresh(job.dir / "resumed"):
                return False
            file_trees.remove(self.account, job.checkpoints)
        return True

    def _images(self) -> Iterator[ReusableItem]:
        """Yield the package layers that this account made and no container or job uses."""
        if self.client is None:
            return
        client = self.client
        used = self._in_use("image", "id")
        for summary in package_layers.listed(client, os.geteuid()):
            identity = summary["Id"]
            if identity in used:
                continue
            size = int(summary.get("Size", 0)) - _parent_size(client, summary.get("ParentId"))
            remove = partial(self._remove_image, identity, summary.get("RepoTags") or [])
            yield ReusableItem("images", max(size, 0), self._image_used(identity), remove)

    def _image_used(self, identity: str) -> float:
        records = self.store.images.glob(f"{identity.partition(':')[2]}*.json")
        return max((mtime(record) for record in records), default=0.0)

    def _remove_image(self, identity: str, tags: list[str]) -> bool:
        fresh = time.time() - self._image_used(identity) <= FRESH_S
        if fresh or identity in self._in_use("image", "id"):
            return False
        return package_layers.remove(tags or [identity])


def _parent_size(client: Any, parent: Optional[str]) -> int:
    import docker.errors

    if not parent:
        return 0
    try:
        return int(client.api.inspect_image(parent).get("Size", 0))
    except docker.errors.NotFound:
        return 0
