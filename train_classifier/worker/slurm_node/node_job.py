"""One job on a node: taken from the shared folder, run in this node's own state, its results brought back.

The worker runs as the account that owns the job's folder: Slurm starts it so.
"""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import Cancelled, NotReady, TrainClassifierError
from train_classifier.worker.jobs import conclude, recover, removal
from train_classifier.worker.jobs import run as local_run
from train_classifier.worker.jobs.secrets import remove_secrets, store_secrets, take_secrets
from train_classifier.worker.slurm import accounting, allocation, commands, shared_folder
from train_classifier.worker.slurm_node import attempt, node_group, person_half, unpacked_results
from train_classifier.worker.slurm_node.publisher import Publisher
from train_classifier.worker.state import file_trees, results
from train_classifier.worker.state.files import make_folder, read_json, write_bytes, write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Account, Host, boot_id, uptime
from train_classifier.worker.transfer import workspace_copy

#: The launcher of the local job, for which its lock says whether it lives.
LOCAL_LAUNCHER = "slurm-node"
#: Records that are brought back at the end; result.json and status.json come after them.
RECORDS = person_half.RECORDS
#: Seconds for which the end of a job waits for a shared folder that cannot be written.
DELIVERY_S = 1800.0
RETRY_S = 2.0


def run(folder: Path, host: Host) -> int:
    """Run a submitted job that Slurm started on this node; return the exit status of Slurm's job."""
    shared = Job(folder)
    account = host.caller()
    if account.uid == 0 or shared.is_foreign:
        # Another account may have named this folder.
        print(f"{folder} is not a job of {account.name}", flush=True)
        return 1
    # Until the job itself heeds signals: one that Slurm sends now must not leave half of a job.
    early_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: early_signals.append(number))
    if not attempt.take(shared, os.environ, lambda: bool(early_signals)):
        # What another launch of it came to.
        return int((shared.result() or {}).get("exit_code") or 0)
    status = shared.status()
    if status["state"] not in ("submitted", "running") or shared.result() is not None:
        return 0
    own = {
        "launcher": shared_folder.LAUNCHER,
        "slurm_job": os.environ["SLURM_JOB_ID"],
        "node": allocation.node_name(os.environ),
        "host": socket.gethostname(),
    }
    with person_half.temporary_state() as state:
        try:
            local = bring_in(shared, host, account, status, shared.log, state)
            granted = None if state else take_allocation(shared, local, host, account, early_signals)
        except Exception as error:
            return end_unstarted(shared, account, own, local_run.as_error(shared, error))
        if early_signals:
            removal.remove(local, account)
            if is_requeued(account, os.environ):
                return 0
            cause = Cancelled("Slurm ended the job when it began (SIGTERM)")
            return end_unstarted(shared, account, own, cause)
        return _run(local, shared, host, granted, own)


def _run(
    local: Job, shared: Job, host: Host, granted: Optional[allocation.Allocation], own: dict[str, Any]
) -> int:
    """Run the job that was brought in; without an allocation the service account does so."""
    account = host.caller()
    publisher = Publisher(local, shared, own)
    set_submitted(local, shared)
    publisher.start()
    try:
        if granted is None:
            person_half.PersonHalf(local, shared, host).run(account, person_half.command(own["slurm_job"]))
        else:
            local_run.run_job(local, granted)
    finally:
        publisher.finish()
    # `--dependency afterok` and the accounting go by the exit status.
    code = int((local.result() or {}).get("exit_code") or 0)
    if granted is not None and local.spec().requeue and is_requeued(account, os.environ):
        leave_to_next_attempt(local, shared, publisher)
    else:
        deliver(local, shared, account, host, publisher, is_complete=granted is None)
        if (local.result() or {}).get("unpacked") and not (shared.result() or {}).get("unpacked"):
            # Its results are here alone.
            return code
    removal.remove(Job(local.dir), account)
    return code


def take_allocation(
    shared: Job, local: Job, host: Host, account: Account, early_signals: Sequence[int]
) -> allocation.Allocation:
    """Return what Slurm gave the job here; of one on several nodes the other workers are started.

    Removes the local job before it raises: it has the job's secrets.
    """
    try:
        granted = allocation.read(host, os.environ)
        results.record_facts(local, slurm=accounting.read(account, os.environ))
        meeting = node_group.arrange(shared, host, account, os.environ)
        if meeting is None or early_signals:
            return granted
        leader = node_group.start(shared, local, meeting, os.environ)
        return dataclasses.replace(granted, node_group=leader)
    except BaseException:
        removal.remove(Job(local.dir), account)
        raise


def set_submitted(local: Job, shared: Job) -> None:
    """Let a job that was brought in run: its model writes checkpoints into the shared folder."""
    local.checkpoints, local.checkpoints_handle = shared.checkpoints, open_for_engine(shared.checkpoints)
    local.write_status(state="submitted", boot_id=boot_id(), submitted_uptime=uptime())


def open_for_engine(folder: Path) -> Path:
    """Return a path by which the engine mounts a folder that only this account can reach.

    Root has often no rights in a folder of the network (root_squash). Were the way open to all instead, other
    accounts could run what a model leaves there with this account's setuid bit. The descriptor stays open.
    """
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def is_requeued(account: Account, variables: Mapping[str, str]) -> bool:
    """Tell whether Slurm ended this attempt to start another: it has counted one more start than ours."""
    command = ["scontrol", "show", "job", "--oneliner", variables["SLURM_JOB_ID"]]
    try:
        match = re.search(r" Restarts=(\d+)", commands.run(account, command))
    except TrainClassifierError:
        return False
    return match is not None and int(match[1]) > int(variables.get("SLURM_RESTART_COUNT") or 0)


