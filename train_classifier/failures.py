"""Failures as data: how one crosses from the worker, or from a plugin, to whoever prints it."""

from typing import Any

from train_classifier import errors
from train_classifier.errors import BadInput, ExitCode, TrainClassifierError

CLASSES: dict[int, type[TrainClassifierError]] = {
    int(kind.code): kind
    for kind in (
        errors.NotReady,
        errors.TrainingFailed,
        errors.TimedOut,
        errors.Cancelled,
        errors.NothingDelivered,
        errors.NoGpu,
        errors.NoEnvironment,
        errors.Lost,
        errors.OutOfTouch,
    )
}


def error_from(data: Any, host: str | None = None) -> TrainClassifierError:
    """Return the exception that `data` ({code, reason, hint, detail, problems}) stands for."""
    if not isinstance(data, dict):
        data = {"reason": str(data)}
    code = data.get("code")
    reason = str(data.get("reason") or "The worker failed and said nothing.")
    if host and host not in reason and host != "localhost" and code == ExitCode.NOT_READY:
        reason = f"{host}: {reason}"
    hint, detail = data.get("hint"), data.get("detail")
    if code == ExitCode.BAD_INPUT:
        return BadInput(*(data.get("problems") or [reason]), hint=hint)
    kind = CLASSES.get(code) if isinstance(code, int) else None
    return (kind or TrainClassifierError)(reason, hint, detail)


def failure(error: TrainClassifierError) -> dict[str, Any]:
    """Return the exception as JSON-ready data, the form that `error_from` reads."""
    return {
        "code": int(error.code),
        "reason": error.reason,
        "hint": error.hint,
        "detail": error.detail,
        "problems": list(getattr(error, "problems", [])),
    }
