"""One runner instance on the host: its programs, its registration, and root's record of both.

The instance's folder belongs to root. The runner's account may create files in it (root:ACCOUNT 1770) and
owns `.runner`, `.credentials*`, `_diag` and `_work`; the programs are root's. While root changes something
there, the account cannot write in the folder (`frozen`), so that nothing is replaced meanwhile. What root
decides on is root's record (`read_record`), never a file that the account can write.

Standard library only, Python 3.9; the programs that root runs on the host carry a copy.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: What config.sh writes; all of it is removed with a registration.
CONFIGURATION = (
    ".runner",
    ".runner_migrated",
    ".credentials",
    ".credentials_migrated",
    ".credentials_rsaparams",
)
#: What of the account stays in the folder when the programs are replaced.
STATE = (*CONFIGURATION, ".env", ".path", "_diag", "_work")
#: Root, and the account's group; sticky, so that the account cannot rename or delete what is not its own.
FOLDER_MODE = 0o1770
LARGEST_CONFIGURATION = 1 << 20


class LocalError(Exception):
    """A problem on the host, or a refusal of config.sh. The message says what to do."""


def as_root() -> None:
    """Give root's part of an account's unit the home, folder and umask of root instead of the account's."""
    os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    os.chdir("/")
    os.umask(0o022)


