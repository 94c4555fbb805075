"""All failures that this package reports: one exit code per class, a reason, and what to do next.

The worker and the plugins send errors as data; only `to_dict` and `from_dict` convert them.
"""

import enum
import errno
import re
from typing import Any, Optional

from train_classifier.core.text import hide_logins


class ExitCode(enum.IntEnum):
    """The exit codes of every command, in the README's table. The first cause wins."""

    TRAINED = 0
    BUG = 1
    BAD_INPUT = 2
    NOT_READY = 3
    FAILED = 4
    TIMED_OUT = 5
    CANCELLED = 6
    NOTHING_DELIVERED = 7
    NO_GPU = 8
    NO_ENVIRONMENT = 9
    LOST = 10
    OUT_OF_TOUCH = 11


#: The word that status, result.json and manifest.json use for each code.
OUTCOMES = {
    ExitCode.TRAINED: "trained",
    ExitCode.BUG: "bug",
    ExitCode.BAD_INPUT: "bad-input",
    ExitCode.NOT_READY: "not-ready",
    ExitCode.FAILED: "failed",
    ExitCode.TIMED_OUT: "timed-out",
    ExitCode.CANCELLED: "cancelled",
    ExitCode.NOTHING_DELIVERED: "nothing-delivered",
    ExitCode.NO_GPU: "no-gpu",
    ExitCode.NO_ENVIRONMENT: "no-environment",
    ExitCode.LOST: "lost",
    ExitCode.OUT_OF_TOUCH: "out-of-touch",
}


#: Numbers of errors that are the fault of a disk, not of a program.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
#: Where docs/ is published. The page of failures has an entry for each outcome and each topic.
DOCS = "https://incuvers.github.io/train-classifier"
TROUBLESHOOTING = f"{DOCS}/troubleshooting/#"


class TrainClassifierError(Exception):
    """A failure with a reason (what happened, where), a hint (what to do next) and an exit code."""

    code = ExitCode.BUG
    #: Which failure of its code it is, for a caller that treats it differently; None: no caller does.
    cause: Optional[str] = None
    #: Its entry in docs/troubleshooting.md, where that of its outcome says too little.
    topic: Optional[str] = None

    def __init__(
        self,
        reason: str,
        hint: Optional[str] = None,
        detail: Optional[str] = None,
        code: Optional[ExitCode] = None,
    ) -> None:
        # Addresses in messages come from checkouts, settings and tools.
        self.reason = hide_logins(reason)
        super().__init__(self.reason)
        self.hint = hint if hint is None else hide_logins(hint)
        #: The tool's own last lines.
        self.detail = detail if detail is None else hide_logins(detail)
        if code is not None:
            self.code = code

    @property
    def link(self) -> str:
        """Return the address of the entry that explains this failure."""
        return TROUBLESHOOTING + (self.topic or OUTCOMES[self.code])

    def to_dict(self) -> dict[str, Any]:
        """Return the error as JSON-ready data, the form that `from_dict` reads."""
        data = {
            "code": int(self.code),
            "reason": self.reason,
            "hint": self.hint,
            "detail": self.detail,
            "problems": list(getattr(self, "problems", [])),
            "link": self.link,
        }
        return {**data, "cause": self.cause} if self.cause else data


class BadInput(TrainClassifierError):
    """The request itself is wrong. Holds all problems, not only the first."""

    code = ExitCode.BAD_INPUT

    def __init__(self, *problems: str, hint: Optional[str] = None) -> None:
        super().__init__("; ".join(problems), hint)
        self.problems = list(map(hide_logins, problems))


class AmbiguousId(BadInput):
    """Several jobs of a host have ids that begin like this."""

    cause = "ambiguous-id"


class SeveralHosts(BadInput):
    """Several hosts match where one is needed."""

    cause = "several-hosts"


class NotReady(TrainClassifierError):
    """The host or its container engine cannot take a job."""

    code = ExitCode.NOT_READY


class JobLocked(NotReady):
    """Another push of the job, or its run, holds its lock."""

    cause = "job-locked"


class TrainingFailed(TrainClassifierError):
    """The model itself ended badly."""

    code = ExitCode.FAILED


class TimedOut(TrainClassifierError):
    """A time limit of the request was reached."""

    code = ExitCode.TIMED_OUT


class Cancelled(TrainClassifierError):
    """The job was cancelled."""

    code = ExitCode.CANCELLED


class NothingDelivered(TrainClassifierError):
    """Training ended well, but there are no new results, or it did not reach the caller."""

    code = ExitCode.NOTHING_DELIVERED


class NoGpu(TrainClassifierError):
    """No GPU as asked for, or the container or the framework does not see it."""

    code = ExitCode.NO_GPU


class NoEnvironment(TrainClassifierError):
    """The image, the Debian packages or the requirements could not be made ready."""

    code = ExitCode.NO_ENVIRONMENT


class Lost(TrainClassifierError):
    """The worker of the job is gone."""

    code = ExitCode.LOST


class OutOfTouch(TrainClassifierError):
    """The connection is gone; the job runs on."""

    code = ExitCode.OUT_OF_TOUCH


_CLASSES = {
    int(kind.code): kind
    for kind in (
        NotReady, TrainingFailed, TimedOut, Cancelled, NothingDelivered, NoGpu, NoEnvironment, Lost,
        OutOfTouch,
    )
}  # fmt: skip


def topic_of(data: Any) -> Optional[str]:
    """Return the topic that the `link` of an error or a result names; None for any other address."""
    link = str(data.get("link") or "")
    match = re.fullmatch(re.escape(TROUBLESHOOTING) + r"([a-z0-9-]{1,40})", link)
    return match[1] if match else None


def link_of(result: Any) -> Optional[str]:
    """Return the address of the entry that explains how a job ended; None for a success.

    `result` is a result.json, which may be of an older version, or a stranger's.
    """
    code = result.get("exit_code")
    if not isinstance(code, int) or code == ExitCode.TRAINED or code not in set(ExitCode):
        return None
    return TROUBLESHOOTING + (topic_of(result) or OUTCOMES[ExitCode(code)])


def from_dict(data: Any, host: Optional[str] = None) -> TrainClassifierError:
    """Return the exception for `data`, which may hold anything, as it may come from another machine.

    For a host that is not ready, the reason names `host`.
    """
    if not isinstance(data, dict):
        data = {"reason": str(data)}
    code = data.get("code")
    reason = str(data.get("reason") or "The worker failed and said nothing.")
    if host and host not in reason and host != "localhost" and code == ExitCode.NOT_READY:
        reason = f"{host}: {reason}"
    hint, detail = (str(data[key]) if data.get(key) else None for key in ("hint", "detail"))
    if code == ExitCode.BAD_INPUT:
        problems = data.get("problems")
        problems = [str(problem) for problem in problems] if isinstance(problems, list) else []
        kinds = {kind.cause: kind for kind in (AmbiguousId, SeveralHosts)}
        bad_input = kinds.get(data.get("cause"), BadInput)(*(problems or [reason]), hint=hint)
        bad_input.detail = detail
        return bad_input
    kind = _CLASSES.get(code) if isinstance(code, int) else None
    if kind is NotReady and data.get("cause") == JobLocked.cause:
        kind = JobLocked
    error = (kind or TrainClassifierError)(reason, hint, detail)
    error.topic = topic_of(data)
    return error
