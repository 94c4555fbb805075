"""The host's configuration by its administrator: host.json, the job's account, and the state folder."""

import dataclasses
import json
import os
import pwd
import re
import stat
import time
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import BadInput, NotReady
from train_classifier.core.file_systems import NETWORK_FILE_SYSTEMS, OVERLAY_FILE_SYSTEMS

ROOT = Path("/var/lib/train-classifier")
SCHEMA = 1
FIVE_GIB = 5 << 30
#: Settings that name a file or a folder.
PATHS = ("uv", "queue_dir", "ca_bundle", "apt_sources", "root", "slurm_shared_dir")
#: What starts the jobs that this host accepts: its own launcher, or Slurm on one of the nodes.
JOB_ENGINES = ("docker", "slurm")
#: The smallest limits of builds with which an engine starts a container at all, and the largest number.
MIN_LIMITS = {"build_memory_bytes": 16 << 20, "build_pids": 16, "build_cpus": 0.01, "build_timeout_s": 1}
MAX_LIMIT = 1 << 50


@dataclasses.dataclass(frozen=True)
class Account:
    """An account of the host."""

    name: str
    uid: int
    gid: int
    home: str

    def options(self) -> dict[str, Any]:
        """Return the keywords of subprocess.Popen that run a child as this account."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def environment(self) -> dict[str, str]:
        """Return a clean environment for a child that runs as this account."""
        return {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
        }


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a container that builds or checks something for a job."""

    #: What the container does, as a phrase for messages.
    purpose: str
    memory_bytes: int
    pids: int
    cpus: float
    timeout_s: float
    #: The memory is what Slurm gave the job, less than the host lets builds have.
    has_memory_of_job: bool = False


