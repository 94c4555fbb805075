"""Finishes jobs whose worker is gone; whoever looks next does it, under the job's lock."""

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Optional

from train_classifier.errors import ExitCode, Lost, NotReady, TrainClassifierError
from train_classifier.job import SCHEMA, JobSpec
from train_classifier.worker import deliver, engine, launch, locks, manifest, place, program, spare, tree
from train_classifier.worker.host import Account, Host, boot_id, uptime
from train_classifier.worker.log import LogFile
from train_classifier.worker.store import Job, Store, read_json

#: Seconds that a started worker may take until it holds its job's lock.
STARTING_S = 30.0
#: Seconds after which a job that was never submitted is removed.
ABANDONED_S = 15 * 60.0
#: Bytes that must have become free before packing that failed is tried again, and seconds after which it is
#: tried in any case.
MORE_BYTES = 1 << 20
AGAIN_S = 600.0


def is_dead(job: Job, status: dict[str, Any]) -> bool:
    """Tell whether a job should have a worker and has none."""
    if status["state"] not in ("submitted", "running") or locks.is_held(job.lock):
        return False
    if status["state"] == "submitted" and status.get("boot_id") == boot_id():
        return uptime() - float(status.get("submitted_uptime") or 0) > STARTING_S
    return True


def finish_if_dead(job: Job, host: Host) -> bool:
    """Finish a dead job, and what the end of a finished one left undone; True when that was done.

    Raises NotReady when the engine cannot be asked.
    """
    status = job.status()
    if status["state"] == "finished":
        # The result stands: what cannot be cleared up now is left to the next look.
        with contextlib.suppress(TrainClassifierError, OSError):
            return _is_untidy(job) and clear_up(job, host)
        return False
    return is_dead(job, status) and finish(job, host)


def finish(job: Job, host: Host, why: Optional[str] = None) -> bool:
    """Remove a dead job's container and ticket, complete its log, pack, and write `lost`.

    `why` overrides the reason. What its worker had packed or written before it died stands. Returns False
    when its worker lives or it has ended. Raises NotReady when the engine cannot be asked: its container
    might still run.
    """
    other = _named_worker(job)
    if other is not None:
        return _finish_by(other, job)
    with locks.hold_now(job.lock) as mine:
        if not mine:
            return False
        status = job.status()
        if status["state"] not in ("submitted", "running"):
            return False
        answer: dict[str, Any] = {}
        cause: Optional[TrainClassifierError] = Lost(
            why or _reason(status), "submit it again; --resume goes on from its checkpoints"
        )
        launch.drop_secrets(job)
        remove_torn(job, status.get("pid"))
        job.drop_reserve()
        spec = try_spec(job)
        drain_and_remove(engine.connect(), job, spec)
        remove_ticket(host, job)
        account = host.job_user()
        if spec is not None and job.result() is None:
            before = deliver.packed_before(job, spec)
            answer, cause = before if before is not None else deliver.pack(job, spec, account, cause)
        remove_half_built(Store.of(job.dir), account)
        deliver.conclude(job, spec, cause, answer, {})
        deliver.clear_up(job, account)
    _clear_mirror(job, account)
    return True


def _clear_mirror(job: Job, account: Account) -> None:
    """Remove what a job that is over left beside its mirror; its lock is free by now."""
    mirror = deliver.mirror_of(job)
    if mirror is not None:
        spare.clear(Store.of(job.dir), mirror, account)


def _named_worker(job: Job) -> Optional[Path]:
    """Return the program of another version that carries the job and is there to finish it, else None."""
    named = (read_json(job.dir / "status.json") or {}).get("worker")
    if not named or Path(named) == program.PROGRAM:
        return None
    # Never a program from anywhere else than where programs are put.
    programs = Store.of(job.dir).workers.resolve()
    there = Path(named).resolve().parent == programs and (Path(named) / "__main__.py").is_file()
    return Path(named) if there else None