def make_run_folder(folder: Path) -> None:
    """Root's folder below /run; the account can see whether a file of a known name is there."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)


# --- root's record ---------------------------------------------------------------------------------------


def read_record(path: Path) -> dict[str, Any]:
    """Root's record of an instance: version, programs; url, name, id and files of its registration."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LocalError(f"{path} cannot be read ({error}). Delete it and run the role again.") from None
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Replace the record at once; only root can read it, since it holds the registration's key."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(descriptor, "w") as handle:
        json.dump(record, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    Path(name).replace(path)


def change_record(path: Path, **values: Any) -> None:
    """Set these values of the record; None removes one."""
    record = {**read_record(path), **values}
    write_record(path, {name: value for name, value in record.items() if value is not None})


@contextlib.contextmanager
def locked(record: Path) -> Iterator[None]:
    """Only one process of root at a time changes instances: the role, the update timer."""
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (record.parent / ".lock").open("w") as handle:
        # Not core.locks: the update timer runs this module on a host, without the package.
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- the folder ------------------------------------------------------------------------------------------


def setup_account(user: str) -> str:
    """The account that config.sh runs as: a job of the runner's account could read a process's token."""
    return f"{user}-setup"


def require_safe_parents(folder: Path) -> None:
    """Raise LocalError unless nobody but root can replace the folder."""
    for parent in folder.parents:
        status = parent.lstat()
        writable = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or writable:
            raise LocalError(
                f"{parent} is not a folder that only root can write, so somebody could replace {folder}. "
                "Set github_runner_folder to a folder of root's, without links in its path."
            )


@contextlib.contextmanager
def frozen(folder: Path, user: str) -> Iterator[int]:
    """Open the folder as one that only root can write; afterwards the account may create files in it again.

    An instance that another release made belongs to the account; it belongs to root from here on.
    """
    require_safe_parents(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, 0, pwd.getpwnam(user).pw_gid)
        os.fchmod(descriptor, 0o700)
        try:
            yield descriptor
        finally:
            os.fchmod(descriptor, FOLDER_MODE)
    finally:
        os.close(descriptor)


def registered(folder: Path) -> bool:
    """Are the files of a registration there? They are not read: the account can write them."""
    try:
        modes = [(folder / name).lstat().st_mode for name in (".runner", ".credentials")]
    except OSError:
        return False
    return all(stat.S_ISREG(mode) for mode in modes)


def running(folder: Path, program: str) -> bool:
    """Does a process run this program of the instance?"""
    pattern = re.compile(re.escape(str(folder)) + r"/bin[^/]*/" + re.escape(program))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(pattern.fullmatch(argument.decode(errors="replace")) for argument in arguments):
            return True
    return False


def busy(folder: Path) -> bool:
    """Is a job running? The listener starts one Runner.Worker for each."""
    return running(folder, "Runner.Worker")


def listening(folder: Path) -> bool:
    """Does the listener run?"""
    return running(folder, "Runner.Listener")


def mounts_below(folder: Path) -> list[str]:
    """What is mounted in the folder, also what lies on the same device."""
    places = [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    ]
    return [place for place in places if place.startswith(f"{folder}/")]


def remove_tree(path: Path) -> None:
    """Remove a folder that lies in a folder of root's, unless something is mounted in it."""
    if not mounts_below(path):
        command = ["rm", "-rf", "--one-file-system", "--", str(path)]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A new folder on the file system of the instances that only root can enter."""
    top = folder.parent / ".staging"
    top.mkdir(mode=0o700, exist_ok=True)
    for old in top.glob(f"{folder.name}-*"):
        remove_tree(old)
    private = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=top))
    try:
        yield private
    finally:
        remove_tree(private)


def _descriptor(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


# --- the programs ----------------------------------------------------------------------------------------


def fetch(url: str, sha256: str, target: Path) -> bool:
    """Download the archive unless `target` has this checksum; remove others. True if it was downloaded."""
    for archive in target.parent.glob("actions-runner-*"):
        if archive != target:
            archive.unlink()
    if target.exists() and _sha256(target) == sha256:
        return False
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "http"):
        raise LocalError(f"{target.name} cannot be downloaded: its address is no http or https URL.")
    request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    if parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        # A redirect does not carry it to another host.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".download-")
    try:
        with os.fdopen(descriptor, "wb") as handle, urllib.request.urlopen(request, timeout=60) as answer:
            shutil.copyfileobj(answer, handle, 1 << 20)
        digest = _sha256(Path(name))
        if digest != sha256:
            raise LocalError(f"The checksum for {target.name} is {digest}, not {sha256}.")
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LocalError(f"{target.name} cannot be downloaded ({getattr(error, 'reason', error)}).") from None
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def install(archive: Path, folder: Path, user: str, version: str, record: Path) -> None:
    """Replace the instance's programs by those of the archive; they belong to root. Its service is stopped.

    Everything else in the folder is removed, except the account's state. An interrupted installation leaves a
    record without version: the instance does not start, and the next installation repairs it.
    """
    require_safe_parents(folder)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    with _staging(folder) as private:
        programs, old = private / "programs", private / "old"
        programs.mkdir()
        old.mkdir()
        unpack = ["tar", "--extract", "--gzip", "--no-same-owner", "--no-same-permissions"]
        result = subprocess.run(
            [*unpack, "--file", str(archive), "--directory", str(programs)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            umask=0o022,
            check=False,
        )
        if result.returncode != 0:
            raise LocalError(f"{archive} cannot be unpacked: {' '.join(result.stderr.split())[:300]}")
        names = sorted(path.name for path in programs.iterdir())
        if set(names) & set(STATE):
            raise LocalError(f"{archive} is not a runner's archive: it holds {', '.join(names)}.")
        change_record(record, version=None, programs=names)
        with frozen(folder, user) as here:
            old_here, programs_here = _descriptor(old), _descriptor(programs)
            try:
                for name in os.listdir(here):  # noqa: PTH208
                    if name not in STATE:
                        os.rename(name, name, src_dir_fd=here, dst_dir_fd=old_here)
                for name in names:
                    os.rename(name, name, src_dir_fd=programs_here, dst_dir_fd=here)
            finally:
                os.close(old_here)
                os.close(programs_here)
        change_record(record, version=version)


def remove_folder(folder: Path) -> bool:
    """Remove a folder of root's, in which the account can write. True when there was one."""
    if not folder.is_dir():
        return False
    require_safe_parents(folder)
    if mounts := mounts_below(folder):
        raise LocalError(f"{mounts[0]} is mounted in {folder}. Unmount it and run the role again.")
    remove_tree(folder)
    if folder.exists():
        raise LocalError(
            f"{folder} cannot be removed: a process still writes in it. End the processes of the account and "
            "run the role again."
        )
    return True


# --- the registration ------------------------------------------------------------------------------------


def remove_registration(folder: Path, user: str, record: Path) -> bool:
    """Remove the registration's files. True when there were any."""
    if not folder.is_dir():
        return False
    with frozen(folder, user) as here:
        removed = _remove_files(here, folder)
    change_record(record, url=None, name=None, id=None, files=None)
    return removed


def _remove_files(here: int, folder: Path) -> bool:
    """Remove the registration's files, whatever the account put in their place."""
    removed = False
    with _staging(folder) as private:
        target = _descriptor(private)
        try:
            for name in CONFIGURATION:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name, name, src_dir_fd=here, dst_dir_fd=target)
                    removed = True
        finally:
            os.close(target)
    return removed


