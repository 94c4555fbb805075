"""The state folder: its layout, and a job's folder."""

import contextlib
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any, Optional, Union

from train_classifier.core import locks
from train_classifier.core.errors import AmbiguousId, BadInput, ExitCode, NotReady
from train_classifier.core.job import JOB_ID, LAST_SCHEMA, SCHEMA, STATES, JobSpec
from train_classifier.worker.state import file_trees
from train_classifier.worker.state.files import (
    make_folder,
    make_passage,
    open_passage,
    opened_folder,
    read_json,
    write_json,
)
from train_classifier.worker.system.host import Account, boot_id, uptime
from train_classifier.worker.system.launcher import CRASH_FILE

#: Fields of status.json that are used in calculations, and so must be numbers.
TIMES = ("updated", "updated_uptime", "submitted_uptime", "submitted", "started")

#: More than status, facts, manifest and result of a job take.
RESERVE_BYTES = 1 << 18
#: Most remarks that a job's status keeps.
MOST_NOTES = 20


class Store:
    """The state folder of one submitting account.

    That account owns every folder that structures the state; only leaves belong to the job's account.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs = root / "jobs"
        self.mirrors = root / "mirrors"
        self.cache = root / "cache"
        #: The environments of the last release; `clean` removes them.
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

    def make(self) -> "Store":
        """Make the folders, without the leaves of the job's account. Raises NotReady."""
        # The job's account must pass through root's folders; the folders of a user are private.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        try:
            os.makedirs(self.root.parent, exist_ok=True)
            for path in (self.root, self.jobs, self.mirrors, self.cache):
                make_folder(path, mode)
            for path in (self.environments, self.envs, self.builds, self.uv_caches):
                make_folder(path, mode)
            for path in (self.locks, self.images, self.proofs):
                make_folder(path, 0o700)
            make_folder(self.workers, 0o755)
        except OSError as error:
            raise NotReady(
                f"the state folder {self.root} cannot be created: {error}",
                "choose another with the setting state_dir",
            ) from error
        return self

    def mirror(self, key: str) -> Path:
        """Return the folder of a repository's mirror: `tree/`, `lock` and `fingerprint`."""
        return self.mirrors / key

    def make_mirror(self, key: str, account: Account) -> Path:
        """Make the folder of a repository's mirror, and take over one that the last release left."""
        mirror = make_passage(self.mirror(key), account)
        take_over(mirror, account)
        make_folder(mirror / "tree", 0o755, account)
        return mirror

    def job(self, job_id: str) -> "Job":
        """Return the job with exactly this id. Raises BadInput when there is none."""
        if not JOB_ID.match(job_id) or not (self.jobs / job_id).is_dir():
            raise BadInput(f"there is no job {job_id!r} in {self.jobs}", hint="see the list of jobs")
        return Job(self.jobs / job_id)

    def job_ids(self) -> list[str]:
        """Return the id of every job, oldest first."""
        try:
            return sorted(filter(JOB_ID.match, os.listdir(self.jobs)))
        except FileNotFoundError:
            return []

    def all_jobs(self) -> list["Job"]:
        """Return every job, oldest first."""
        return [Job(self.jobs / name) for name in self.job_ids()]

    def group(self, name: Any) -> list["Job"]:
        """Return the jobs of the group that an id, a unique beginning of one, or `last` names.

        Empty where it names something else. A group of which one job is left is a group.
        """
        if not isinstance(name, str) or not name or JOB_ID.match(name):
            return []
        if name == "last":
            with contextlib.suppress(BadInput):
                name = self.find(name).id[:-2]
        jobs = [Job(self.jobs / job_id) for job_id in self.job_ids() if job_id.startswith(name)]
        group = jobs[0].id[:-2] if jobs else ""
        is_group = group.startswith(name) and all(job.id.startswith(group) for job in jobs)
        # A job whose specification is damaged has its id still.
        return jobs if is_group and any(job.group() == group for job in jobs) else []

    def find(self, name: Any) -> "Job":
        """Return the job that an id, a unique beginning of one, or `last` names.

        Raises BadInput with a different message for each case.
        """
        hint = "see the list of jobs; the jobs of other users are not shown"
        if not isinstance(name, str) or not name:
            raise BadInput(f"job id {name!r}", hint=hint)
        ids = self.job_ids()
        if name == "last":
            for job_id in sorted(ids, key=lambda job_id: (self.created(job_id), job_id), reverse=True):
                # An interrupted push leaves a folder that is not a job.
                state = (read_json(self.jobs / job_id / "status.json") or {}).get("state")
                if state and state not in STATES[:2]:
                    return Job(self.jobs / job_id)
            raise BadInput(f"there is no job in {self.jobs}", hint=hint)
        matches = [job_id for job_id in ids if job_id.startswith(name)]
        if not matches:
            raise BadInput(f"there is no job {name!r} in {self.jobs}", hint=hint)
        if len(matches) > 1:
            names = ", ".join(matches[:5]) + (", …" if len(matches) > 5 else "")
            raise AmbiguousId(
                f"job id {name!r} is ambiguous: {names}", hint="enter more characters of the id"
            )
        return Job(self.jobs / matches[0])

    def created(self, job_id: str) -> float:
        """Return when a job was made, in seconds since the epoch."""
        try:
            return os.lstat(os.path.join(self.jobs, job_id, "spec.json")).st_mtime
        except FileNotFoundError:
            return 0.0


