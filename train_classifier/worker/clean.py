"""Cleaning: old jobs, and what was kept to be quick next time, down to a budget; only what is ours."""

import dataclasses
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from train_classifier.errors import BadInput, TrainClassifierError
from train_classifier.worker import engine, finish, locks, manifest, program, spare, tree
from train_classifier.worker.host import Account, Host
from train_classifier.worker.store import Job, Store

#: Nothing used within this many seconds is removed for the budget's sake: a job may be about to use it.
FRESH_S = 600.0
#: A controller may have installed a worker just now, to call it in a moment.
WORKER_S = 86400.0
KINDS = ("jobs", "images", "environments", "caches", "workers", "containers")


@dataclasses.dataclass(frozen=True)
class Kept:
    """Something kept to be quick next time."""

    kind: str
    bytes: int
    used: float
    remove: Callable[[], bool]


class Cleaning:
    """One `clean`: what was removed, or would be."""

    def __init__(self, host: Host, store: Store, dry_run: bool) -> None:
        self.host = host
        self.store = store
        self.dry_run = dry_run
        self.account: Account = host.job_user()
        self.removed: dict[str, int] = {**dict.fromkeys(KINDS, 0), "bytes": 0}
        self.client: Optional[Any] = None

    def count(self, kind: str, size: int, remove: Callable[[], bool]) -> bool:
        """Remove one thing and count it; False when somebody uses it."""
        if not self.dry_run and not remove():
            return False
        self.removed[kind] += 1
        self.removed["bytes"] += size
        return True

    def live_jobs(self) -> list[Job]:
        """Return the jobs that have not ended."""
        return [job for job in self.store.all_jobs() if not (job.dir / "result.json").exists()]

    def jobs(self, older_s: float) -> None:
        """Remove jobs that ended long ago, and those that were never submitted."""
        now = time.time()
        for job in self.store.all_jobs():
            try:
                status = job.status()
                result = job.result()
            except TrainClassifierError:
                # Half made by a controller that went away.
                status, result = {"state": "prepared", "updated": job.created()}, None
            old = result is not None and now - float(result["finished"]) >= older_s
            if old or finish.is_abandoned(job, status):
                size = tree.disk_usage(job.dir)
                self.count("jobs", size, partial(finish.remove, job, self.account))

    def spares(self, older_s: float) -> None:
        """Remove the workspaces kept for a next job that did not come, and what killed workers left there."""
        for mirror in _children(self.store.mirrors):
            if not self.dry_run:
                spare.clear(self.store, mirror, self.account)
            folder = mirror / "spare"
            if folder.exists() and time.time() - _mtime(mirror / "spare.stamp") >= older_s:
                self.count("caches", tree.disk_usage(folder), partial(spare.discard, mirror, self.account))

    def containers(self) -> None:
        """Remove containers of this state folder whose job has ended or is gone."""
        client = self.client
        if client is None:
            return
        mine = {"label": [f"{engine.LABEL}=1"]}
        found = engine.patiently(lambda: client.containers.list(all=True, filters=mine, ignore_removed=True))
        for container in found:
            folder = container.labels.get(f"{engine.LABEL}.dir", "")
            if not folder or Path(folder).parent != self.store.jobs:
                continue
            job = Job(Path(folder))
            if not (job.dir / "result.json").exists() and job.dir.exists():
                continue
            self.count("containers", 0, partial(_remove_container, container))

    def workers(self) -> None:
        """Remove programs of other versions that no job at work names."""
        named = {str(program.PROGRAM)}
        for job in self.live_jobs():
            try:
                named.add(str(job.status().get("worker")))
            except TrainClassifierError:
                # Of a version we do not know: it may need any of them.
                return
        for folder in _children(self.store.workers):
            if str(folder) not in named and time.time() - folder.stat().st_mtime > WORKER_S:
                self.count("workers", tree.disk_usage(folder), partial(_remove_own, folder))

    def budget(self, most: int) -> int:
        """Remove what was used longest ago until the rest fits into `most` bytes; return the bytes kept."""
        kept = sorted(
            [*self._environments(), *self._caches(), *self._checkpoints(), *self._images()], key=_used
        )
        total = sum(thing.bytes for thing in kept)
        for thing in kept:
            if total <= most:
                break
            if time.time() - thing.used > FRESH_S and self.count(thing.kind, thing.bytes, thing.remove):
                total -= thing.bytes
        return total

    def _in_use(self, *path: str) -> set[Any]:
        """Return one noted fact of every job at work."""
        found = set()
        for job in self.live_jobs():
            value: Any = manifest.read_facts(job)
            for key in path:
                value = (value or {}).get(key)
            found.add(value)
        return found

    def _environments(self) -> list[Kept]:
        used = self._in_use("environment", "hash")
        return [
            Kept(
                "environments",
                tree.disk_usage(folder),
                _mtime(folder / "environment.json"),
                self._remover(folder),
            )
            for folder in _children(self.store.store / "envs")
            if folder.name not in used and not folder.name.startswith(".")
        ]

    def _caches(self) -> list[Kept]:
        used = set()
        for job in self.live_jobs():
            try:
                used.add(job.spec().repository.key)
            except TrainClassifierError:
                continue
        found = []
        for folder in _children(self.store.cache):
            mirror = self.store.mirror(folder.name)
            if folder.name not in used:
                size = tree.disk_usage(folder) + (tree.disk_usage(mirror) if mirror.exists() else 0)
                found.append(Kept("caches", size, _mtime(folder), partial(self._drop_cache, folder, mirror)))
        return found

    def _drop_cache(self, folder: Path, mirror: Path) -> bool:
        with locks.hold_now(mirror / "lock") as mine:
            if mine:
                tree.remove(self.account, folder, mirror)
            return mine

    def _checkpoints(self) -> list[Kept]:
        found = []
        for job in self.store.all_jobs():
            if (job.dir / "result.json").exists() and job.checkpoints.is_dir():
                size = tree.disk_usage(job.checkpoints)
                if size:
                    remove = self._remover(job.checkpoints)
                    found.append(Kept("caches", size, _mtime(job.dir / "result.json"), remove))
        return found

    def _images(self) -> list[Kept]:
        """Return the package layers that this account made and no container or job uses."""
        if self.client is None:
            return []
        client = self.client
        wanted = [f"{engine.LABEL}=1", f"{engine.LABEL}.kind=image", f"{engine.LABEL}.uid={os.geteuid()}"]
        images = engine.patiently(lambda: client.images.list(filters={"label": wanted}))
        used = self._in_use("image", "id")
        found = []
        for image in images:
            if image.id in used:
                continue
            records = list(self.store.images.glob(f"{image.id.partition(':')[2]}*.json"))
            seen = max((_mtime(record) for record in records), default=0.0)
            size = int(image.attrs.get("Size", 0)) - _parent_size(client, image)
            found.append(Kept("images", max(size, 0), seen, partial(_remove_image, client, image)))
        return found

    def _remover(self, folder: Path) -> Callable[[], bool]:
        def remove() -> bool:
            tree.remove(self.account, folder)
            return True

        return remove


