"""Keep the traceback of a bug of ours in a private file, so that the terminal gets one line."""

import os
import sys
import tempfile

from train_classifier import __version__


def write_crash_file(trace: str) -> str:
    """Write `trace` into a private temporary file and return its path. It holds no values of variables."""
    descriptor, path = tempfile.mkstemp(prefix="train-classifier-crash-", suffix=".txt")
    with os.fdopen(descriptor, "w") as file:
        file.write(f"train-classifier {__version__}, Python {sys.version}\n\n{trace}")
    return path
