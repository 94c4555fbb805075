#!/usr/bin/python3 -I
"""What root does before a runner instance starts: give `_work` back to its user; mint a one-job registration.

Called by the unit as `prepare INSTANCE` (ExecStartPre=+). Reads /etc/github-runner/instances/INSTANCE.json;
in the modes ephemeral and jit also app.json and app.pem beside that folder, which only root can read.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from github_runner_api import ApiError, GitHub, Scope
from github_runner_local import LocalError, configure, drop

ETC = Path("/etc/github-runner")
RUN = Path("/run/github-runner")
#: Seconds before another try after a refusal, doubled each time: a revoked key must not be tried every few
#: seconds, and one that is mended needs nobody here.
FIRST_DELAY_S = 5
LONGEST_DELAY_S = 300


def repair_ownership(work: Path, uid: int, gid: int) -> tuple[int, int]:
    """Give everything in `work` that is not the user's to the user; returns (given, left alone).

    Never follows a link, never leaves the file system, and leaves alone files with several names: one of them
    may lie outside. Works on open folders, so that a rename while it runs cannot lead it elsewhere.
    """
    try:
        top = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0, 0
    given = left = 0
    try:
        device = os.fstat(top).st_dev
        if os.fstat(top).st_uid != uid:
            os.fchown(top, uid, gid)
            given += 1
        for _, folders, files, here in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            inside = []
            for name in folders + files:
                try:
                    found = os.stat(name, dir_fd=here, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                is_folder = stat.S_ISDIR(found.st_mode)
                if found.st_dev != device:
                    left += 1
                    continue
                if is_folder:
                    inside.append(name)
                if found.st_uid == uid:
                    continue
                if found.st_nlink > 1 and not is_folder:
                    left += 1
                    continue
                os.chown(name, uid, gid, dir_fd=here, follow_symlinks=False)
                given += 1
            folders[:] = [name for name in folders if name in inside]
    finally:
        os.close(top)
    return given, left


def client(instance: dict[str, Any]) -> GitHub:
    app = json.loads((ETC / "app.json").read_text())
    key = ETC / "app.pem"
    mode = key.stat()
    if mode.st_uid != 0 or mode.st_mode & 0o077:
        raise ApiError(
            f"{key} must be root's and 0600: the runner's user must not read it. Run the role again."
        )
    return GitHub(
        Scope.parse(instance["url"], instance["api_url"]),
        app_id=app["app_id"],
        app_installation_id=app["app_installation_id"],
        app_key=key.read_text(),
    )


def clear_name(github: GitHub, name: str, host_label: str) -> None:
    """Remove what our last start left registered. Raises ApiError when the name is another's or in use."""
    there = github.find(name)
    if there is None:
        return
    if host_label not in [label["name"] for label in there["labels"]]:
        raise ApiError(
            f"The name {name!r} is taken by a runner of another host. Choose another github_runner_name."
        )
    if there["busy"]:
        raise ApiError(f"GitHub says that {name!r} still runs a job; trying again.")
    github.delete(there["id"])


def mint(name: str, instance: dict[str, Any], folder: Path) -> None:
    """Register for one job: by config.sh (ephemeral), or by a just-in-time configuration for the listener."""
    github = client(instance)
    clear_name(github, instance["name"], instance["host_label"])
    drop(folder)
    if instance["mode"] == "ephemeral":
        configure(folder, instance["user"], github.registration_token(), {**instance, "ephemeral": True})
        return
    defaults = (
        [] if instance["no_default_labels"] else ["self-hosted", "Linux", instance["architecture"].upper()]
    )
    config = github.just_in_time(
        instance["name"], int(instance["group_id"]), defaults + instance["labels"], "_work"
    )
    RUN.mkdir(mode=0o700, exist_ok=True)
    secret = RUN / f"{name}.env"
    secret.unlink(missing_ok=True)
    with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(f"ACTIONS_RUNNER_INPUT_JITCONFIG={config}\n")


def delay_s(name: str, failed: bool) -> float:
    """Seconds to wait before systemd tries again, counting refusals in a row; a success begins anew."""
    count = RUN / f"{name}.refusals"
    if not failed:
        count.unlink(missing_ok=True)
        return 0
    try:
        before = int(count.read_text())
    except (FileNotFoundError, ValueError):
        before = 0
    RUN.mkdir(mode=0o700, exist_ok=True)
    count.write_text(f"{before + 1}\n")
    return min(FIRST_DELAY_S * 2**before, LONGEST_DELAY_S)


def main(name: str) -> int:
    instance = json.loads((ETC / "instances" / f"{name}.json").read_text())
    account = pwd.getpwnam(instance["user"])
    folder = Path(instance["folder"])
    try:
        given, left = repair_ownership(folder / "_work", account.pw_uid, account.pw_gid)
        if given or left:
            sys.stdout.write(f"_work: {given} entries given back to {instance['user']}, {left} left alone\n")
        if instance["mode"] != "persistent":
            mint(name, instance, folder)
    except (ApiError, LocalError, OSError) as error:
        wait = delay_s(name, failed=True)
        sys.stderr.write(f"github-runner {name}: {error} Trying again in {wait:.0f} s.\n")
        sys.stderr.flush()
        time.sleep(wait)
        return 1
    delay_s(name, failed=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
