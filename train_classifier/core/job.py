"""The plain data that controller and worker share: a job's specification and the names of its states.

Standard library only and Python 3.9, because this module is part of the worker on the host.
Everything here is written as JSON; `SCHEMA` is incremented when an old reader would misread the new form.
"""

import dataclasses
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Optional, TypeVar, Union

from train_classifier.core import options
from train_classifier.core.options import Kind

T = TypeVar("T")
#: Version of spec.json, status.json, result.json and manifest.json.
SCHEMA = 2
#: Version of the last release, whose jobs can still be listed, read, fetched and cleaned.
LAST_SCHEMA = 1
#: The first bytes of an archive of artefacts, as of every gzip file.
ARCHIVE_MAGIC = b"\x1f\x8b"

#: Where the containers of a job have its copy of the repository.
WORKSPACE = "/workspace"
#: Folders of an archive that do not come from a folder of results.
ARCHIVE_FOLDERS = ("job", "workspace")

#: A model is one Python package at the top of the repository: an ASCII identifier, so that no shell, path,
#: workflow or look-alike character can be hidden in it.
MODEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
#: Job ids sort by time of submission, and are safe in paths, container names and unit names.
JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}\Z")
#: The id of a group is the beginning of its jobs' ids, which end with their numbers, 01 and so on.
GROUP_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}\Z")
#: Most jobs of a group: their numbers have two digits.
MOST_GROUP = 99
#: Names of what is swept: the model gets them as --NAME.
SWEEP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}\Z")
#: What the engine calls an image, and what defines an environment.
IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}\Z")
ENVIRONMENT_HASH = re.compile(r"[0-9a-f]{40}\Z")
#: What `git describe --long --dirty` says: tag, commits since, commit, whether tracked files differ.
DESCRIPTION = re.compile(
    r"(?P<tag>[^\s~^:?*\[\\]{1,200})-(?P<distance>[0-9]{1,9})-g(?P<commit>[0-9a-f]{4,64})(?P<dirty>-dirty)?\Z"
)
#: Address of a repository in a browser: without a login, a query and what leads upwards.
WEB_ADDRESS = re.compile(
    r"https://(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,253}(?::[0-9]{1,5})?)(?:/(?!\.)[\w.~+-]{1,200}){1,10}\Z",
    re.ASCII,
)
#: Names of environment variables, secrets and data folders.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
#: Names of partitions, accounts and QOS, expressions of features, and dependencies. They begin no option.
SLURM_WORD = re.compile(r"[A-Za-z0-9_\[(][A-Za-z0-9_.,:;=+@*&|?!/\[\]()-]{0,999}\Z")
DATA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")

#: Most bytes of one argument or variable, with its end; the kernel's limit (MAX_ARG_STRLEN, 32 pages).
MOST_STRING = 131072

#: Above the bytes of any checkout.
MOST_BYTES = 1 << 60
#: No job may read these: credentials, devices, sockets of services, other processes' files.
SYSTEM_FOLDERS = ("/proc", "/sys", "/dev", "/run", "/etc", "/boot")

#: States of a job, in order. Before `submitted` nothing is guaranteed: the controller sets the first two.
STATES = ("prepared", "pushed", "submitted", "running", "finished")
#: The worker's phases while `running`, in order; status.json and manifest.json hold the time of each.
PHASES = ("image", "packages", "environment", "queue", "gpu-check", "training", "artefacts")
#: Those of a whole run: the controller's own come before and after.
RUN_PHASES = ("preflight", "push", "prepare", "start", *PHASES, "fetch")


def in_order(phases: Mapping[str, T]) -> dict[str, T]:
    """Return a table of phases in the order in which a run goes through them."""
    return {name: phases[name] for name in (*RUN_PHASES, *sorted(phases)) if name in phases}


def failed_archive_name(name: str, job: str) -> str:
    """Return the file name of a failed job's archive, beside that of the last good one."""
    stem, suffix = _split_archive_name(name)
    return f"{stem}-{job}{suffix}"


def archive_name_pattern(name: str) -> "re.Pattern[str]":
    """Return what matches an archive's name, those of failed jobs beside it, and their received parts."""
    stem, suffix = map(re.escape, _split_archive_name(name))
    identifier = JOB_ID.pattern.replace(r"\Z", "")
    return re.compile(rf"\.?{stem}(-{identifier})?{suffix}(\.{identifier}\.part)?")


