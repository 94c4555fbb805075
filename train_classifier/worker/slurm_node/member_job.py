"""A job of several nodes on a further one: it runs as on the first, and only log and end are brought back."""

import dataclasses
import os
import signal
from pathlib import Path

from train_classifier.core.errors import Cancelled
from train_classifier.worker.jobs import conclude, recover, removal
from train_classifier.worker.jobs import run as local_run
from train_classifier.worker.slurm import allocation, shared_folder
from train_classifier.worker.slurm_node import node_group, node_job
from train_classifier.worker.slurm_node.publisher import Publisher
from train_classifier.worker.state.store import Job
from train_classifier.worker.system.host import Account, Host


def run(folder: Path, rank: int, host: Host) -> int:
    """Run a job's part on this node, which the worker on its first node started; return the exit status."""
    shared = Job(folder)
    account = host.caller()
    if account.uid == 0 or shared.is_foreign:
        # Another account may have named this folder.
        print(f"{folder} is not a job of {account.name}", flush=True)
        return 1
    early_signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: early_signals.append(number))
    group_folder = node_group.attempt_folder(shared, os.environ)
    own = Job(group_folder / str(rank))
    try:
        granted = allocation.read(host, os.environ)
        local = node_job.bring_in(shared, host, account, shared.status(), own.log)
    except Exception as error:
        return _end(own, shared, local_run.as_error(own, error))
    try:
        node_job.set_submitted(local, shared)
        group = node_group.join(shared, local, host, rank, os.environ)
        granted = dataclasses.replace(granted, node_group=group)
        if early_signals:
            raise Cancelled("Slurm ended the job when it began (SIGTERM)")
    except Exception as error:
        removal.remove(Job(local.dir), account)
        return _end(own, shared, local_run.as_error(own, error))
    return _train(local, own, granted, Job(group_folder), account)


def _train(local: Job, own: Job, granted: allocation.Allocation, requests: Job, account: Account) -> int:
    publisher = Publisher(local, own, {"node": allocation.node_name(os.environ)}, requests)
    publisher.start()
    try:
        local_run.run_job(local, granted)
    finally:
        publisher.finish()
    node_job.repeat(publisher.publish, publisher)
    node_job.repeat(lambda: shared_folder.copy_file(local.usage, own.usage), publisher)
    result = local.result()
    if result is not None:
        node_job.repeat(lambda: own.write_result(result), publisher)
    removal.remove(Job(local.dir), account)
    return int((result or {}).get("exit_code") or 0)


def _end(own: Job, shared: Job, cause: Exception) -> int:
    """End a part that could not begin."""
    error = local_run.as_error(own, cause)
    conclude.conclude(own, recover.try_spec(shared), error, {}, {})
    print(error.reason, flush=True)
    return int(error.code)