def _finish_by(worker: Path, job: Job) -> bool:
    """Let another version finish its job; it looks itself whether its worker lives. Raises NotReady."""
    before = (job.dir / "result.json").exists()
    done = subprocess.run(
        [program.PYTHON, "-I", str(worker), "finish", str(job.dir)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stdout.decode("utf-8", "replace").strip()[-2000:]
        raise NotReady(f"job {job.id} could not be finished by the version that began it", detail=said)
    return not before and (job.dir / "result.json").exists()


def _is_untidy(job: Job) -> bool:
    """Tell whether a finished job has left something behind, or artefacts that wait for room to be packed."""
    left = job.run.exists() or (job.workspace.exists() and _is_worth_packing(job, job.result() or {}))
    return left and not locks.is_held(job.lock)


def _is_worth_packing(job: Job, result: dict[str, Any]) -> bool:
    """Tell whether packing may succeed that failed before: there is more room now, or it is a while ago."""
    failed = result.get("unpacked")
    if not failed:
        return True
    roomier = deliver.free_bytes(job.dir) > int(failed["free_bytes"]) + MORE_BYTES
    return roomier or abs(time.time() - os.stat(job.dir / "result.json").st_mtime) > AGAIN_S


def clear_up(job: Job, host: Host) -> bool:
    """Do what the end of a finished job left undone: its worker died meanwhile, or engine or disk refused.

    Returns False when another process is at it. Raises NotReady when the engine cannot be asked.
    """
    with locks.hold_now(job.lock) as mine:
        if not mine:
            return False
        result = job.result()
        if job.status()["state"] != "finished" or result is None:
            return False
        account = host.job_user()
        if job.run.exists():
            engine.remove_all(engine.connect(), job.id)
            remove_ticket(host, job)
        if result.get("unpacked") and job.workspace.exists() and _is_worth_packing(job, result):
            _pack_again(job, result, account)
        deliver.clear_up(job, account)
    _clear_mirror(job, account)
    return True


def _pack_again(job: Job, result: dict[str, Any], account: Account) -> None:
    """Pack what could not be packed at the job's end, and write the result anew."""
    spec = job.spec()
    cause: Optional[TrainClassifierError] = None
    if result["exit_code"] not in (ExitCode.TRAINED, ExitCode.NOTHING_DELIVERED):
        # Only a model that ended well was told that nothing is delivered for want of room.
        cause = TrainClassifierError(
            result["reason"], result["hint"], result["detail"], ExitCode(result["exit_code"])
        )
    answer, cause = deliver.pack(job, spec, account, cause)
    if answer.get("failed"):
        job.write_result({**result, "unpacked": {"free_bytes": deliver.free_bytes(job.dir)}})
        return
    done = {**result, **manifest.ending(cause), **deliver.delivered(answer)}
    del done["unpacked"]
    job.write_result(done)
    deliver.say_finished(job, done)


def try_spec(job: Job) -> Optional[JobSpec]:
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
    for half in store.builds.glob(".*.tmp"):
        lock = store.locks / f"environment-{half.name[1:-4]}.lock"
        if not lock.exists():
            continue
        with locks.hold_now(lock) as mine:
            if mine:
                place.remove(account, half)


def sweep(store: Store, host: Host, client: Any) -> None:
    """Finish the dead jobs of this state folder, and remove those that were never submitted."""
    account = host.job_user()
    for job in store.all_jobs():
        try:
            if _is_of_another_schema_and_dead(job):
                finish(job, host)
                continue
            status = job.status()
            if status["state"] == "finished" or is_dead(job, status):
                finish_if_dead(job, host)
            elif is_abandoned(job, status):
                remove(job, account)
        except (TrainClassifierError, OSError):
            # One that cannot be finished now is left to the next look; the others are not kept waiting.
            continue


def _is_of_another_schema_and_dead(job: Job) -> bool:
    """Tell whether a job that we cannot read has nobody, for longer than a worker takes to start."""
    data: Any = read_json(job.dir / "status.json")
    if not isinstance(data, dict) or data.get("schema") == SCHEMA or (job.dir / "result.json").exists():
        return False
    quiet: bool = abs(time.time() - os.stat(job.dir / "status.json").st_mtime) > 2 * STARTING_S
    return quiet and _named_worker(job) is not None and not locks.is_held(job.lock)


def is_abandoned(job: Job, status: dict[str, Any]) -> bool:
    """Tell whether a job was prepared, never submitted, and not touched for a while."""
    if status["state"] not in ("prepared", "pushed"):
        return False
    if "updated_uptime" not in status:
        # One without a status.
        return time.time() - float(status["updated"]) > ABANDONED_S
    # After a reboot its controller gets the same time again.
    since = float(status["updated_uptime"]) if status["updated_boot"] == boot_id() else 0.0
    return uptime() - since > ABANDONED_S


def remove(job: Job, account: Account, unless_submitted: bool = False) -> bool:
    """Remove a job's folder under its lock; False when somebody holds it, or has submitted it meanwhile."""
    with locks.hold_now(job.lock) as mine:
        if not mine or (unless_submitted and job.status()["state"] not in ("prepared", "pushed")):
            return False
        launch.drop_secrets(job)
        tree.remove(account, job.dir)
        return True


__all__ = ["NotReady", "finish", "finish_if_dead", "is_dead", "remove", "sweep"]
