"""The state folder: its layout, a job's folder, and files that are written whole or not at all."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Optional

from train_classifier.errors import BadInput, NotReady
from train_classifier.job import JOB_ID, SCHEMA, STATES, JobSpec
from train_classifier.worker.host import Account, boot_id, uptime

#: More than status, facts, manifest and result of a job take.
RESERVE_BYTES = 1 << 18


def write_bytes(path: Path, data: bytes, mode: int = 0o600, sync: bool = True) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename.

    Without `sync` it is whole for whoever looks, but may be lost with the power.

    What root writes belongs to the owner of the folder, so that the job's user can read and remove it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode
    )
    try:
        try:
            _hand_over(descriptor, path.parent)
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any, mode: int = 0o600) -> None:
    """Write JSON as `write_bytes` does."""
    write_bytes(path, json.dumps(data, indent=1, sort_keys=True).encode() + b"\n", mode)


def read_json(path: Path) -> Any:
    """Return the JSON of a file, None when it is missing. Raises NotReady when it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise NotReady(f"{path} is damaged: {error}") from error


def _hand_over(descriptor: int, folder: Path) -> None:
    if os.geteuid() == 0:
        owner = os.stat(folder)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make_folder(path: Path, mode: int, owner: Optional[Account] = None) -> Path:
    """Make a folder (not its parents) of this mode, owned by `owner` if root calls; an existing one stays."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return path
    os.chmod(path, mode)
    if owner is not None and os.geteuid() == 0:
        os.chown(path, owner.uid, owner.gid)
    return path


def make_leaf(path: Path, account: Account) -> Path:
    """Make a folder that `account` writes into, in one of the submitter's; open an existing one again."""
    make_folder(path, 0o700)
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)
    # Whoever wrote into it may have closed it.
    os.chmod(path, 0o700)
    return path


class Store:
    """The state folder of one submitting account."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs = root / "jobs"
        self.mirrors = root / "mirrors"
        self.cache = root / "cache"
        #: What the last release kept there; see `kept`.
        self.old_environments = root / "store"
        self.environments = root / "environments"
        self.envs = self.environments / "envs"
        self.locks = self.environments / "locks"
        self.builds = self.environments / "build"
        #: uv's caches: one for each image, and one for each repository that builds something.
        self.uv_caches = self.environments / "uv-caches"
        self.images = root / "images"
        self.proofs = root / "proofs"
        self.workers = root / "workers"

    @classmethod
    def of(cls, job_dir: Path) -> "Store":
        """Return the store that a job's folder lies in."""
        return cls(job_dir.parent.parent)

    def make(self, account: Account) -> "Store":
        """Make the folders; what the job's user must write into belongs to `account`. Raises NotReady."""
        # Root's folders are walked through by the service account, a person's are private.
        through = 0o711 if os.geteuid() == 0 else 0o700
        try:
            os.makedirs(self.root.parent, exist_ok=True)
            for path in (self.root, self.jobs, self.mirrors, self.cache):
                make_folder(path, through)
            for path in (self.environments, self.envs, self.builds, self.uv_caches):
                make_folder(path, through)
            for path in (self.locks, self.images, self.proofs):
                make_folder(path, 0o700)
            make_folder(self.workers, 0o755)
        except OSError as error:
            raise NotReady(
                f"the state folder {self.root} cannot be made: {error}",
                "choose another with the setting state_dir",
            ) from error
        return self

    def mirror(self, key: str) -> Path:
        """Return the folder of a repository's mirror: `tree/` and `lock`."""
        return self.mirrors / key

    def job(self, job_id: str) -> "Job":
        """Return the job with exactly this id. Raises BadInput when there is none."""
        if not JOB_ID.match(job_id) or not (self.jobs / job_id).is_dir():
            raise BadInput(f"there is no job {job_id!r} in {self.jobs}", hint="see the list of jobs")
        return Job(self.jobs / job_id)

    def all_jobs(self) -> list["Job"]:
        """Return every job, oldest first."""
        try:
            names = sorted(os.listdir(self.jobs))
        except FileNotFoundError:
            return []
        return [Job(self.jobs / name) for name in names if JOB_ID.match(name)]

    def find(self, wanted: Any) -> "Job":
        """Return the job that an id, a unique beginning of one, or `last` names.

        Raises BadInput, each case in its own words.
        """
        hint = "see the list of jobs; the jobs of other users are theirs alone"
        if not isinstance(wanted, str) or not wanted:
            raise BadInput(f"job id {wanted!r}", hint=hint)
        jobs = self.all_jobs()
        if wanted == "last":
            for job in sorted(jobs, key=lambda job: (job.created(), job.id), reverse=True):
                # A push that was cut leaves a folder that never became a job.
                state = (read_json(job.dir / "status.json") or {}).get("state")
                if state and state not in STATES[:2]:
                    return job
            raise BadInput(f"there is no job in {self.jobs}", hint=hint)
        found = [job for job in jobs if job.id.startswith(wanted)]
        if not found:
            raise BadInput(f"there is no job {wanted!r} in {self.jobs}", hint=hint)
        if len(found) > 1:
            names = ", ".join(job.id for job in found[:5]) + (", …" if len(found) > 5 else "")
            raise BadInput(f"job id {wanted!r} is ambiguous: {names}", hint="give more of the id")
        return found[0]


