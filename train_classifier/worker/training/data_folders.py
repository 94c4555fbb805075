"""The data folders of a job: which ones it may read, and their real paths."""

import fnmatch
import os
import pwd
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional

from train_classifier.core import options
from train_classifier.core.errors import BadInput
from train_classifier.core.job import SYSTEM_FOLDERS, DataFolder, JobSpec
from train_classifier.worker.system.host import ROOT, Host, file_system, mounts

#: Folders of container engines, beside the one that the engine itself names.
ENGINES = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/snap/docker")
#: File systems of the kernel, at any mount point.
KERNEL_FILE_SYSTEMS = {
    "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs",
    "sysfs", "tracefs",
}  # fmt: skip
#: Shells of accounts that nobody logs in to.
NO_SHELLS = ("nologin", "false", "sync")


def resolve(spec: JobSpec, host: Host, state: Path, engine_folders: Sequence[str] = ()) -> dict[str, str]:
    """Return the real path of each data folder by its name. Raises BadInput with a sentence for each problem.

    `state` is the caller's state folder, `engine_folders` are the engine's own if they are known.
    """
    real, problems = examine(spec, host, state, engine_folders)
    if problems:
        raise BadInput(*problems)
    return real


def examine(
    spec: JobSpec, host: Host, state: Path, engine_folders: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Return what `resolve` returns, and the problems."""
    folders: dict[str, str] = {}
    problems = []
    closed = [*ENGINES, *engine_folders]
    for folder in spec.data:
        subject = f"data folder {folder.path} (/data/{folder.name})"
        try:
            real = os.path.realpath(folder.path)
            if not stat.S_ISDIR(os.stat(real).st_mode):
                problems.append(f"{subject} is not a folder")
                continue
            target = "" if real == (folder.path.rstrip("/") or "/") else f", which is {real},"
            reason = _refusal(real, host, state, closed)
        except (FileNotFoundError, NotADirectoryError):
            problems.append(f"{subject} does not exist on the host")
            continue
        except (OSError, ValueError) as error:
            problems.append(f"{subject} cannot be used: {getattr(error, 'strerror', None) or error}")
            continue
        if reason is not None:
            problems.append(f"{subject}{target} {reason}; no job may read it")
        elif folder.from_checkout and not is_offered(real, host.data_roots):
            problems.append(_refusal_to_checkout(folder, target, host.data_roots))
        else:
            point = next((point for point, _ in mounts() if point.startswith(real + "/")), None)
            if point is not None:
                problems.append(
                    f"{subject}{target} has a file system mounted below it, at {point}: "
                    "give each folder on its own, or the one below the mount"
                )
            else:
                folders[folder.name] = real
    return folders, problems


def _refusal_to_checkout(folder: DataFolder, target: str, roots: Iterable[str]) -> str:
    """Return the sentence for a folder that a checkout's settings file names and the host does not list."""
    offered = ", ".join(roots)
    offer = f"only what lies below {offered}" if offered else "no folder"
    item = f"{folder.path}:{folder.name}"
    return (
        f"data folder {folder.path} (/data/{folder.name}){target} is named by the repository's "
        f"train-classifier.toml, and this host offers repositories {offer}: "
        f"{options.advice('defaults', 'data', [item])}, or have the host's administrator list the folder "
        "(training_host_data_roots of role training_host, data_roots of host.json)"
    )


def is_offered(real: str, roots: Iterable[str]) -> bool:
    """Tell whether a real path lies below one of the host's data_roots."""
    return any(_is_below(real, os.path.realpath(root)) for root in roots)


def _is_below(path: str, folder: str) -> bool:
    """Return whether a real path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _identity(path: str) -> Optional[tuple[int, int]]:
    """Return the identity of a folder, the same for every path to it; None when there is no folder."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _ancestors(path: str) -> Iterator[str]:
    """Yield a path and all folders above it."""
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path:
            return
        path = above


class _DataFolder:
    """A data folder and the folders above it; bind mounts give a folder more than one path."""

    def __init__(self, real: str) -> None:
        self.real = real
        self.chain = {ancestor: _identity(ancestor) for ancestor in _ancestors(real)}

    def is_in(self, folder: str) -> bool:
        target = os.path.realpath(folder)
        identity = _identity(target)
        return _is_below(self.real, target) or (identity is not None and identity in self.chain.values())

    def holds(self, folder: str) -> bool:
        target = os.path.realpath(folder)
        own = self.chain[self.real]
        return _is_below(target, self.real) or own in map(_identity, _ancestors(target))


def _refusal(real: str, host: Host, state: Path, engines: Iterable[str]) -> Optional[str]:
    """Return why no job may read a folder, regardless of who names it; None when it is allowed."""
    data_folder = _DataFolder(real)
    kind = file_system(Path(real))
    if kind in KERNEL_FILE_SYSTEMS:
        return f"is part of a file system of the kernel ({kind})"
    for folder in SYSTEM_FOLDERS:
        if data_folder.is_in(folder):
            return f"is part of {folder}"
    if data_folder.holds("/"):
        return "is the host's whole file system"
    for folder in engines:
        if data_folder.is_in(folder) or data_folder.holds(folder):
            return f"is or holds the engine's folder {folder}"
    shared = [] if host.slurm_shared_dir is None else [str(host.slurm_shared_dir)]
    for folder in (str(state), str(host.queue_dir), str(ROOT), *shared):
        if data_folder.is_in(folder) or data_folder.holds(folder):
            return f"is or holds {folder}, where train-classifier keeps its state"
    if host.configured_state_dir and _overlaps_pattern(real, host.configured_state_dir):
        return f"is or holds {host.configured_state_dir}, where train-classifier keeps its state"
    return _home_refusal(data_folder)


def _overlaps_pattern(real: str, pattern: str) -> bool:
    """Return whether a folder is, contains or is inside the state folder of any user."""
    base = os.path.dirname(pattern.partition("{user}")[0])
    resolved = os.path.realpath(base).rstrip("/") + pattern[len(base.rstrip("/")) :]
    parts = [part.replace("{user}", "*") for part in resolved.split("/")]
    return all(fnmatch.fnmatchcase(part, part_pattern) for part, part_pattern in zip(real.split("/"), parts))


def _home_refusal(data_folder: _DataFolder) -> Optional[str]:
    """Return why a folder is refused for a home folder that it is, contains, or is inside."""
    accounts: dict[str, tuple[str, bool]] = {}
    for entry in pwd.getpwall():
        accounts[entry.pw_dir] = (entry.pw_name, os.path.basename(entry.pw_shell) not in NO_SHELLS)
    # Accounts of a directory service cannot be listed, so the accounts of the folders' owners are looked up.
    uids = {os.geteuid()}
    for ancestor in data_folder.chain:
        uids.add(os.stat(ancestor).st_uid)
    for uid in uids:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            continue
        used = uid == os.geteuid() or os.path.basename(entry.pw_shell) not in NO_SHELLS
        accounts[entry.pw_dir] = (entry.pw_name, used or accounts.get(entry.pw_dir, ("", False))[1])
    if data_folder.real == os.path.realpath("/home"):
        return "holds home folders"
    for home, (name, used) in accounts.items():
        if home in ("", "/") or not home.startswith("/"):
            continue
        if used and data_folder.holds(home):
            return f"is or holds the home folder of {name}, with keys and passwords in its dotfiles"
        identity = _identity(home)
        for ancestor in data_folder.chain:
            inside = ancestor == os.path.realpath(home) or (
                identity is not None and identity == data_folder.chain[ancestor]
            )
            if inside and ancestor != data_folder.real:
                first = data_folder.real[len(ancestor) :].lstrip("/").partition("/")[0]
                if first.startswith("."):
                    return f"is part of {first} in the home folder of {name}"
    return None