@dataclasses.dataclass(frozen=True)
class Host:
    """The settings of host.json; see docs/architecture.md."""

    images: dict[str, str] = dataclasses.field(default_factory=dict)
    uv: Path = ROOT / "bin" / "uv"
    queue_dir: Path = ROOT / "queue"
    service_user: str = "train-classifier"
    #: None: the default of the account; see `state_dir`.
    configured_state_dir: Optional[str] = None
    ca_bundle: Optional[Path] = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    apt_sources: Optional[Path] = None
    gpu_check: Optional[str] = None
    disk_floor_bytes: int = FIVE_GIB
    #: "allowed" where the administrator lets containers reach the metadata service of a cloud.
    metadata_service: str = "blocked"
    #: Limits of builds and checks; see `limits`. None: as much as this host can give.
    build_memory_bytes: Optional[int] = None
    build_pids: int = 4096
    build_cpus: Optional[float] = None
    build_timeout_s: float = 3600
    #: Folders below which a repository's own settings file may name data.
    data_roots: tuple[str, ...] = ()
    #: Where /proc, /sys, /dev, /etc and /var of this host are looked up; tests name another.
    root: Path = Path("/")
    #: One of JOB_ENGINES; "slurm" makes this host a submit host.
    engine: str = "docker"
    #: The folder that the submit host and all nodes of a Slurm cluster share.
    slurm_shared_dir: Optional[Path] = None
    #: True on a node: only Slurm starts jobs there.
    slurm_node: bool = False
    #: Whether the containers of a job on several nodes may use the network of their nodes.
    slurm_host_network: bool = False
    #: The group of people without Docker rights on the nodes.
    slurm_people: Optional[str] = None
    #: Name or path of the tool that lists the GPUs.
    nvidia_smi: str = "nvidia-smi"
    #: See `Limits`; no setting.
    has_memory_of_job: bool = False

    @classmethod
    def load(cls) -> "Host":
        """Read host.json, or the file that TRAIN_CLASSIFIER_HOST_JSON names; missing means all defaults.

        Raises NotReady for a file that cannot be read or holds a wrong value.
        """
        path = Path(os.environ.get("TRAIN_CLASSIFIER_HOST_JSON") or ROOT / "host.json")
        hint = "run the role training_host on this host again"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except PermissionError as error:
            hint = "add this account to training_host_users (group docker), then log in again"
            raise NotReady(f"{path} cannot be read: {error}", hint) from error
        except (OSError, ValueError) as error:
            raise NotReady(f"{path} cannot be read: {error}", hint) from error
        return cls._from(data, path, hint)

    @classmethod
    def _from(cls, data: Any, path: Path, hint: str) -> "Host":
        if not isinstance(data, dict):
            raise NotReady(f"{path} does not hold a JSON object", hint)
        if data.pop("schema", SCHEMA) != SCHEMA:
            raise NotReady(f"{path} has an unknown schema: this worker knows only {SCHEMA}", hint)
        kinds: dict[str, Any] = {
            "images": dict, "uv": str, "queue_dir": str, "service_user": str, "state_dir": str,
            "ca_bundle": str, "environment": dict, "apt_sources": str, "gpu_check": str,
            "disk_floor_bytes": int, "root": str, "nvidia_smi": str, "metadata_service": str,
            "build_memory_bytes": int, "build_pids": int, "build_cpus": (int, float),
            "build_timeout_s": (int, float),
            "data_roots": list, "engine": str, "slurm_shared_dir": str, "slurm_node": bool,
            "slurm_host_network": bool, "slurm_people": str,
        }  # fmt: skip
        values: dict[str, Any] = {}
        for key, value in data.items():
            if value is None or key not in kinds:
                continue
            is_flag = kinds[key] is bool
            if not isinstance(value, kinds[key]) or isinstance(value, bool) != is_flag:
                kind = "number" if isinstance(kinds[key], tuple) else kinds[key].__name__
                raise NotReady(f"{path}: {key} is {value!r}, not of type {kind}", hint)
            if key in MIN_LIMITS and not MIN_LIMITS[key] <= value <= MAX_LIMIT:
                raise NotReady(f"{path}: {key} is {value!r}, not from {MIN_LIMITS[key]} to {MAX_LIMIT}", hint)
            if kinds[key] is dict and not all(isinstance(item, str) for item in value.values()):
                raise NotReady(f"{path}: the values of {key} must be text", hint)
            if key == "data_roots":
                for root in value:
                    is_absolute = isinstance(root, str) and root.startswith("/") and "\0" not in root
                    if not is_absolute or not root.strip("/") or ".." in root.split("/"):
                        raise NotReady(f"{path}: data_roots names {root!r}, not a folder below /", hint)
                value = tuple(value)
            name = "configured_state_dir" if key == "state_dir" else key
            values[name] = Path(value) if key in PATHS else value
        host = cls(**values)
        if host.engine not in JOB_ENGINES:
            raise NotReady(f"{path}: engine is {host.engine!r}, not one of {', '.join(JOB_ENGINES)}", hint)
        shared = host.slurm_shared_dir
        if (host.is_submit_host or host.slurm_node) and (shared is None or not shared.is_absolute()):
            raise NotReady(f"{path}: slurm_shared_dir names no folder, which Slurm's jobs need", hint)
        return host

    @property
    def is_submit_host(self) -> bool:
        """Whether Slurm starts the jobs that this host accepts, on one of the nodes."""
        return self.engine == "slurm"

    def limits(self, purpose: str) -> Limits:
        """Return the limits of builds, probes and GPU checks; `purpose` is for messages.

        By default three quarters of the memory, and at least 2 GiB; no more CPUs than there are.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cpus = os.cpu_count() or 1
        return Limits(
            purpose,
            self.build_memory_bytes or max(2 << 30, memory * 3 // 4),
            self.build_pids,
            min(self.build_cpus or cpus, cpus),
            self.build_timeout_s,
            self.has_memory_of_job,
        )

    def caller(self) -> Account:
        """Return the account that this process runs as."""
        try:
            entry = pwd.getpwuid(os.geteuid())
        except KeyError as error:
            raise NotReady(f"uid {os.geteuid()} has no account on this host") from error
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)

    def job_user(self) -> Account:
        """Return the account that containers, builds and everything in a workspace run as; never uid 0.

        Raises NotReady when root submits and the service account is missing.
        """
        if os.geteuid() != 0:
            return self.caller()
        hint = "run the role training_host on this host"
        try:
            entry = pwd.getpwnam(self.service_user)
        except KeyError as error:
            raise NotReady(
                f"account {self.service_user!r}, which jobs of root run as, does not exist", hint
            ) from error
        if entry.pw_uid == 0:
            raise NotReady(f"account {self.service_user!r}, which jobs of root run as, has uid 0", hint)
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)

    def state_dir(self, request: dict[str, Any]) -> Path:
        """Return the caller's state folder, not made yet: from the request, host.json, or the default.

        On a submit host it lies in the shared folder of the cluster.
        Raises BadInput for a relative path, NotReady for one on a network or overlay file system.
        """
        if self.is_submit_host:
            return self._shared_state(self.caller(), request.get("state_dir"))
        return self.local_state_dir(request)

    def local_state_dir(self, request: dict[str, Any]) -> Path:
        """Return what `state_dir` returns, on a disk of this host also where Slurm starts the jobs."""
        caller = self.caller()
        requested = request.get("state_dir")
        if requested is not None:
            if not isinstance(requested, str) or not requested.startswith("/") or "\0" in requested:
                raise BadInput(f"state_dir {requested!r} is not an absolute path")
            path = Path(requested)
        elif self.configured_state_dir and (caller.uid == 0 or "{user}" in self.configured_state_dir):
            path = Path(self.configured_state_dir.replace("{user}", caller.name))
        elif caller.uid == 0:
            path = ROOT / "state"
        else:
            # As the controller finds it (XDG base directories; a relative value counts as unset).
            base = Path(os.environ.get("XDG_STATE_HOME") or "")
            if not base.is_absolute():
                # HOME may be that of another account; an account without a home folder may set its own.
                home = caller.home if os.path.isdir(caller.home) else os.environ.get("HOME") or caller.home
                base = Path(home) / ".local" / "state"
            path = base / "train-classifier"
        refuse_unsafe(path)
        return path

    def _shared_state(self, caller: Account, requested: Any) -> Path:
        """Return the caller's folder in the shared folder of a cluster; any file system will do."""
        assert self.slurm_shared_dir is not None
        path = self.slurm_shared_dir / caller.name
        if requested is not None:
            raise BadInput(f"state_dir cannot be set for jobs of Slurm, which lie in {path}")
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return path
        # The shared folder is open to every account, as /tmp is.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != caller.uid:
            raise NotReady(f"{path} is not a folder of {caller.name}", "have the administrator remove it")
        return path