def configure(folder: Path, user: str, token: str, settings: Mapping[str, Any], record: Path) -> None:
    """Register by config.sh and put what it wrote into the folder, for the account. Raises LocalError."""
    command = ["./config.sh", "--unattended", "--url", settings["url"], "--name", settings["name"]]
    command += ["--work", "_work", "--labels", ",".join(settings["labels"]), "--disableupdate"]
    if settings.get("group"):
        command += ["--runnergroup", settings["group"]]
    for flag, on in (
        ("--replace", settings.get("replace")),
        ("--no-default-labels", settings.get("no_default_labels")),
        ("--ephemeral", settings.get("ephemeral")),
    ):
        if on:
            command.append(flag)
    remove_registration(folder, user, record)
    # Until config.sh has answered, the id is not known; the next run then looks for the name.
    change_record(record, url=settings["url"], name=settings["name"])
    with _setup_folder(folder, user, record, {}) as private:
        result = _run(setup_account(user), private, command, token)
        if result.returncode != 0:
            raise LocalError(
                _reason(result, token, f"register {settings['name']!r} at {settings['url']}", settings["url"])
            )
        files = _read_files(private)
    try:
        agent = int(json.loads(files[".runner"].lstrip("\ufeff"))["agentId"])
    except (KeyError, ValueError, TypeError):
        raise LocalError("config.sh succeeded but wrote no .runner that names the runner's id.") from None
    change_record(record, id=agent, files=files)
    with frozen(folder, user) as here:
        _remove_files(here, folder)
        _write_files(here, files, pwd.getpwnam(user))


def remove(folder: Path, user: str, token: str, record: Path) -> None:
    """Run config.sh remove with a remove token, on root's copy of the registration. Raises LocalError."""
    files = read_record(record).get("files", {})
    with _setup_folder(folder, user, record, files) as private:
        result = _run(setup_account(user), private, ["./config.sh", "remove"], token)
    if result.returncode != 0:
        raise LocalError(_reason(result, token, f"remove the runner in {folder}", "this scope"))


@contextlib.contextmanager
def _setup_folder(folder: Path, user: str, record: Path, files: Mapping[str, str]) -> Iterator[Path]:
    """A folder like the instance's, for config.sh alone: nothing in it comes from the runner's account.

    In the instance's own folder the runner reads `.env`, which the account can write: a proxy and a CA named
    there would get the token.
    """
    setup = pwd.getpwnam(setup_account(user))
    for old in folder.parent.glob(f".setup-{folder.name}-*"):
        remove_tree(old)
    private = Path(tempfile.mkdtemp(prefix=f".setup-{folder.name}-", dir=folder.parent))
    try:
        with frozen(folder, user) as here:
            for name in read_record(record).get("programs", []):
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                if status.st_uid != 0:
                    raise LocalError(f"{folder / name} does not belong to root. Run the role again.")
                if stat.S_ISDIR(status.st_mode):
                    shutil.copytree(folder / name, private / name, symlinks=True, copy_function=os.link)
                else:
                    os.link(name, private / name, src_dir_fd=here, follow_symlinks=False)
        descriptor = _descriptor(private)
        try:
            _write_files(descriptor, files, setup)
            os.fchown(descriptor, setup.pw_uid, setup.pw_gid)
        finally:
            os.close(descriptor)
        yield private
    finally:
        remove_tree(private)


def _read_files(folder: Path) -> dict[str, str]:
    """The registration's files in config.sh's own folder."""
    files = {}
    here = _descriptor(folder)
    try:
        for name in CONFIGURATION:
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
            except FileNotFoundError:
                continue
            with os.fdopen(descriptor, encoding="utf-8") as handle:
                status = os.fstat(handle.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_CONFIGURATION:
                    raise LocalError(f"config.sh wrote a {name} that is not a file of a registration.")
                files[name] = handle.read()
    finally:
        os.close(here)
    return files


def _write_files(here: int, files: Mapping[str, str], account: pwd.struct_passwd) -> None:
    """Create the registration's files in a folder that only root can write at this moment."""
    for name, text in files.items():
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=here)
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            os.fchown(handle.fileno(), account.pw_uid, account.pw_gid)


def _run(user: str, folder: Path, command: list[str], token: str) -> subprocess.CompletedProcess[str]:
    account = pwd.getpwnam(user)
    environment = {
        "HOME": str(folder),
        "USER": user,
        "LOGNAME": user,
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ACTIONS_RUNNER_INPUT_TOKEN": token,
    }
    proxies = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    for name in (*proxies, "SSL_CERT_FILE"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _reason(result: subprocess.CompletedProcess[str], token: str, action: str, where: str) -> str:
    output = (result.stdout + "\n" + result.stderr).replace(token or "\0", "***")
    if re.search(r"\b404\b|NotFound", output):
        return (
            f"Could not {action}: GitHub says not found (404). It answers the same for an expired token: "
            f"registration and remove tokens last one hour and are for one scope. Make a new one for "
            f"{where}, or set github_runner_pat or a GitHub App and let the role make it."
        )
    if re.search(r"exists with the same name", output):
        return (
            f"Could not {action}: the name is taken. Choose another github_runner_name, "
            "or set github_runner_replace: true."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"Could not {action}: config.sh ended with {result.returncode}: {' / '.join(lines[-4:])[:600]}"