def _split_archive_name(name: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(name)
    if stem.endswith(".tar"):
        return stem[: -len(".tar")], ".tar" + suffix
    return stem, suffix


def results_folder_problem(folder: object) -> Optional[str]:
    """Return why a value cannot name a folder of results in the repository, None when it can."""
    if not isinstance(folder, str) or not folder or len(folder) > 1000 or not folder.isprintable():
        return "is not the name of a folder"
    parts = folder.split("/")
    if folder == ".":
        return "is the whole repository"
    if folder[0] in "/~-" or ".." in parts:
        return "is not the path of a folder in the repository"
    if "." in parts or "" in parts:
        return "is not a plain path, as outputs/run"
    if ".git" in parts:
        return "is git's"
    if parts[0] in ARCHIVE_FOLDERS:
        return "has the name of a folder that the archive has already"
    return None


def new_job_id() -> str:
    """Return a new job id: UTC second of submission and 32 random bits."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{stamp}-{os.urandom(4).hex()}"


def new_group_id() -> str:
    """Return a new group id: UTC second of submission and 24 random bits."""
    return new_job_id()[:-2]


def job_of_group(group: str, number: int) -> str:
    """Return the id of a group's job, counted from 1."""
    return f"{group}{number:02d}"


def number_in_group(job: str) -> int:
    """Return which job of its group a job is, counted from 1."""
    return int(job[-2:])


def show_sweep(sweep: Mapping[str, str]) -> str:
    """Return the choice of a sweep for people: lr=0.1 no-augment."""
    return " ".join(f"{name}={value}" if value else name for name, value in sorted(sweep.items()))


@dataclasses.dataclass(frozen=True)
class DataFolder:
    """A folder of the host that the job may read at /data/NAME."""

    path: str
    name: str
    #: Named by the repository's own settings file: the host allows it only below its data_roots.
    from_checkout: bool = False


@dataclasses.dataclass(frozen=True)
class Repository:
    """The origin of the sources. `key` names the mirror and the cache on the host."""

    #: Name of the checkout's folder, for people.
    name: str
    #: 16 hex digits: one mirror per repository and controller folder.
    key: str
    #: git commit of the checkout, None outside git.
    commit: Optional[str] = None
    #: True when the checkout differs from that commit, None outside git.
    dirty: Optional[bool] = None
    #: What `git describe --tags --long` says, of a package whose version comes from git.
    description: Optional[str] = None
    #: Its address in a browser, of git's remote `origin`; None where it has none.
    address: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class PinnedImage:
    """The image that a repeated job had: it is taken wherever this one is asked for by its reference."""

    reference: str
    #: The engine's id, of the image without a layer of Debian packages.
    id: str
    #: The registry's digest; None for an image that came from no registry.
    digest: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """One training run, as asked for. None means: the host's default."""

    id: str
    model: str
    repository: Repository
    arguments: tuple[str, ...] = ()
    image: Optional[str] = None
    #: Whether the environment is over the image, isolated, or chosen.
    environment_kind: str = options.default("environment_kind")
    #: The version of Python that the caller asks for.
    python: Optional[str] = None
    #: Versions of Python that the repository's files ask for; empty: any.
    required_pythons: tuple[str, ...] = ()
    #: Number of GPUs, or "auto": one if the host has one, else the CPU.
    gpus: Union[int, str] = options.default("gpus")
    #: MiB. None: the default minimum of the card's total memory only; a number: as much must also be free.
    min_vram_mib: Optional[int] = None
    gpu_check: Optional[str] = None
    #: Seconds of training; None: no limit.
    timeout_s: Optional[float] = None
    #: Seconds in the GPU queue; None: no limit.
    wait_s: Optional[float] = None
    #: Seconds that a GPU may be unused until it is reported, and all of them until the job is stopped.
    idle_warning_s: Optional[float] = options.default("idle_warning")
    max_idle_s: Optional[float] = None
    #: Seconds between SIGTERM and SIGKILL.
    grace_s: float = options.default("grace")
    #: Seconds without a request from the controller after which the worker stops the job; None: never.
    lease_s: Optional[float] = None
    memory_bytes: Optional[int] = None
    cpus: Optional[float] = None
    shm_bytes: int = options.default("shm_size")
    pids: int = options.default("pids")
    network: str = options.default("network")
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Names only; the values are sent beside the specification and are never written with it.
    secrets: tuple[str, ...] = ()
    data: tuple[DataFolder, ...] = ()
    #: Folders of the repository whose new files are delivered beside artefacts/.
    artefacts: tuple[str, ...] = ()
    #: A job id, or "last": start from a copy of that job's checkpoints.
    resume: Optional[str] = None
    #: The job that this one repeats, and the image and the hash of the environment that it had.
    rerun_of: Optional[str] = None
    pinned_image: Optional[PinnedImage] = None
    pinned_environment: Optional[str] = None
    #: True: a model that leaves no new results has not failed.
    allow_empty: bool = options.default("allow_empty")
    log_max_bytes: int = options.default("log_max")
    #: Bytes of the results that are packed; more stays on the host until `fetch --max-size` asks for it.
    artefacts_max_bytes: int = options.default("artefacts_max")
    #: What Slurm is asked for; None: its own defaults.
    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    #: Seconds of Slurm's time limit for the whole job.
    slurm_time_s: Optional[float] = None
    nice: Optional[int] = None
    dependency: Optional[str] = None
    requeue: bool = options.default("requeue")
    nodes: Optional[int] = None
    #: The group of jobs that were submitted together; None: the job was submitted alone.
    group: Optional[str] = None
    #: What a sweep chose for this job, by name; it is in `arguments`, too. A flag has the value "".
    sweep: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Most jobs of the group that run at the same time; None: as many as there are GPUs for.
    max_parallel: Optional[int] = None
    #: The submitter, as user@controller; for people.
    submitter: str = ""
    #: The pushed files, for the manifest: their number and their bytes.
    source_files: int = 0
    source_bytes: int = 0
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as JSON-ready data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "JobSpec":
        """Read an untrusted specification.

        Raises ValueError with every problem, one a line.
        """
        problems = []
        if not isinstance(data, dict):
            raise ValueError("the specification is not a JSON object")
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r} of the specification; known is {SCHEMA}")
        accepted = {field.name for field in dataclasses.fields(cls)}
        problems += [f"unknown field {key!r}" for key in sorted(map(str, set(data) - accepted))]
        values = {key: value for key, value in data.items() if key in accepted}
        try:
            values["repository"] = Repository(**values["repository"])
            if values.get("pinned_image") is not None:
                values["pinned_image"] = PinnedImage(**values["pinned_image"])
            values["data"] = tuple(DataFolder(**folder) for folder in values.get("data", ()))
            values["arguments"] = tuple(values.get("arguments", ()))
            values["secrets"] = tuple(values.get("secrets", ()))
            values["required_pythons"] = tuple(values.get("required_pythons", ()))
            values["artefacts"] = tuple(values.get("artefacts", ()))
            spec = cls(**{key: value for key, value in values.items() if key in accepted})
        except (KeyError, TypeError) as error:
            raise ValueError("\n".join([*problems, f"malformed specification: {error}"])) from error
        problems += spec.problems()
        if problems:
            raise ValueError("\n".join(problems))
        return spec

    def problems(self) -> list[str]:
        """Return the problems of the values as sentences; empty when there are none."""
        problems = _Problems()
        self._check_names(problems)
        self._check_numbers(problems)
        self._check_environment(problems)
        self._check_data(problems)
        problems.check(isinstance(self.allow_empty, bool), "allow_empty is not true or false")
        self._check_slurm(problems)
        self._check_group(problems)
        self._check_rerun(problems)
        return problems.sentences

    def _check_names(self, problems: "_Problems") -> None:
        problems.check(isinstance(self.id, str) and bool(JOB_ID.match(self.id)), f"job id {self.id!r}")
        problems.check(
            isinstance(self.model, str) and bool(MODEL.match(self.model)),
            f"model {self.model!r}: wanted the name of a Python package at the top of the repository",
        )
        repository = self.repository
        named = problems.text(repository.name, "the repository's name")
        if problems.text(repository.key, "the repository's key") and named:
            is_key = bool(re.match(r"[0-9a-f]{16}\Z", repository.key))
            problems.check(is_key, f"repository key {repository.key!r}")
        commit = repository.commit
        problems.check(commit is None or isinstance(commit, str), "the repository's commit")
        problems.check(repository.dirty in (None, True, False), "the repository's dirty flag")
        described = repository.description
        is_description = isinstance(described, str) and bool(DESCRIPTION.match(described))
        problems.check(described is None or is_description, "the repository's description by git")
        address = repository.address
        is_address = isinstance(address, str) and bool(WEB_ADDRESS.match(address))
        problems.check(address is None or is_address, "the repository's address")
        for argument in self.arguments:
            problems.text(argument, f"argument {argument!r}")
        if self.image is not None:
            problems.text(self.image, "image")
        accepted = (None, *options.BY_NAME["gpu_check"].words)
        problems.check(self.gpu_check in accepted, f"gpu_check {self.gpu_check!r}")
        problems.check(self.network in options.BY_NAME["network"].words, f"network {self.network!r}")
        kinds = options.BY_NAME["environment_kind"].words
        problems.check(self.environment_kind in kinds, f"environment_kind {self.environment_kind!r}")
        problems.check(self.python in (None, *options.PYTHONS), f"python {self.python!r}")
        required = self.required_pythons
        are_known = all(version in options.PYTHONS for version in required)
        problems.check(are_known, f"versions of Python {required!r}")
        problems.check(
            self.resume is None or self.resume == "last" or bool(JOB_ID.match(str(self.resume))),
            f"resume {self.resume!r}",
        )
        most = options.MOST_RESULTS
        problems.check(
            len(self.artefacts) <= most, f"{len(self.artefacts)} folders of results, more than {most}"
        )
        for folder in self.artefacts[:most]:
            problem = results_folder_problem(folder)
            problems.check(problem is None, f"folder of results {folder!r} {problem}")

    def _check_slurm(self, problems: "_Problems") -> None:
        for name in ("partition", "account", "qos", "constraint", "dependency"):
            value = getattr(self, name)
            is_word = isinstance(value, str) and bool(SLURM_WORD.match(value))
            problems.check(value is None or is_word, f"{name} {value!r} is not a word of Slurm")
        problems.check(isinstance(self.requeue, bool), "requeue is not true or false")

    def _check_group(self, problems: "_Problems") -> None:
        number = str(self.id)[-2:]
        is_of_group = str(self.id)[:-2] == self.group and number.isdecimal() and number != "00"
        problems.check(self.group is None or is_of_group, f"group {self.group!r} of job {self.id!r}")
        most = self.max_parallel
        is_count = isinstance(most, int) and not isinstance(most, bool) and 1 <= most <= MOST_GROUP
        problems.check(most is None or is_count, f"max_parallel {most!r}")
        if not isinstance(self.sweep, dict):
            problems.check(False, "sweep is not a table")
            return
        for name, value in self.sweep.items():
            is_name = isinstance(name, str) and bool(SWEEP_NAME.match(name))
            problems.check(is_name, f"name of a sweep {name!r}")
            problems.text(value, f"the value of sweep {name!r}")

    def _check_rerun(self, problems: "_Problems") -> None:
        repeated, key, image = self.rerun_of, self.pinned_environment, self.pinned_image
        problems.check(repeated is None or bool(JOB_ID.match(str(repeated))), f"rerun_of {repeated!r}")
        is_hash = isinstance(key, str) and bool(ENVIRONMENT_HASH.match(key))
        problems.check(key is None or is_hash, f"hash of an environment {key!r}")
        if image is not None:
            ids = (image.id,) if image.digest is None else (image.id, image.digest)
            are_ids = all(isinstance(value, str) and IMAGE_ID.match(value) for value in ids)
            problems.check(are_ids, f"ids of an image {ids!r}")
            problems.text(image.reference, "the reference of an image")

    def _check_numbers(self, problems: "_Problems") -> None:
        for option in options.OPTIONS:
            value: Any = getattr(self, option.spec_field, None)
            optional = value is None and option.kind is not Kind.GPUS
            if optional or option.most is None or option.kind in options.LISTS:
                continue
            kind = (int, float) if option.kind in (Kind.DURATION, Kind.DECIMAL) else int
            counted = isinstance(value, kind) and not isinstance(value, bool)
            bounds = f"{option.least} to {option.most}" + (" or auto" if option.kind is Kind.GPUS else "")
            problems.check(
                (counted and (option.least or 0) <= value <= option.most)
                or (option.kind is Kind.GPUS and value == "auto"),
                f"{option.spec_field} is {value!r}, wanted a number from {bounds}",
            )

        for name in ("source_files", "source_bytes"):
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_BYTES
            problems.check(is_count, f"{name} is {value!r}, wanted a number of at least 0")
        problems.text(self.submitter, "the submitter")

    def _check_environment(self, problems: "_Problems") -> None:
        problems.check(isinstance(self.environment, dict), "environment is not a table")
        for name, value in self.environment.items() if isinstance(self.environment, dict) else ():
            problems.check(
                isinstance(name, str) and bool(NAME.match(name)), f"environment variable name {name!r}"
            )
            if problems.text(value, f"the value of {name}"):
                problems.check(
                    len(name) + len(value.encode("utf-8", "surrogateescape")) + 2 <= MOST_STRING,
                    f"the value of {name} is over 128 KiB",
                )
        for name in self.secrets:
            problems.check(isinstance(name, str) and bool(NAME.match(name)), f"secret name {name!r}")

    def _check_data(self, problems: "_Problems") -> None:
        problems.check(
            len(self.data) <= options.MOST_DATA,
            f"{len(self.data)} data folders, more than {options.MOST_DATA}",
        )
        for folder in self.data[: options.MOST_DATA]:
            if problems.text(folder.path, "a data folder") and problems.text(
                folder.name, "a data folder's name"
            ):
                problems.check(
                    folder.path.startswith("/"),
                    f"data folder {folder.path!r} is not an absolute path of the host",
                )
                problems.check(bool(DATA_NAME.match(folder.name)), f"data name {folder.name!r}")
            problems.check(
                isinstance(folder.from_checkout, bool), "from_checkout of a data folder is not true or false"
            )


class _Problems:
    """The problems as sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def check(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.sentences.append(sentence)

    def text(self, value: Any, name: str) -> bool:
        """Record a problem when the value is not text; return whether it is text."""
        is_text = isinstance(value, str) and "\0" not in value
        self.check(is_text, f"{name} is not text, or holds a NUL")
        return is_text
