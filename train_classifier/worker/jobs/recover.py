"""Finishes jobs whose worker is gone; the next process that looks at a job does it, under its lock."""

import contextlib
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import locks
from train_classifier.core.errors import BadInput, ExitCode, Lost, NotReady, TrainClassifierError, topic_of
from train_classifier.core.job import LAST_SCHEMA, SCHEMA, JobSpec
from train_classifier.core.options import show_option
from train_classifier.core.regular_file import open_regular
from train_classifier.worker.containers import engine
from train_classifier.worker.environments import build_folder
from train_classifier.worker.jobs import conclude, removal
from train_classifier.worker.jobs.secrets import remove_secrets
from train_classifier.worker.state import results
from train_classifier.worker.state.files import O_FOLDER, read_json
from train_classifier.worker.state.store import Job, Store, is_settled
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account, Host, boot_id, uptime
from train_classifier.worker.training.log import LogFile

#: The launcher of jobs that Slurm starts; see `slurm.shared_folder`.
SLURM = "slurm"
#: Seconds that a started worker may take until it holds its job's lock.
STARTING_S = 30.0
#: Seconds to wait while another version of this program finishes its job; it continues after that time.
OTHER_VERSION_S = 20.0


def is_dead(job: Job, status: dict[str, Any]) -> bool:
    """Tell whether a job should have a worker and has none."""
    if status["state"] not in ("submitted", "running") or locks.is_held(job.lock):
        return False
    if status["state"] == "submitted" and status.get("boot_id") == boot_id():
        return uptime() - float(status.get("submitted_uptime") or 0) > STARTING_S
    return True


def finish_if_dead(job: Job, host: Host, slurm_wait_s: Optional[float] = None) -> bool:
    """Finish a dead job, or the incomplete cleanup of a finished one; True when something was done.

    `slurm_wait_s` is how long Slurm's answer is waited for (None: as long as a command may).
    Raises NotReady when the engine cannot be asked.
    """
    status = job.status()
    if status.get("launcher") == SLURM:
        return _finish_if_slurm_ended_it(job, host, status, slurm_wait_s)
    if status["state"] == "finished" and job.is_foreign:
        return False
    if status["state"] == "finished":
        # The result does not change: files that cannot be removed now are left to the next call.
        with contextlib.suppress(TrainClassifierError, OSError):
            return _has_leftovers(job) and remove_leftovers(job, host)
        return False
    return is_dead(job, status) and finish(job, host)


def _finish_if_slurm_ended_it(job: Job, host: Host, status: dict[str, Any], wait_s: Optional[float]) -> bool:
    """Do for a job of Slurm what `finish_if_dead` does; nothing is done while Slurm does not answer."""
    from train_classifier.worker.slurm import liveness

    if status["state"] == "finished":
        # The node's disk or this one was full, or the worker died at its very end.
        if job.run.exists() and not job.is_foreign:
            conclude.remove_leftovers(job, host.job_user())
        return False
    if status["state"] not in ("submitted", "running"):
        return False
    seconds = liveness.PATIENCE_S if wait_s is None else wait_s
    error = liveness.look(job, host, status, seconds).error
    return error is not None and finish_slurm_job(job, host, error)


def finish_slurm_job(job: Job, host: Host, cause: TrainClassifierError) -> bool:
    """Finish a job that Slurm ended, or took out of its queue; False when another process of this host does.

    Its container is removed on the node, by the epilog.
    """
    from train_classifier.worker.slurm import shared_folder

    with locks.hold_now(shared_folder.local_lock(host.caller(), job)) as is_locked:
        if not is_locked or job.status()["state"] == "finished":
            return False
        remove_secrets(job)
        with contextlib.suppress(OSError):
            # Why a worker could not start on its node.
            cause.detail = cause.detail or last_text(job.crash)
        spec, account = try_spec(job), host.job_user()
        conclude.conclude(job, spec, cause, {}, {})
        conclude.remove_leftovers(job, account)
    return True


