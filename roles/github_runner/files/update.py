#!/usr/bin/python3 -I
"""Bring the runners of this host to GitHub's newest release, each once it is idle. Run by a timer, as root.

A runner cannot replace its own programs, and GitHub gives no jobs to one that is 30 days behind. Version,
address and SHA-256 come from the public release: no credential is needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from github_runner_api import ApiError, release
from github_runner_local import (
    LocalError,
    as_root,
    busy,
    fetch,
    install,
    listening,
    locked,
    make_run_folder,
    read_record,
)

ETC = Path("/etc/github-runner")
RUN = Path("/run/github-runner")
CACHE = Path("/var/cache/github-runner")
POLL_S = 2


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, for comparisons."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def is_behind(name: str, version: str) -> bool:
    """Is the instance older than this version? An instance without a record is converted by the role."""
    record = read_record(ETC / "records" / f"{name}.json")
    return bool(record) and numbers(record.get("version", "0")) < numbers(version)


def update(name: str, instance: dict[str, Any], archive: Path, version: str) -> bool:
    """Install the version if the instance is idle; True when nothing is left to do."""
    record = ETC / "records" / f"{name}.json"
    folder = Path(instance["folder"])
    with locked(record):
        if not is_behind(name, version):
            return True
        # The launcher ends the listener once it is idle while the hold is there (run.sh).
        if listening(folder) or busy(folder):
            return False
        install(archive, folder, instance["user"], version, record)
    sys.stdout.write(f"github-runner {name}: updated to {version}\n")
    sys.stdout.flush()
    return True


def main() -> int:
    """Update every instance that is behind, each once it is idle; return the exit status."""
    settings = json.loads((ETC / "update.json").read_text())
    instances = {path.stem: json.loads(path.read_text()) for path in (ETC / "instances").glob("*.json")}
    holds = {name: RUN / f"hold-{name}" for name in instances}
    try:
        newest = release(settings["releases_url"], settings["architecture"])
        pending = [name for name in instances if is_behind(name, newest["version"])]
        if not pending:
            return 0
        if not newest["sha256"]:
            raise LocalError(
                f"The release {newest['version']} names no SHA-256, and nothing unverified is installed."
            )
        archive = CACHE / newest["filename"]
        fetch(newest["url"], newest["sha256"], archive)
        make_run_folder(RUN)
        for name in pending:
            holds[name].touch()
        while pending:
            for name in list(pending):
                if update(name, instances[name], archive, newest["version"]):
                    holds[name].unlink()
                    pending.remove(name)
                    # Starts an instance that ended because its version was refused or incomplete.
                    start = ["systemctl", "--no-block", "start", f"github-runner@{name}.service"]
                    if (ETC / "instances" / f"{name}.json").exists():
                        subprocess.run(start, check=False)
            if pending:
                time.sleep(POLL_S)
    except (ApiError, LocalError, OSError) as error:
        sys.stderr.write(f"github-runner-update: {error}\n")
        return 1
    finally:
        for hold in holds.values():
            hold.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    as_root()
    sys.exit(main())
