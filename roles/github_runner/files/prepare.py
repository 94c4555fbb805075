#!/usr/bin/python3 -I
"""What root does before a runner instance starts: give `_work` back to its account; mint a registration.

Called by the unit as `prepare INSTANCE` (ExecStartPre=+). Reads /etc/github-runner/instances/INSTANCE.json
and root's record of the instance; in the modes ephemeral and jit also app.json and app.pem, which only root
can read.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from github_runner_api import ApiError, GitHub, Scope, is_own
from github_runner_local import (
    LocalError,
    as_root,
    change_record,
    configure,
    frozen,
    locked,
    make_run_folder,
    read_record,
    remove_registration,
)

ETC = Path("/etc/github-runner")
RUN = Path("/run/github-runner")
#: Seconds before another try after a refusal, doubled each time: a revoked key must not be tried every few
#: seconds, and one that is repaired needs no restart.
FIRST_DELAY_S = 5
LONGEST_DELAY_S = 300
#: Folders deeper than this are skipped: each level keeps one folder open.
DEEPEST = 256
AT_EMPTY_PATH = 0x1000
KINDS_TO_GIVE = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(descriptor: int) -> str:
    """The id of the mount that an open file lies on: it tells a bind mount of the same device, too."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return line
    raise OSError(f"/proc/self/fdinfo/{descriptor} names no mount")