def last_text(path: Path) -> Optional[str]:
    """Return the end of a text file, None where it has none. Raises OSError."""
    with open(open_regular(path), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        return file.read(2000).decode("utf-8", "replace").strip() or None


def finish(job: Job, host: Host, reason: Optional[str] = None) -> bool:
    """Remove a dead job's container and ticket, complete its log, and write `lost`.

    `reason` replaces the usual one. An archive or a result that the worker wrote before it died is kept.
    Artefacts that it had not packed stay on the host until they are fetched: packing may take long, and a
    command that only looks at the job does not wait. Returns False when the worker is alive or the job has
    ended. Raises NotReady when the engine cannot be asked: the job's container might still run.
    """
    if job.is_foreign:
        _refuse_tampered(job)
    # On nodes others may be root: a submit host runs no program from the folder that it shares with them.
    program_of_job = None if host.is_submit_host else _worker_of_other_version(job)
    if program_of_job is not None:
        return _finish_with_program(program_of_job, job)
    if job.is_foreign:
        return False
    with locks.hold_now(job.lock) as is_locked:
        if not is_locked:
            return False
        status = job.status()
        if status["state"] not in ("submitted", "running"):
            return False
        answer: dict[str, Any] = {}
        cause: Optional[TrainClassifierError] = Lost(
            reason or _reason(status),
            f"submit it again; {show_option('resume')} continues from its checkpoints",
        )
        remove_secrets(job)
        remove_unfinished_files(job, status.get("pid"))
        job.release_reserve()
        spec = try_spec(job)
        remove_containers_after_last_output(engine.connect(), job, spec)
        remove_ticket(host, job)
        account = host.job_user()
        if spec is not None and job.result() is None:
            answer, cause = conclude.earlier_packing(job, spec) or (conclude.not_packed_answer(job), cause)
        remove_unfinished_environments(Store.of(job.dir), account)
        conclude.conclude(job, spec, cause, answer, {})
        conclude.remove_leftovers(job, account)
    return True


def unexpected_entry(job: Job) -> Optional[str]:
    """Return the name of an unexpected entry (a link, say) in a job's folder of the last release, or None.

    The worker of that release would follow it as root.
    """
    expected_types = {"out": stat.S_ISFIFO, "secrets": stat.S_ISFIFO}
    folders = ("run", "workspace", "checkpoints", "home")
    for folder in (job.dir, job.run):
        try:
            descriptor = os.open(folder, O_FOLDER)
        except FileNotFoundError:
            continue
        except OSError:
            return folder.name
        try:
            for name in os.listdir(descriptor):
                entry = os.lstat(name, dir_fd=descriptor)
                has_type = expected_types.get(name, stat.S_ISDIR if name in folders else stat.S_ISREG)
                if not has_type(entry.st_mode) or (stat.S_ISREG(entry.st_mode) and entry.st_nlink != 1):
                    return name
        finally:
            os.close(descriptor)
    return None


def is_tampered(job: Job, status: dict[str, Any]) -> bool:
    """Tell whether a job of the last release has no worker, and is not safe to finish with that release."""
    return is_dead(job, status) and unexpected_entry(job) is not None


def _refuse_tampered(job: Job) -> None:
    name = unexpected_entry(job)
    if name is not None:
        raise NotReady(
            f"job {job.id} of the last release is not finished: its folder has an unexpected entry {name!r}",
            "its model may have changed the folder; train-classifier clean removes the job",
        )


def _worker_of_other_version(job: Job) -> Optional[Path]:
    """Return the program of another version that runs the job, if it is still installed, else None."""
    name = (read_json(job.dir / "status.json") or {}).get("worker")
    if not name or Path(name) == program.PROGRAM:
        return None
    worker = Path(name)
    # Only a program in the folder where workers are installed is accepted.
    is_installed = worker.resolve().parent == Store.of(job.dir).workers.resolve()
    return worker if is_installed and (worker / "__main__.py").is_file() else None


def _finish_with_program(worker: Path, job: Job) -> bool:
    """Let another version finish its job; it checks itself whether its worker is alive. Raises NotReady."""
    was_finished = os.path.lexists(job.dir / "result.json")
    process = subprocess.Popen(
        [program.PYTHON, "-I", str(worker), "finish", str(job.dir)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        start_new_session=True,
    )  # fmt: skip
    try:
        status = process.wait(OTHER_VERSION_S)
    except subprocess.TimeoutExpired as error:
        # Marked as ended, so that Popen does not warn about a child that still runs.
        process.returncode = 0
        raise NotReady(f"job {job.id} is being finished by the version that began it", "try again") from error
    if status:
        raise NotReady(f"job {job.id} could not be finished by the version that began it")
    return not was_finished and os.path.lexists(job.dir / "result.json")


def _has_leftovers(job: Job) -> bool:
    """Tell whether a finished job has left something behind."""
    return job.run.exists() and not locks.is_held(job.lock)


def remove_leftovers(job: Job, host: Host) -> bool:
    """Complete the cleanup of a finished job whose worker died, or where the engine or the disk failed.

    Returns False when another process is doing it. Raises NotReady when the engine cannot be asked.
    """
    with locks.hold_now(job.lock) as is_locked:
        if not is_locked:
            return False
        result = job.result()
        if job.status()["state"] != "finished" or result is None:
            return False
        if job.run.exists():
            engine.remove_all(engine.connect(), job.id)
            remove_ticket(host, job)
        conclude.remove_leftovers(job, host.job_user())
    return True


def pack(job: Job, host: Host, max_bytes: Optional[int], check: conclude.Check) -> dict[str, Any]:
    """Pack the results that stayed on the host when a job ended; write and return the new result.

    `check` is called repeatedly and may raise, also while another process packs. Raises BadInput when the
    artefacts exceed `max_bytes` (None: the job's own limit), and any exception of `check`.
    """
    while True:
        with locks.hold_now(job.lock) as is_locked:
            result = job.result()
            if result is None or job.status()["state"] != "finished":
                raise NotReady(f"job {job.id} is not finished")
            if not result.get("unpacked"):
                return result
            if job.is_foreign:
                raise NotReady(
                    f"job {job.id} was not packed by the version that began it",
                    f"its artefacts are in {job.workspace} of the host",
                )
            if is_locked:
                # A packing that was killed left an archive that may be large.
                remove_unfinished_files(job, None)
                return _pack(job, result, host.job_user(), max_bytes, check)
        check()
        time.sleep(locks.POLL_S)


def _pack(
    job: Job, result: dict[str, Any], account: Account, max_bytes: Optional[int], check: conclude.Check
) -> dict[str, Any]:
    cause: Optional[TrainClassifierError] = None
    if result["exit_code"] not in (ExitCode.TRAINED, ExitCode.NOTHING_DELIVERED):
        # NOTHING_DELIVERED means here that the model succeeded but had no archive; other errors are kept.
        cause = TrainClassifierError(
            result["reason"], result["hint"], result["detail"], ExitCode(result["exit_code"])
        )
        cause.topic = topic_of(result)
    elsewhere_too = result["unpacked"]["why"] == "elsewhere"
    answer, cause = conclude.pack(job, job.spec(), account, cause, check, max_bytes, elsewhere_too)
    unpacked = answer.get("unpacked")
    if unpacked and unpacked["why"] == "stopped":
        check()
    if unpacked and unpacked["why"] != "elsewhere":
        error = BadInput if unpacked["why"] == "too-large" else NotReady
        raise error(unpacked["reason"], hint=unpacked["hint"])
    new_result = {**result, **results.ending(cause), **conclude.archive_fields(answer), "unpacked": unpacked}
    if not unpacked:
        del new_result["unpacked"]
    job.write_result(new_result)
    conclude.set_finished(job, new_result)
    conclude.remove_leftovers(job, account)
    return new_result


def try_spec(job: Job) -> Optional[JobSpec]:
    """Return the specification of a job, None when it cannot be read."""
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


def remove_containers_after_last_output(client: Any, job: Job, spec: Optional[JobSpec]) -> None:
    """Remove the job's containers, and write their last unread output into the log."""
    reader = -1
    with contextlib.suppress(FileNotFoundError):
        reader = os.open(job.run / "out", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    engine.remove_all(client, job.id)
    if reader < 0:
        return
    log = LogFile(job.log, spec.log_max_bytes if spec is not None else 1 << 62)
    with open(reader, "rb", buffering=0) as source:
        output = source.read(1 << 21) or b""
    if spec is not None and spec.secrets:
        # The secrets were lost with the worker: output that cannot be masked is not shown.
        log.lost += len(output)
    else:
        log.write(output)
    log.close()


def remove_ticket(host: Host, job: Job) -> None:
    """Remove a dead job's ticket from the queue."""
    from train_classifier.worker.gpus import gpu_queue

    gpu_queue.remove_ticket(host.queue_dir, job.id)


def remove_unfinished_files(job: Job, worker: Optional[int]) -> None:
    """Remove the unfinished files of processes that were killed while they wrote.

    `worker` is one of them, although /proc may still list it: its lock is free before it is reaped.
    """
    for file in job.dir.glob(".*.tmp"):
        writer = file.name.split(".")[-3]
        if writer.isdigit() and (int(writer) == worker or not Path("/proc", writer).exists()):
            file.unlink(missing_ok=True)


def remove_unfinished_environments(store: Store, account: Account) -> None:
    """Remove the environments whose build was killed: their lock is free."""
    for build in store.builds.glob(".*.tmp"):
        lock = store.locks / f"environment-{build.name[1:-4]}.lock"
        if not lock.exists():
            continue
        with locks.hold_now(lock) as is_locked:
            if is_locked:
                build_folder.remove(account, build)


def finish_dead_jobs(store: Store, host: Host) -> None:
    """Finish the dead jobs of this state folder, and remove those that were never submitted."""
    account = host.job_user()
    for job_id in store.job_ids():
        if is_settled(os.path.join(store.jobs, job_id)):
            continue
        job = Job(store.jobs / job_id)
        try:
            if _is_of_another_schema_and_dead(job):
                finish(job, host)
                continue
            status = job.status()
            if status["state"] == "finished" or status.get("launcher") == SLURM or is_dead(job, status):
                finish_if_dead(job, host)
            elif removal.is_abandoned(job, status):
                removal.remove(job, account)
        except (TrainClassifierError, OSError):
            # A job that cannot be finished now is left to the next call, and does not delay the others.
            continue


def _is_of_another_schema_and_dead(job: Job) -> bool:
    """Tell whether a job of an unknown schema has no worker, for longer than a worker takes to start."""
    data: Any = read_json(job.dir / "status.json")
    if not isinstance(data, dict) or data.get("schema") in (SCHEMA, LAST_SCHEMA):
        return False
    if (job.dir / "result.json").exists():
        return False
    is_old: bool = abs(time.time() - os.stat(job.dir / "status.json").st_mtime) > 2 * STARTING_S
    return is_old and _worker_of_other_version(job) is not None and not locks.is_held(job.lock)