def leave_to_next_attempt(local: Job, shared: Job, publisher: Publisher) -> None:
    """Publish the rest of this attempt's log, and have the job wait again; checkpoints are in its folder."""
    repeat(publisher.publish, publisher)
    status = read_json(local.dir / "status.json")
    waiting: dict[str, Any] = {
        "state": "submitted",
        "phase": None,
        "gpus": [],
        "container": None,
        "message": "",
    }
    repeat(lambda: write_json(shared.dir / "status.json", {**status, **publisher.own, **waiting}), publisher)


def bring_in(
    shared: Job,
    host: Host,
    account: Account,
    status: dict[str, Any],
    log: Path,
    temporary: Optional[Path] = None,
) -> Job:
    """Make the job in this node's own state, and begin to copy its workspace there.

    `log` is that of an earlier attempt, which this one continues. In a temporary state folder the job gets no
    workspace: another account runs it.
    """
    store = Store(temporary or host.local_state_dir({})).make()
    local = Job(store.jobs / shared.id)
    if local.dir.exists():
        # An earlier attempt on this node, whose worker was killed.
        with contextlib.suppress(TrainClassifierError):
            recover.finish(local, host)
        if not removal.remove(local, account):
            raise NotReady("the worker of the job's earlier start still runs on this node", "submit it again")
    local.make(account)
    try:
        fill(local, shared, account, status, log)
    except BaseException:
        removal.remove(local, account)
        raise
    if temporary is None:
        workspace_copy.start(local, account, shared.workspace, None)
    return local


def fill(local: Job, shared: Job, account: Account, status: dict[str, Any], log: Path) -> None:
    """Write what the local job has of the shared one, beside the workspace."""
    spec = shared.spec()
    write_json(local.dir / "spec.json", read_json(shared.dir / "spec.json"))
    write_bytes(local.lease, b"")
    make_folder(Store.of(local.dir).cache / spec.repository.key, 0o700, account)
    # Slurm's launcher would have this job finished by those who ask Slurm. Jobs of the account that end on
    # this node finish those without a worker: this one is not submitted until `run_job` is called.
    beginning: dict[str, Any] = {"state": "pushed", "phase": None, "times": {}, "message": "", "gpus": []}
    write_json(local.dir / "status.json", {**status, **beginning, "launcher": LOCAL_LAUNCHER})
    # A next attempt or another node needs them as well.
    secrets = take_secrets(shared, keep=spec.requeue or (spec.nodes or 1) > 1)
    if spec.secrets and not secrets:
        raise NotReady("an earlier start of the job has taken its secrets", "submit it again")
    store_secrets(local, account, secrets)
    if log.exists():
        shared_folder.copy_file(log, local.log)
        with open(local.log, "ab") as file:
            node = allocation.node_name(os.environ)
            file.write(f"\n[train-classifier: started again by Slurm, on {node}]\n".encode())


def end_unstarted(shared: Job, account: Account, own: dict[str, Any], cause: TrainClassifierError) -> int:
    """End a job that could not be brought to this node, which Slurm's log records too."""
    remove_secrets(shared)
    shared.write_status(**own)
    conclude.conclude(shared, recover.try_spec(shared), cause, {}, {})
    conclude.remove_leftovers(shared, account)
    print(f"{cause.reason}", flush=True)
    return 1


def deliver(
    local: Job, shared: Job, account: Account, host: Host, publisher: Publisher, is_complete: bool = False
) -> None:
    """Bring records and results into the shared folder; the result comes last. Raises NotReady.

    `is_complete`: unpacked results are there already.
    """
    others = [path.name for pattern in conclude.RANK_RECORDS for path in local.dir.glob(pattern)]
    # That of a workspace which is there already is there, too, and must be older.
    has_stock = is_complete and shared.stock.exists()
    names = [*others, *(name for name in RECORDS if not (has_stock and name == shared.stock.name))]
    steps: list[Callable[[], Any]] = [
        publisher.publish,
        *(lambda name=name: shared_folder.copy_file(local.dir / name, shared.dir / name) for name in names),
    ]
    for step in steps:
        repeat(step, publisher)
    result = local.result()
    if publisher.is_superseded or result is None:
        return
    if result.get("unpacked") and not is_complete:
        problem = unpacked_results.bring(local, shared, account, host, publisher)
        if problem is not None:
            node = allocation.node_name(os.environ)
            result = unpacked_results.left_on_node(result, local.workspace, node, problem)

    def end() -> None:
        shared.write_result(result)
        status = read_json(local.dir / "status.json")
        write_json(shared.dir / "status.json", {**status, **publisher.own})
        remove_secrets(shared)
        file_trees.remove(account, shared.dir / node_group.FOLDER)
        conclude.remove_leftovers(shared, account)

    repeat(end, publisher)


def repeat(step: Callable[[], Any], publisher: Publisher) -> None:
    """Do a step, again and again while the shared folder cannot be written. Raises NotReady."""
    deadline = time.monotonic() + DELIVERY_S
    while not publisher.is_superseded:
        problem: Optional[OSError] = None
        try:
            if step() is not False:
                return
            problem = publisher.problem
        except OSError as error:
            problem = error
        if time.monotonic() > deadline:
            raise NotReady(f"the shared folder cannot be written: {problem}") from problem
        time.sleep(RETRY_S)