def clean(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    """Remove jobs that ended more than `older_s` seconds ago, and keep what makes jobs quick within a budget.

    `keep_environments_bytes` bounds environments, caches, checkpoints and layers together; None leaves
    them. With `dry_run` nothing is removed, only counted. Raises BadInput.
    """
    older = _number(request, "older_s")
    most = _number(request, "keep_environments_bytes")
    cleaning = Cleaning(host, store, bool(request.get("dry_run")))
    try:
        cleaning.client = engine.connect()
    except TrainClassifierError:
        # Folders can be cleaned without an engine, to make room for one to start.
        cleaning.client = None
    if not cleaning.dry_run and cleaning.client is not None:
        finish.sweep(store, host, cleaning.client)
    if older is not None:
        cleaning.jobs(older)
        cleaning.spares(older)
    cleaning.containers()
    cleaning.workers()
    kept = cleaning.budget(1 << 62 if most is None else int(most))
    return {"removed": cleaning.removed, "kept_bytes": kept}


def _number(request: dict[str, Any], name: str) -> Optional[float]:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 62:
        raise BadInput(f"{name} is {value!r}, wanted a number that is not negative")
    return float(value)


def _used(thing: Kept) -> float:
    return thing.used


def _mtime(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:
        return []


def _remove_own(folder: Path) -> bool:
    shutil.rmtree(folder)
    return True


def _remove_container(container: Any) -> bool:
    engine.remove(container)
    return True


def _parent_size(client: Any, image: Any) -> int:
    import docker.errors

    parent = image.attrs.get("Parent")
    if not parent:
        return 0
    try:
        return int(client.images.get(parent).attrs.get("Size", 0))
    except docker.errors.ImageNotFound:
        return 0


def _remove_image(client: Any, image: Any) -> bool:
    import docker.errors

    try:
        for tag in image.tags or [image.id]:
            client.images.remove(tag)
    except docker.errors.APIError as error:
        # 409: a container, perhaps of another user, was made from it.
        if error.status_code in (404, 409):
            return False
        raise
    return True
