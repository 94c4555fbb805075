"""The submission of a job to Slurm: what sbatch is asked for, and the script that it gets."""

import math
import os
import re
import shlex
from typing import Optional

from train_classifier.core import options
from train_classifier.core.errors import BadInput, NotReady
from train_classifier.core.job import JOB_ID, JobSpec, job_of_group, number_in_group
from train_classifier.worker.slurm import commands, shared_folder
from train_classifier.worker.slurm.commands import NAME_PREFIX, SlurmSilent
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import launcher
from train_classifier.worker.system.host import Account

#: Seconds beside the training that a job with a time limit may take for its image, environment and packing.
AROUND_TRAINING_S = 3600
#: Seconds before Slurm's time limit at which the worker is asked to end, beside the grace of the model.
PACKING_S = 60
#: The interpreter of the nodes.
PYTHON = "/usr/bin/python3"


def gpu_count(account: Account, spec: JobSpec) -> tuple[int, str]:
    """Return how many GPUs the job asks Slurm for, and a message; `auto` takes one if the cluster has any."""
    if spec.gpus != "auto":
        return int(spec.gpus), ""
    if "gpu:" in commands.run(account, ["sinfo", "--noheader", "--format=%G"]):
        return 1, ""
    return 0, f"no GPU in this cluster: training on the CPU, as {options.show_option('gpus')} auto allows"


def time_limit(spec: JobSpec) -> Optional[int]:
    """Return Slurm's time limit in minutes, its own or from that of the training; None: the partition's."""
    if spec.slurm_time_s is not None:
        return math.ceil(spec.slurm_time_s / 60)
    if spec.timeout_s is None:
        return None
    return math.ceil((spec.timeout_s + spec.grace_s + AROUND_TRAINING_S) / 60)


def arguments(job: Job, spec: JobSpec, gpus: int) -> list[str]:
    """Return sbatch's arguments."""
    minutes = time_limit(spec)
    warning_s = int(spec.grace_s) + PACKING_S
    words = [
        "sbatch", "--parsable", "--export=NIL", "--requeue" if spec.requeue else "--no-requeue", "--chdir=/",
        f"--job-name={NAME_PREFIX}{job.id}", f"--comment=train-classifier: {spec.model}",
        f"--output={job.dir / launcher.CRASH_FILE}", "--open-mode=append",
        f"--nodes={spec.nodes or 1}", f"--ntasks={spec.nodes or 1}",
    ]  # fmt: skip
    # Slurm sends the signal up to a minute early: not to a job that has just begun.
    if minutes is None or minutes * 60 > warning_s + 120:
        words.append(f"--signal=B:TERM@{warning_s}")
    if spec.nodes is not None and spec.nodes > 1:
        words.append("--ntasks-per-node=1")
    if gpus:
        words.append(f"--gres=gpu:{gpus}")
    if spec.cpus is not None:
        words.append(f"--cpus-per-task={math.ceil(spec.cpus)}")
    if spec.memory_bytes is not None:
        words.append(f"--mem={math.ceil(spec.memory_bytes / (1 << 20))}M")
    if minutes is not None:
        words.append(f"--time={minutes}")
    for name in ("partition", "account", "qos", "constraint", "nice"):
        if getattr(spec, name) is not None:
            words.append(f"--{name}={getattr(spec, name)}")
    conditions = dependencies(job, spec)
    return [*words, f"--dependency={','.join(conditions)}"] if conditions else words


def dependencies(job: Job, spec: JobSpec) -> list[str]:
    """Return what the job waits for: what the caller names, and an earlier job of a group with a limit.

    Where three jobs of a group may run at the same time, the fourth starts after the first.
    """
    store = Store.of(job.dir)
    conditions = [] if spec.dependency is None else [dependency(store, spec.dependency)]
    if spec.group is not None and spec.max_parallel is not None:
        earlier = number_in_group(job.id) - spec.max_parallel
        number = shared_folder.number(Job(store.jobs / job_of_group(spec.group, earlier)))
        if earlier > 0 and number:
            conditions.append(f"afterany:{number}")
    return conditions


def dependency(store: Store, text: str) -> str:
    """Return a dependency with Slurm's numbers in place of our ids. Raises BadInput for an unknown job."""

    def number_of(match: "re.Match[str]") -> str:
        number = shared_folder.number(store.job(match[0]))
        if number is None:
            raise BadInput(f"job {match[0]} was never given to Slurm: nothing can depend on it")
        return number

    return re.sub(JOB_ID.pattern.replace(r"\Z", r"(?![0-9a-f])"), number_of, text)


def script(worker: str, job: Job, account: Account) -> str:
    """Return the script that Slurm runs on the node, in no other environment than this and Slurm's own."""
    variables = account.environment()
    for name in ("TRAIN_CLASSIFIER_HOST_JSON", options.READER):
        if os.environ.get(name):
            variables[name] = os.environ[name]
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    command = shlex.join([PYTHON, "-I", worker, "run", str(job.dir)])
    return f"#!/bin/sh\nexport {exports}\nexec {command}\n"


def hand_over(job: Job, spec: JobSpec, account: Account, gpus: int) -> str:
    """Give the job to Slurm and return Slurm's number of it. Raises BadInput, NotReady."""
    worker = shared_folder.copy_program(Store.of(job.dir))
    job.write_status(worker=str(worker))
    text = script(str(worker), job, account)
    try:
        number = commands.run(account, arguments(job, spec, gpus), text).strip().partition(";")[0]
    except SlurmSilent:
        # It may have the job although its answer was lost: whoever submits again makes another one.
        _take_back(job, account)
        raise
    except BadInput as error:
        raise _explain(error, gpus, spec.nodes or 1) from error
    shared_folder.write_number(job, number)
    return number


def _take_back(job: Job, account: Account) -> None:
    try:
        commands.run(account, ["scancel", f"--user={account.name}", f"--name={NAME_PREFIX}{job.id}"])
    except (BadInput, NotReady):
        # The worker on the node ends itself: the job's state is not `submitted`.
        return


def _explain(error: BadInput, gpus: int, nodes: int) -> Exception:
    if "Requested node configuration is not available" in error.reason:
        count = f"{gpus} GPU{'s' if gpus != 1 else ''}, " if gpus else ""
        who = "no node of this cluster has" if nodes == 1 else f"this cluster has no {nodes} nodes, each with"
        return BadInput(
            f"{who} what the job asks for ({count}CPUs and memory of one node)",
            hint=f"ask for less with {options.show_option('gpus')}, {options.show_option('cpus')} or "
            f"{options.show_option('memory')}; see sinfo on the submit host",
        )
    if "Invalid account" in error.reason or "Invalid qos" in error.reason:
        command = "sacctmgr show associations user=$USER format=account,partition,qos"
        error.hint = f"on the submit host, what you may use: {command}"
    return error