class Job:
    """A job's folder; its files are its state."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.id = folder.name
        self.lock = folder / "lock"
        self.log = folder / "log.txt"
        self.usage = folder / "usage.csv"
        self.archive = folder / "artefacts.tar.gz"
        self.manifest = folder / "manifest.json"
        self.cancel = folder / "cancel"
        self.lease = folder / "lease"
        self.workspace = folder / "workspace"
        #: By which files of the workspace are recognised; see `spare`.
        self.stamp = folder / "stamp"
        self.checkpoints = folder / "checkpoints"
        self.run = folder / "run"
        self.home = folder / "home"
        #: What lay in artefacts/ before training.
        self.stock = folder / "stock.json"
        #: What the packer said, from then on until result.json is there.
        self.packed = folder / "packed.json"
        #: Space for the last papers of a job that filled the disk.
        self.reserve = folder / "reserve"
        self._writing = threading.Lock()

    def spec(self) -> JobSpec:
        """Return the specification. Raises BadInput when it is missing or of another schema."""
        try:
            return JobSpec.from_dict(read_json(self.dir / "spec.json"))
        except ValueError as error:
            raise BadInput(*f"{error}".splitlines()) from error

    def status(self) -> dict[str, Any]:
        """Return status.json. Raises BadInput when missing, NotReady when damaged or of another schema."""
        data = read_json(self.dir / "status.json")
        if not isinstance(data, dict):
            raise BadInput(f"{self.dir} is not a complete job")
        if data.get("schema") != SCHEMA:
            raise NotReady(
                f"job {self.id} is of another version of train-classifier (schema {data.get('schema')})",
                "use that version to look at it",
            )
        return data

    def result(self) -> Optional[dict[str, Any]]:
        """Return result.json, None as long as the job has not ended."""
        data: Optional[dict[str, Any]] = read_json(self.dir / "result.json")
        return data

    def write_status(self, **changes: Any) -> dict[str, Any]:
        """Change status.json as a whole, counting its version up; returns it. Callers hold the job's lock."""
        with self._writing:
            data = read_json(self.dir / "status.json") or {"schema": SCHEMA, "id": self.id, "version": 0}
            data.update(changes)
            data["version"] += 1
            data["updated"] = time.time()
            # The same on a clock that nobody sets.
            data["updated_uptime"], data["updated_boot"] = uptime(), boot_id()
            write_json(self.dir / "status.json", data)
            return dict(data)

    def keep_reserve(self) -> None:
        """Take the space that the job's last papers will want. Raises OSError on a full disk."""
        descriptor = os.open(self.reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _hand_over(descriptor, self.dir)
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)

    def drop_reserve(self) -> None:
        """Give that space back, to write into. Idempotent."""
        self.reserve.unlink(missing_ok=True)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_json(self.dir / "result.json", result)

    def created(self) -> float:
        """Return when the job was made, in seconds since the epoch."""
        try:
            return os.stat(self.dir / "spec.json").st_mtime
        except FileNotFoundError:
            return 0.0
