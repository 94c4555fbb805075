"""Translates faults of the host into errors: a full or broken disk, an engine that is down or refuses."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import DISK_ERRORS, NotReady, TrainClassifierError

DISK_HINT = "check the permissions of the host's state folder and the space on its disk"


def of_disk(error: BaseException) -> bool:
    """Tell whether a disk is at fault."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


@contextlib.contextmanager
def ignore_disk_errors() -> Iterator[None]:
    """Ignore the errors of a full or broken disk."""
    try:
        yield
    except OSError as error:
        if not of_disk(error):
            raise


def of_host(error: BaseException) -> Optional[NotReady]:
    """Return NotReady for an error that is the host's fault, None for any other error (a bug)."""
    if isinstance(error, OSError) and of_disk(error):
        return NotReady(f"{error.filename or 'the state folder'}: {error.strerror}", DISK_HINT)
    try:
        import docker.errors
        import requests.exceptions
    except ImportError:
        return None
    if isinstance(error, docker.errors.APIError):
        text = str(error.explanation or error)
        if "no space left" in text.lower():
            return NotReady("the disk of the container engine is full", "see its use: docker system df", text)
        return NotReady("the container engine refused the job", "run: train-classifier doctor", text)
    if isinstance(error, (requests.exceptions.RequestException, ConnectionError)):
        return NotReady(
            "the container engine went away and did not come back in time",
            "check the engine: systemctl status docker",
            str(error),
        )
    return None


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error in the form of the protocol; an error that is not the host's fault is a bug."""
    if isinstance(error, TrainClassifierError):
        return error.to_dict()
    fault = of_host(error)
    if fault is None and isinstance(error, OSError) and error.filename is not None:
        fault = NotReady(f"{error.filename}: {error.strerror}", DISK_HINT)
    if fault is not None:
        return fault.to_dict()
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    return TrainClassifierError(
        f"a bug in the worker: {type(error).__name__}: {error}", "report it", f"raised at {where}"
    ).to_dict()
