"""Finishes jobs whose worker is gone; whoever looks next does it, under the job's lock."""

import os
import time
from pathlib import Path
from typing import Any, Optional

from train_classifier.errors import Lost, NotReady, TrainClassifierError
from train_classifier.job import JobSpec
from train_classifier.worker import deliver, engine, launch, locks, spare, tree
from train_classifier.worker.host import Account, Host, boot_id
from train_classifier.worker.log import LogFile
from train_classifier.worker.store import Job, Store

#: Seconds that a started worker may take until it holds its job's lock.
STARTING_S = 30.0
#: Seconds after which a job that was never submitted is removed.
ABANDONED_S = 15 * 60.0


def uptime() -> float:
    """Return seconds since boot, which no change of the clock touches."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_dead(job: Job, status: dict[str, Any]) -> bool:
    """Tell whether a job should have a worker and has none."""
    if status["state"] not in ("submitted", "running") or locks.is_held(job.lock):
        return False
    if status["state"] == "submitted" and status.get("boot_id") == boot_id():
        return uptime() - float(status.get("submitted_uptime") or 0) > STARTING_S
    return True


def finish_if_dead(job: Job, host: Host) -> bool:
    """Finish a dead job; True when that was done. Raises NotReady when the engine cannot be asked."""
    status = job.status()
    return is_dead(job, status) and finish(job, host)


def finish(job: Job, host: Host, why: Optional[str] = None) -> bool:
    """Remove a dead job's container and ticket, complete its log, pack, and write `lost`.

    `why` overrides the reason. Returns False when its worker lives or it has ended. Raises NotReady when
    the engine cannot be asked: its container might still run.
    """
    store, mirror = Store.of(job.dir), None
    with locks.hold_now(job.lock) as mine:
        if not mine:
            return False
        status = job.status()
        if status["state"] not in ("submitted", "running"):
            return False
        answer: dict[str, Any] = {}
        cause: TrainClassifierError = Lost(
            why or _reason(status), "submit it again; --resume goes on from its checkpoints"
        )
        launch.drop_secrets(job)
        remove_torn(job, status.get("pid"))
        client = engine.connect()
        drain_and_remove(client, job, _try_spec(job))
        remove_ticket(host, job)
        spec = _try_spec(job)
        account = host.job_user()
        if spec is not None:
            mirror = store.mirror(spec.repository.key)
            spare.bring_back(job, mirror)
            answer, _ = deliver.pack(job, spec, account, cause)
            spare.set_aside(job, mirror, account)
        remove_half_built(store, account)
        deliver.conclude(job, spec, cause, answer, {})
        if mirror is not None:
            spare.keep(job, mirror, account)
    if mirror is not None:
        spare.clear(store, mirror, account)
    return True


def _try_spec(job: Job) -> Optional[JobSpec]:
    try:
        return job.spec()
    except TrainClassifierError:
        return None


def _reason(status: dict[str, Any]) -> str:
    if status.get("boot_id") != boot_id():
        return "the host was rebooted while the job ran"
    if status["state"] == "submitted":
        return "the job's worker never started"
    return f"the job's worker is gone (it was process {status.get('pid')}, in phase {status.get('phase')})"


def drain_and_remove(client: Any, job: Job, spec: Optional[JobSpec]) -> None:
    """Remove the job's containers; what they last said and nobody read goes into the log."""
    fifo = job.run / "out"
    reader = -1
    try:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        reader = -1
    engine.remove_all(client, job.id)
    if reader < 0:
        return
    log = LogFile(job.log, spec.log_max_bytes if spec is not None else 1 << 62)
    with open(reader, "rb", buffering=0) as source:
        rest = source.read(1 << 21) or b""
    if spec is not None and spec.secrets:
        # The secrets died with the worker: what cannot be masked is not shown.
        log.lost += len(rest)
    else:
        log.write(rest)
    log.close()


def remove_ticket(host: Host, job: Job) -> None:
    """Remove a dead job's ticket from the queue."""
    from train_classifier.worker import queue

    queue.withdraw(host.queue_dir, job.id)


def remove_torn(job: Job, worker: Optional[int]) -> None:
    """Remove what processes that are gone were writing when they were killed.

    `worker` is one of them, though it may still be listed: its lock is free before it is reaped.
    """
    for torn in job.dir.glob(".*.tmp"):
        writer = torn.name.split(".")[-3]
        if writer.isdigit() and (int(writer) == worker or not Path("/proc", writer).exists()):
            torn.unlink(missing_ok=True)


def remove_half_built(store: Store, account: Account) -> None:
    """Remove the environments whose build was killed: those whose lock nobody holds."""
    for half in (store.store / "envs").glob(".*.tmp"):
        lock = store.store / "locks" / f"environment-{half.name[1:-4]}.lock"
        if not lock.exists():
            continue
        with locks.hold_now(lock) as mine:
            if mine:
                tree.remove(account, half)


def sweep(store: Store, host: Host, client: Any) -> None:
    """Finish the dead jobs of this state folder, and remove those that were never submitted."""
    account = host.job_user()
    for job in store.all_jobs():
        try:
            status = job.status()
            if is_dead(job, status):
                finish(job, host)
            elif is_abandoned(job, status):
                remove(job, account)
        except (TrainClassifierError, OSError):
            # One that cannot be finished now is left to the next look; the others are not kept waiting.
            continue


def is_abandoned(job: Job, status: dict[str, Any]) -> bool:
    """Tell whether a job was prepared, never submitted, and not touched for a while."""
    return status["state"] in ("prepared", "pushed") and time.time() - status["updated"] > ABANDONED_S


def remove(job: Job, account: Account) -> bool:
    """Remove a job's folder under its lock; False when somebody holds it."""
    with locks.hold_now(job.lock) as mine:
        if not mine:
            return False
        launch.drop_secrets(job)
        tree.remove(account, job.dir)
        return True


__all__ = ["NotReady", "finish", "finish_if_dead", "is_dead", "remove", "sweep"]