def is_settled(folder: Union[Path, str]) -> bool:
    """Tell by the entries of a job's folder whether it ended and has nothing left to remove; `run` goes last.

    No file is read: a host has many old jobs. False in a folder of another account, which can feign this.
    """
    try:
        os.lstat(os.path.join(folder, "result.json"))
        is_own = os.lstat(folder).st_uid == os.geteuid()
    except OSError:
        return False
    return is_own and not os.path.lexists(os.path.join(folder, "run"))


def take_over(mirror: Path, account: Account) -> None:
    """Make the caller the owner of a mirror's folder, and remove what the last release kept beside the tree.

    In that release the folder belonged to the job's account, and held the workspace of the previous job.
    """
    with opened_folder(mirror) as descriptor:
        was_foreign = os.fstat(descriptor).st_uid != os.geteuid()
        if was_foreign:
            os.fchown(descriptor, os.geteuid(), account.gid)
            os.fchmod(descriptor, 0o710)
    # From here on nobody else can change what lies in the folder.
    for name in os.listdir(mirror):
        path = mirror / name
        if name == "tree":
            stays = stat.S_ISDIR(os.lstat(path).st_mode)
        elif name == "lock":
            # A push by the last release may be in progress.
            stays = stat.S_ISREG(os.lstat(path).st_mode) and (not was_foreign or locks.is_held(path))
        else:
            is_from_last_release = name.startswith("spare") or JOB_ID.match(name.partition(".")[0])
            stays = not was_foreign and not is_from_last_release
        if not stays:
            file_trees.remove(account, path)
            file_trees.remove(None, path)


