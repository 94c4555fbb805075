"""Private temporary files: the folder of a run, and tracebacks of our bugs."""

import contextlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path

from train_classifier import __version__
from train_classifier.core import locks
from train_classifier.core.errors import TrainClassifierError

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


def bug_error(bug: Exception, secrets: Collection[str] = ()) -> TrainClassifierError:
    """Return the error for a bug in this program; its traceback goes to a private file, without the secrets.

    Must be called while the exception is handled. A traceback holds no values of variables, but the text of
    an exception may quote one.
    """
    trace = traceback.format_exc()
    for value in sorted(secrets, key=len, reverse=True):
        for form in (value, repr(value)[1:-1]):
            trace = trace.replace(form, "***")
    descriptor, path = tempfile.mkstemp(prefix="train-classifier-crash-", suffix=".txt")
    with os.fdopen(descriptor, "w") as file:
        file.write(f"train-classifier {__version__}, Python {sys.version}\n\n{trace}")
    reason = f"A bug in train-classifier ({type(bug).__name__})."
    return TrainClassifierError(reason, f"Please report it with {path}")