def refuse_unsafe(path: Path) -> None:
    """Raise NotReady when `path` would lie on a network or overlay file system."""
    kind = file_system(path)
    hint = "choose a folder on a local disk with the setting state_dir"
    if kind in OVERLAY_FILE_SYSTEMS:
        container = "; in a container, one that is mounted from its host at the same path"
        raise NotReady(
            f"the state folder {path} lies on an overlay file system ({kind})", f"{hint}{container}"
        )
    if kind in NETWORK_FILE_SYSTEMS:
        raise NotReady(f"the state folder {path} lies on a network file system ({kind})", hint)


def file_system(path: Path) -> str:
    """Return the type of the file system that holds `path` or would hold it (proc(5), mountinfo)."""
    real = os.path.realpath(path)
    longest, kind = "", "unknown"
    for point, mount_kind in mounts():
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # Of several mounts on one point the last hides the others.
        if inside and len(point) >= len(longest):
            longest, kind = point, mount_kind
    return kind


def mounts() -> list[tuple[str, str]]:
    """Return mount point and type of every file system, in the order of mounting (proc(5), mountinfo)."""
    mounts = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            point = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), before.split()[4])
            mounts.append((os.fsdecode(point), os.fsdecode(after.split()[0])))
    return mounts


def account_name(uid: int) -> str:
    """Return the login name of an account, its number where the host has no name for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def uptime() -> float:
    """Return the seconds since boot; changes of the system clock do not affect them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the id of this boot; it changes with every reboot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
