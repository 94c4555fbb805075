"""The steps of a training run as plain functions over a RemoteHost: preflight, push, start, follow, fetch.

The action plugins call them inside Ansible; attach, logs, fetch and cancel call the same ones without it.
"""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train_classifier.controller import fetch as fetching
from train_classifier.controller import follow as following
from train_classifier.controller.events import Reporter, phase
from train_classifier.controller.order import Order, unpack_names
from train_classifier.controller.transport import RemoteHost, Unreachable
from train_classifier.core.errors import (
    BadInput,
    JobLocked,
    NothingDelivered,
    NotReady,
    OutOfTouch,
    TrainClassifierError,
    from_dict,
)

#: Bytes a second that a slow disk copies.
SLOW_DISK = 10_000_000
#: Seconds that a host may take to start a job's worker.
SUBMIT_S = 120.0


def preflight(host: RemoteHost, order: Order, report: Reporter) -> dict[str, Any]:
    """Ask the host whether it can take the job, have it make the job's folder, and return what it checked.

    `pushed` in the answer: the host has exactly these sources already, and nothing needs to be sent.
    Raises the first failed check as the exception of its class (NotReady, NoGpu, …), and what
    the worker refuses.
    """
    with phase(report, "preflight"):
        spec = order.spec
        check = {"gpus": spec.gpus, "min_vram_mib": spec.min_vram_mib, "image": spec.image, "deep": False}
        prepared = host.call({**_prepare_request(order), "check": check}, timeout=_copy_timeout(order))
        answer: dict[str, Any] = prepared["check"]
        checks = answer.get("checks") or []
        for check in checks:
            if check.get("status") == "warn":
                report.event("message", level="warning", text=f"{host.name}: {check.get('message')}")
        failed = [check for check in checks if check.get("status") == "fail"]
        if failed:
            first = failed[0]
            detail = "\n".join(f"{check['name']}: {check['message']}" for check in failed[1:])
            raise from_dict(
                {
                    "code": first.get("code") or NotReady.code,
                    "reason": first.get("message"),
                    "hint": first.get("hint"),
                    "detail": detail or None,
                },
                host.name,
            )
        warned = any(check.get("status") == "warn" and check.get("name") == "gpu" for check in checks)
        if spec.gpus == "auto" and not answer.get("gpus") and not warned:
            report.event(
                "message", level="warning", text=f"{host.name} has no GPU: the job trains on the CPU."
            )
    pushed = bool(prepared.get("pushed"))
    if pushed:
        with phase(report, "push"):
            report.event("progress", phase="push", done=0, total=0)
    return {**answer, "pushed": pushed}


def prepare(host: RemoteHost, order: Order) -> bool:
    """Have the host make the job's folder without a check; return whether it has the sources already."""
    return bool(host.call(_prepare_request(order), timeout=_copy_timeout(order)).get("pushed"))


def _prepare_request(order: Order) -> dict[str, Any]:
    return {
        "verb": "prepare",
        "spec": order.spec.to_dict(),
        "files": order.files,
        "fingerprint": order.fingerprint,
    }


def _copy_timeout(order: Order) -> float:
    """Return the seconds that a host may take to make a job's folder and to copy its sources."""
    return 120 + order.spec.source_bytes / SLOW_DISK


def push(host: RemoteHost, order: Order, report: Reporter) -> None:
    """Send the sources into the mirror of the job that `preflight` prepared.

    Raises NotReady and what the worker refuses; tries again after a lost connection.
    """
    if not order.tree:
        raise NotReady(
            f"The files of job {order.spec.rerun_of} were replaced on {host.name} by another push just now.",
            "Start again.",
        )
    with phase(report, "push"):
        spec = order.spec
        names = unpack_names(order.files)
        report_progress = fetching.progress_callback(report, "push", spec.source_bytes or None)
        tries = 0

        def send() -> None:
            nonlocal tries
            tries += 1
            # A host that was unreachable for long may have removed a job that was never submitted.
            if tries > 1 and _state(host, spec.id) is None:
                host.call(_prepare_request(order), timeout=_copy_timeout(order))
            try:
                host.push(Path(order.tree), names, spec.id, report_progress)
            except JobLocked as error:
                if tries > 1:
                    # A process of the lost connection still holds the lock.
                    raise Unreachable(error.reason, error.hint, error.detail) from error
                raise

        _retry_before_start(host, order, send, report)


def start(
    host: RemoteHost, order: Order, secrets: Mapping[str, str], report: Reporter
) -> Iterator[dict[str, Any]]:
    """Submit the job to the worker on the host; after that it runs without the controller.

    Returns the open stream of answers for `follow`; an empty one for a detached job.
    """
    with phase(report, "start"):
        follow = None
        if not order.detach:
            renew = order.spec.lease_s is not None
            follow = following.follow_request(renew=renew, inline=True, figures=order.is_watched)
        answers = submit(host, order, secrets, report, follow)
        report.event("started", id=order.spec.id, host=host.name)
        return answers


