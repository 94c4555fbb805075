"""Private temporary files: the folder of a run, and tracebacks of our bugs."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from train_classifier import __version__
from train_classifier.core import locks

PREFIX = "train-classifier-run-"
#: Longest path of a Unix socket below the folder, with room for its name.
MAX_PATH = 90


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a new folder of mode 0700 and remove it at the end; first remove those of killed runs."""
    base = tempfile.gettempdir()
    if len(base) + len(PREFIX) + 8 > MAX_PATH:
        base = "/tmp"
    remove_old_folders(Path(base))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    # Lock the file before it gets its name, so that another run never sees the lock of a running run free.
    descriptor = os.open(folder / "lock.new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    locks.take_lock(descriptor)
    (folder / "lock.new").rename(folder / "lock")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_old_folders(base: Path) -> None:
    """Remove this program's folders below `base` whose run has ended: their lock can be taken."""
    for folder in base.glob(f"{PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / "lock", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if locks.try_lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def write_crash_file(trace: str) -> str:
    """Write `trace` to a private temporary file and return its path. A trace holds no values of variables."""
    descriptor, path = tempfile.mkstemp(prefix="train-classifier-crash-", suffix=".txt")
    with os.fdopen(descriptor, "w") as file:
        file.write(f"train-classifier {__version__}, Python {sys.version}\n\n{trace}")
    return path
