"""What is left of a job that was cleaned: its entry of `list`, one line in a file of the state folder."""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from train_classifier.core import locks
from train_classifier.core.job import JOB_ID
from train_classifier.worker.state.store import Store

#: Bytes of the file; then its older half goes. A run takes about 600.
MOST_BYTES = 16 << 20
#: Bytes of one run; of a longer one the arguments and metrics are left out.
MOST_LINE = 16 << 10


def _file(store: Store) -> Path:
    return store.root / "runs.jsonl"


def keep(store: Store, entry: dict[str, Any]) -> None:
    """Add a run. Only the account of the state folder can write there. Raises OSError on a full disk."""
    line = json.dumps(entry)
    if len(line) > MOST_LINE:
        line = json.dumps({**entry, "arguments": [], "metrics": None, "message": None})
    file = _file(store)
    with locks.hold(file.with_suffix(".lock")):
        if file.exists() and file.stat().st_size > MOST_BYTES:
            lines = _lines(file)
            new = file.with_suffix(".new")
            new.unlink(missing_ok=True)
            _append(new, b"".join(lines[len(lines) // 2 :]))
            os.replace(new, file)
        _append(file, line.encode("ascii") + b"\n")


def _append(file: Path, data: bytes) -> None:
    # The state folder of root can be entered by all.
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        except OSError:
            # No half line, which would spoil the next one.
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def kept(store: Store, model: Any) -> list[dict[str, Any]]:
    """Return the runs of a model that were kept, each once, oldest first; what cannot be read is left out."""
    runs: dict[str, dict[str, Any]] = {}
    name = json.dumps(model).encode("ascii")
    for line in _lines(_file(store)):
        # Most lines are of other models: finding that is cheaper than reading them as JSON.
        with contextlib.suppress(ValueError):
            run = json.loads(line) if name in line else None
            if isinstance(run, dict) and run.get("model") == model and JOB_ID.match(str(run.get("id"))):
                runs[run["id"]] = run
    return [runs[job] for job in sorted(runs)]


def _lines(file: Path) -> list[bytes]:
    try:
        with open(file, "rb") as opened:
            return opened.read(2 * MOST_BYTES).splitlines(keepends=True)
    except FileNotFoundError:
        return []
