"""A command on the node of a running job: a further step of Slurm's job, with the rights of its account."""

import os
from collections.abc import Sequence

from train_classifier.core.errors import NotReady
from train_classifier.worker.slurm import commands, shared_folder, submission
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system.host import Account


def become_step(job: Job, account: Account, arguments: Sequence[str], terminal: bool) -> None:
    """Become srun, which runs this program with the arguments on the first node of the job. Raises NotReady.

    Standard streams and the exit status are those of the program there. The job does not wait for the step,
    which ends with it.
    """
    status = job.status()
    number, node = shared_folder.number(job), status.get("node")
    if status["state"] != "running" or not number or not node:
        raise NotReady(f"job {job.id} runs on no node now")
    worker = shared_folder.copy_program(Store.of(job.dir))
    command = [
        "srun", "--quiet", f"--jobid={number}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}",
        # The container has the cards of the job already.
        "--gres=none", "--mpi=none", "--chdir=/", "--export=ALL",
        # Without a terminal srun would send whole lines only.
        "--pty" if terminal else "--unbuffered",
        submission.PYTHON, "-I", str(worker), *arguments,
    ]  # fmt: skip
    try:
        os.execvpe(command[0], command, commands.environment(account))
    except FileNotFoundError as error:
        reason = "srun is not installed on this submit host"
        raise NotReady(reason, "run the role slurm_controller on it") from error
