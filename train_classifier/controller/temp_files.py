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
from train_classifier.core.errors import DISK_ERRORS, NotReady, TrainClassifierError
from train_classifier.core.text import printable

PREFIX = "train-classifier-run-"
#: Longest path of a Unix socket below the folder, with room for its name.
MAX_PATH = 90
ROOM_HINT = "Free some space on this machine; TMPDIR names another folder for temporary files."


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a new folder of mode 0700 and remove it at the end; first remove those of killed runs."""
    folder, descriptor = _make_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make_folder() -> tuple[Path, int]:
    """Return a new folder and the descriptor of its locked file. Raises NotReady."""
    folder: Path | None = None
    try:
        base = tempfile.gettempdir()
        if len(base) + len(PREFIX) + 8 > MAX_PATH:
            base = "/tmp"
        remove_old_folders(Path(base))
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # Lock the file before it gets its name, so that no run sees the lock of a running one free.
        descriptor = os.open(folder / "lock.new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        locks.take_lock(descriptor)
        (folder / "lock.new").rename(folder / "lock")
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise NotReady(f"This machine cannot hold temporary files: {error.strerror}.", ROOM_HINT) from error
    return folder, descriptor


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
    """Return the error for an exception that nothing expects: a full or broken disk, else a bug.

    The traceback of a bug goes to a private file, without the secrets.
    Must be called while the exception is handled. A traceback holds no values of variables, but the text of
    an exception may quote one.
    """
    if isinstance(bug, OSError) and bug.errno in DISK_ERRORS:
        place = printable(os.fsdecode(bug.filename)) if isinstance(bug.filename, (str, bytes)) else "A file"
        return NotReady(f"{place} cannot be used: {bug.strerror}.", ROOM_HINT)
    trace = traceback.format_exc()
    for value in sorted(secrets, key=len, reverse=True):
        for form in (value, repr(value)[1:-1]):
            trace = trace.replace(form, "***")
    reason = f"A bug in train-classifier ({type(bug).__name__})."
    try:
        descriptor, path = tempfile.mkstemp(prefix="train-classifier-crash-", suffix=".txt")
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(f"train-classifier {__version__}, Python {sys.version}\n\n{trace}")
    except OSError:
        return TrainClassifierError(reason, "Please report it.", "\n".join(trace.splitlines()[-20:]))
    return TrainClassifierError(reason, f"Please report it with {path}")
