"""One finding of the host check, and the functions that create it."""

import dataclasses
from typing import Any, Optional

from train_classifier.core.errors import ExitCode, TrainClassifierError

ROLE = "run the role training_host on this host"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found: `status` is ok, warn, fail or skip; a failure has its exit code."""

    name: str
    status: str
    message: str
    hint: Optional[str] = None
    code: Optional[int] = None

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON-ready data."""
        return dataclasses.asdict(self)


def ok(name: str, message: str) -> Finding:
    """Return a check that passed."""
    return Finding(name, "ok", message)


def warn(name: str, message: str, hint: Optional[str] = None) -> Finding:
    """Return a warning, which stops no job."""
    return Finding(name, "warn", message, hint)


def skip(name: str, message: str) -> Finding:
    """Return a check that does not apply."""
    return Finding(name, "skip", message)


def fail(name: str, message: str, hint: Optional[str] = None, code: int = ExitCode.NOT_READY) -> Finding:
    """Return a failure, which stops a job: exit code 3 (host or engine) or 8 (GPU)."""
    return Finding(name, "fail", message, hint, int(code))


def from_error(name: str, error: TrainClassifierError) -> Finding:
    """Return the check that ended in this error."""
    message = error.reason if not error.detail else f"{error.reason}: {error.detail.strip().splitlines()[-1]}"
    return fail(name, message, error.hint, error.code)