@contextlib.contextmanager
def _opened(name: str, here: int, flags: int) -> Iterator[int]:
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _give(descriptor: int, uid: int, gid: int) -> None:
    """Change the owner of an open file; no name is looked up."""
    if _libc.fchownat(descriptor, b"", uid, gid, AT_EMPTY_PATH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _give_entry(name: str, here: int, mount: str, uid: int, gid: int) -> tuple[int, bool]:
    """Give one entry of an open folder to the account.

    Returns 1 for changed, 0 for its own already, -1 for skipped; and whether it is a folder to enter.
    """
    entry = os.stat(name, dir_fd=here, follow_symlinks=False)
    if entry.st_uid == uid and not stat.S_ISDIR(entry.st_mode):
        return 0, False
    with _opened(name, here, os.O_PATH) as descriptor:
        status = os.fstat(descriptor)
        kind = stat.S_IFMT(status.st_mode)
        if _mount(descriptor) != mount:
            return -1, False
        if status.st_uid == uid:
            return 0, kind == stat.S_IFDIR
        # A file with several names may have one outside; devices, sockets and pipes are not given.
        if kind not in KINDS_TO_GIVE or (status.st_nlink > 1 and kind != stat.S_IFDIR):
            return -1, False
        _give(descriptor, uid, gid)
        return 1, kind == stat.S_IFDIR


def _repair_folder(here: int, mount: str, uid: int, gid: int, depth: int) -> tuple[int, int]:
    changed = skipped = 0
    for name in os.listdir(here):
        try:
            result, enter = _give_entry(name, here, mount, uid, gid)
            changed, skipped = changed + (result > 0), skipped + (result < 0)
            if not enter:
                continue
            if depth == DEEPEST:
                skipped += 1
                continue
            with _opened(name, here, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK) as inside:
                if _mount(inside) == mount:
                    more = _repair_folder(inside, mount, uid, gid, depth + 1)
                    changed, skipped = changed + more[0], skipped + more[1]
        except OSError:
            # Replaced or removed by the account meanwhile.
            skipped += 1
    return changed, skipped


def repair_ownership(work: Path, uid: int, gid: int) -> tuple[int, int]:
    """Give everything in `work` that is not the account's to the account; returns (changed, skipped).

    Never follows a link, never leaves the mount, and works on what is open, whatever is renamed meanwhile.
    """
    try:
        top = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0, 0
    try:
        changed = 0
        if os.fstat(top).st_uid != uid:
            os.fchown(top, uid, gid)
            changed = 1
        inside, skipped = _repair_folder(top, _mount(top), uid, gid, 1)
        return changed + inside, skipped
    finally:
        os.close(top)


def client(instance: dict[str, Any]) -> GitHub:
    """Return GitHub's API with the App of this host. Raises ApiError."""
    app = json.loads((ETC / "app.json").read_text())
    key = ETC / "app.pem"
    mode = key.stat()
    if mode.st_uid != 0 or mode.st_mode & 0o077:
        raise ApiError(
            f"{key} must be root's and 0600: the runner's account must not read it. Run the role again."
        )
    return GitHub(
        Scope.parse(instance["url"], instance["api_url"]),
        app_id=app["app_id"],
        app_installation_id=app["app_installation_id"],
        app_key=key.read_text(),
    )


def release_name(github: GitHub, name: str, runner_id: int, host_label: str) -> None:
    """Remove the entry that the last start left. Raises ApiError when the name is another's or in use."""
    runner = github.find(name)
    if runner is None:
        return
    if not is_own(runner, runner_id, host_label):
        raise ApiError(
            f"The name {name!r} is taken by a runner that this host did not register. Choose another "
            "github_runner_name, or remove that runner at GitHub."
        )
    if runner["busy"]:
        raise ApiError(f"GitHub says that {name!r} still runs a job; trying again.")
    github.delete(runner["id"])


def mint(name: str, instance: dict[str, Any], folder: Path) -> None:
    """Register for one job: by config.sh (ephemeral), or by a just-in-time configuration for the listener."""
    record_file = ETC / "records" / f"{name}.json"
    user = instance["user"]
    github = client(instance)
    record = read_record(record_file)
    own = record.get("url") == instance["url"] and record.get("name") == instance["name"]
    release_name(github, instance["name"], record.get("id", 0) if own else 0, instance["host_label"])
    if instance["mode"] == "ephemeral":
        token = github.registration_token()
        configure(folder, user, token, {**instance, "ephemeral": True}, record_file)
        return
    remove_registration(folder, user, record_file)
    # Without an id until GitHub has answered: after a cut here the entry is known by its name and label.
    change_record(record_file, url=instance["url"], name=instance["name"])
    defaults = (
        [] if instance["no_default_labels"] else ["self-hosted", "Linux", instance["architecture"].upper()]
    )
    runner_id, config = github.just_in_time(
        instance["name"], int(instance["group_id"]), defaults + instance["labels"]
    )
    change_record(record_file, id=runner_id)
    make_run_folder(RUN)
    secret = RUN / f"{name}.env"
    secret.unlink(missing_ok=True)
    with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(f"ACTIONS_RUNNER_INPUT_JITCONFIG={config}\n")


def delay_s(name: str, failed: bool) -> float:
    """Seconds to wait before systemd tries again, counting refusals in a row; a success resets the count."""
    count = RUN / f"{name}.refusals"
    if not failed:
        count.unlink(missing_ok=True)
        return 0
    try:
        before = int(count.read_text())
    except (FileNotFoundError, ValueError):
        before = 0
    make_run_folder(RUN)
    count.write_text(f"{before + 1}\n")
    return min(FIRST_DELAY_S * 2**before, LONGEST_DELAY_S)


def prepare(name: str, instance: dict[str, Any]) -> None:
    """Make an instance ready to start. Raises LocalError and ApiError."""
    account = pwd.getpwnam(instance["user"])
    folder = Path(instance["folder"])
    record = ETC / "records" / f"{name}.json"
    with locked(record):
        if record.exists():
            if not read_record(record).get("version"):
                raise LocalError(
                    "its installation was interrupted. Run the role again, or start github-runner-update."
                )
            # A process that was killed may have left the folder as one that only root can enter.
            with frozen(folder, instance["user"]):
                pass
        try:
            changed, skipped = repair_ownership(folder / "_work", account.pw_uid, account.pw_gid)
        except OSError as error:
            raise LocalError(f"{folder}/_work is no folder that can be used ({error}). Delete it.") from None
        if changed or skipped:
            sys.stdout.write(f"_work: {changed} entries given to {instance['user']}, {skipped} skipped\n")
        if instance["mode"] != "persistent":
            mint(name, instance, folder)


def main(name: str) -> int:
    """Prepare the instance that systemd is about to start; return the exit status."""
    instance = json.loads((ETC / "instances" / f"{name}.json").read_text())
    try:
        prepare(name, instance)
    except (ApiError, LocalError, OSError) as error:
        wait = delay_s(name, failed=True)
        sys.stderr.write(f"github-runner {name}: {error} Trying again in {wait:.0f} s.\n")
        sys.stderr.flush()
        time.sleep(wait)
        return 1
    delay_s(name, failed=False)
    return 0


if __name__ == "__main__":
    as_root()
    sys.exit(main(sys.argv[1]))
