"""A job's secrets between its submission and its worker, which reads them once and removes them."""

import contextlib
import json
import os
from pathlib import Path

from train_classifier.core.errors import NotReady
from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account

#: Where every account may make files, on no disk.
MEMORY = "/dev/shm"


def store_secrets(job: Job, account: Account, secrets: dict[str, str], in_memory: bool = True) -> None:
    """Write the secrets to a file that only this account can read, in memory if possible.

    Unless `in_memory` into the job's folder, where another host of a cluster finds them.
    """
    if not secrets:
        return
    folders = [f"/run/user/{account.uid}" if account.uid else "/run", MEMORY] if in_memory else []
    descriptor = -1
    for folder in [*(folder for folder in folders if os.access(folder, os.W_OK)), str(job.dir)]:
        path = Path(folder, f"train-classifier-{job.id}.secrets")
        # In MEMORY another account may have a file of this name.
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            break
    if descriptor < 0:
        raise NotReady(f"{path} exists already", "submit the job again")
    with open(descriptor, "wb") as file:
        file.write(json.dumps(secrets).encode())
    write_bytes(job.dir / "secrets-at", os.fsencode(path))


def take_secrets(job: Job, keep: bool = False) -> dict[str, str]:
    """Read the secrets and, unless `keep`, remove them. Raises NotReady when they are gone."""
    pointer = job.dir / "secrets-at"
    try:
        path = Path(os.fsdecode(pointer.read_bytes()))
    except FileNotFoundError:
        return {}
    try:
        secrets: dict[str, str] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotReady(
            "the job's secrets are gone: was the host rebooted?", "submit the job again"
        ) from error
    finally:
        if not keep:
            remove_secrets(job)
    return secrets


def remove_secrets(job: Job) -> None:
    """Remove secrets that no worker took."""
    pointer = job.dir / "secrets-at"
    with contextlib.suppress(FileNotFoundError):
        path = Path(os.fsdecode(pointer.read_bytes()))
        if path.name == f"train-classifier-{job.id}.secrets":
            path.unlink(missing_ok=True)
        pointer.unlink()