class Job:
    """A job's folder; its files are its state.

    They belong to the account that submits. The job's account owns the leaves that the model works in
    (workspace, checkpoints, home), and the FIFOs in `run`.
    """

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.id = folder.name
        self.lock = folder / "lock"
        self.log = folder / "log.txt"
        self.usage = folder / "usage.csv"
        self.archive = folder / "artefacts.tar.gz"
        self.manifest = folder / "manifest.json"
        self.report = folder / "report.html"
        self.cancel = folder / "cancel"
        self.lease = folder / "lease"
        self.workspace = folder / "workspace"
        #: Locked while the mirror is copied into the workspace; holds cp's output; see `workspace_copy`.
        self.copy = folder / "copy"
        self.checkpoints = folder / "checkpoints"
        #: A path by which the engine reaches checkpoints that are closed to it otherwise.
        self.checkpoints_handle: Optional[Path] = None
        self.run = folder / "run"
        self.home = folder / "home"
        #: What lay in the folders of results before training.
        self.stock = folder / "stock.json"
        #: The packer's answer, kept until result.json is written.
        self.packed = folder / "packed.json"
        self.crash = folder / CRASH_FILE
        #: Reserved space for the last records of a job that filled the disk.
        self.reserve = folder / "reserve"
        self._writing = threading.Lock()

    @property
    def is_foreign(self) -> bool:
        """Whether the folder is another account's: the last release gave root's jobs to the job's account.

        Only that account itself creates or changes anything in the folder.
        """
        try:
            return os.lstat(self.dir).st_uid != os.geteuid()
        except FileNotFoundError:
            return False

    def make(self, account: Account) -> None:
        """Make the folder, `run` and the leaves of the job's account.

        Raises FileExistsError when there is a job of this id.
        """
        os.mkdir(self.dir, 0o700)
        try:
            open_passage(self.dir, account)
            make_passage(self.run, account)
            make_folder(self.workspace, 0o755, account)
            for folder in (self.home, self.checkpoints):
                make_folder(folder, 0o700, account)
        except BaseException:
            file_trees.remove(None, self.dir)
            raise

    def spec(self) -> JobSpec:
        """Return the specification. Raises BadInput when it is missing or of another schema."""
        data = read_json(self.dir / "spec.json")
        if isinstance(data, dict) and data.get("schema") == LAST_SCHEMA:
            data = {**data, "schema": SCHEMA}
        try:
            return JobSpec.from_dict(data)
        except ValueError as error:
            raise BadInput(*str(error).splitlines()) from error

    def group(self) -> Optional[str]:
        """Return the group that the job is of, as its specification says; None where it says nothing."""
        with contextlib.suppress(NotReady, OSError):
            data = read_json(self.dir / "spec.json")
            return str(data.get("group")) if isinstance(data, dict) and data.get("group") else None
        return None

    def status(self) -> dict[str, Any]:
        """Return status.json. Raises BadInput when missing, NotReady when damaged or of another schema."""
        data = read_json(self.dir / "status.json")
        if not isinstance(data, dict):
            raise BadInput(f"{self.dir} is not a complete job")
        if data.get("schema") not in (SCHEMA, LAST_SCHEMA):
            raise NotReady(
                f"job {self.id} is of another version of train-classifier (schema {data.get('schema')})",
                "use that version for this job",
            )
        numbers = [data.get("version"), *(data.get(name) or 0 for name in TIMES)]
        if data.get("state") not in STATES or not all(isinstance(number, (int, float)) for number in numbers):
            raise NotReady(f"{self.dir / 'status.json'} is damaged")
        return data

    def result(self) -> Optional[dict[str, Any]]:
        """Return result.json, None as long as the job has not ended. Raises NotReady when it is damaged."""
        data = read_json(self.dir / "result.json")
        if data is not None and (not isinstance(data, dict) or data.get("exit_code") not in list(ExitCode)):
            raise NotReady(f"{self.dir / 'result.json'} is damaged")
        return data

    def write_status(self, **changes: Any) -> dict[str, Any]:
        """Change status.json in one step, increment its version and return it; the job's lock is held."""
        with self._writing:
            data = read_json(self.dir / "status.json") or {"schema": SCHEMA, "id": self.id, "version": 0}
            data.update(changes)
            data["version"] += 1
            data["updated"] = time.time()
            # The same time on a clock that is never adjusted.
            data["updated_uptime"], data["updated_boot"] = uptime(), boot_id()
            write_json(self.dir / "status.json", data)
            return dict(data)

    def add_note(self, text: str) -> None:
        """Add a remark that stays in the job's status, under `notes`: at most MOST_NOTES."""
        notes = (read_json(self.dir / "status.json") or {}).get("notes") or []
        if text not in notes and len(notes) < MOST_NOTES:
            self.write_status(notes=[*notes, text], message=text)

    def make_reserve(self) -> None:
        """Reserve the space that the job's last records need. Raises OSError on a full disk."""
        descriptor = os.open(self.reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)

    def release_reserve(self) -> None:
        """Release the reserved space, so that the records can be written. Idempotent."""
        self.reserve.unlink(missing_ok=True)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_json(self.dir / "result.json", result)