def submit(
    host: RemoteHost,
    order: Order,
    secrets: Mapping[str, str],
    report: Reporter,
    follow: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Submit a pushed job, also after lost connections; with `follow` its answers are the stream returned."""
    submitted_before = False
    request: dict[str, Any] = {"verb": "submit", "id": order.spec.id, "secrets": dict(secrets)}
    if follow is not None:
        request["follow"] = dict(follow)

    def submit_once() -> Iterator[dict[str, Any]]:
        nonlocal submitted_before
        # The first try may have succeeded, and only its answer was lost.
        if submitted_before and _state(host, order.spec.id) in ("submitted", "running", "finished"):
            return iter(())
        submitted_before = True
        answers = host.stream(request, SUBMIT_S)
        next(answers)
        return answers

    answers: Iterator[dict[str, Any]] = _retry_before_start(host, order, submit_once, report)
    return answers


def follow(
    host: RemoteHost, order: Order, answers: Iterator[dict[str, Any]], report: Reporter
) -> dict[str, Any]:
    """Show the log and the status until the job is finished; return its result.

    `answers` comes from `start`. A small archive arrives with the result and is kept for `fetch`.
    """
    answer = following.follow(
        host,
        order.spec.id,
        report,
        patience=order.patience_s,
        lease_s=order.spec.lease_s,
        inline=True,
        figures=order.is_watched,
        answers=answers,
    )
    result: dict[str, Any] = answer["result"]
    if answer.get("content"):
        content = base64.b64decode(answer["content"])
        fetching.write_part_file(order.archive_path(result), order.spec.id, content)
    return result


def fetch(
    host: RemoteHost, job: str, result: Mapping[str, Any], output: Path, report: Reporter, patience: float
) -> None:
    """Fetch the archive of a finished job, also of a failed one, then raise the job's own failure.

    The first cause wins: an archive that cannot be fetched is reported as an error only after a good run.
    """
    problem: TrainClassifierError | None = None
    unpacked = result.get("unpacked") or {}
    if unpacked.get("why") == "lost":
        # The worker died before it could pack. If artefacts were too large, or packing was stopped, they
        # need a separate `fetch`.
        try:
            result = fetching.pack(host, job, None, report, patience)
            report.event("result", result=result)
        except TrainClassifierError as error:
            problem = error
    archive = result.get("archive")
    if archive:
        try:
            with phase(report, "fetch"):
                delivered = fetching.fetch(host, job, archive, output, report, patience)
            report.event("delivered", **delivered)
        except TrainClassifierError as error:
            problem = error
    elif not result.get("exit_code"):
        problem = NothingDelivered(f"Job {job} succeeded, but has no archive.")
    if result.get("exit_code"):
        if problem:
            text = f"The archive was not fetched: {problem.reason}"
            report.event("message", level="warning", text=text)
        else:
            report_unpacked(host, job, result, report)
        raise error_of({**result, "hint": fetching.complete_hint(host, job, result.get("hint"))})
    if problem:
        raise problem
    report_unpacked(host, job, result, report)


def report_unpacked(host: RemoteHost, job: str, result: Mapping[str, Any], report: Reporter) -> None:
    """Warn about results that stay on the host, and say how to fetch them, unless the job's reason does."""
    unpacked = result.get("unpacked") or {}
    if unpacked and unpacked.get("reason") != result.get("reason"):
        hint = fetching.complete_hint(host, job, unpacked.get("hint"))
        text = "; ".join(filter(None, (unpacked.get("reason"), hint)))
        report.event("message", level="warning", text=text)


def error_of(result: Mapping[str, Any]) -> TrainClassifierError:
    """Return the exception for a result with an exit code other than 0."""
    return from_dict(
        {
            "code": result.get("exit_code"),
            "reason": result.get("reason") or f"The job ended: {result.get('outcome')}.",
            "hint": result.get("hint"),
            "detail": result.get("detail"),
            "link": result.get("link"),
        }
    )


def cancel(host: RemoteHost, job: str, by: str) -> dict[str, Any]:
    """Ask the worker to stop the job; asking twice is harmless. Returns {id, state}."""
    return host.call({"verb": "cancel", "id": job, "by": by}, timeout=60)


def _state(host: RemoteHost, job: str) -> str | None:
    """Return the job's state on the host, None when it is not there."""
    try:
        answer = host.call({"verb": "status", "id": job})
    except BadInput:
        return None
    state: str | None = (answer.get("status") or {}).get("state")
    return state


def _retry_before_start(host: RemoteHost, order: Order, action: Any, report: Reporter) -> Any:
    """Call `action` again after lost connections; a final loss before the submission means: never started."""
    try:
        return following.retry_while_unreachable(host, order.spec.id, action, report, order.patience_s)
    except OutOfTouch as error:
        cause = error.__cause__
        if not isinstance(cause, Unreachable):
            raise
        raise NotReady(cause.reason, cause.hint or "The job was not started.", cause.detail) from error
