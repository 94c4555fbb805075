"""What Slurm says of a job that runs on this node: whose it is, and what it has; nothing else is believed.

`scontrol show job` prints texts of the submitter (the name, the account, the comment) as they are. So each
line that counts must be there once: a forged one makes two.
"""

import re
from pathlib import Path

from train_classifier.core.errors import BadInput
from train_classifier.worker.slurm import commands
from train_classifier.worker.slurm.accounting import UNITS
from train_classifier.worker.system.host import Account

#: Slurm's number of a job.
NUMBER = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
#: Where slurmd keeps the configuration that its controller sent.
CONFIGURATION = Path("/run/slurm/conf/slurm.conf")
#: Each from the beginning of its line on.
FIRST = r"JobId=([0-9]+) JobName=tc-[0-9a-f-]{1,100}\n"
USER = r"   UserId=[^\s()]+\(([0-9]+)\) GroupId=[^\n]*\n"
STATE = r"   JobState=([A-Z_]+) Reason=[^\n]*\n"
END = r"   StartTime=[^\s]+ EndTime=([^\s]+) Deadline=[^\n]*\n"
NODES = r"   NodeList=([^\s]*)\n"
COUNTS = r"   NumNodes=([0-9]+) NumCPUs=([0-9]+) [^\n]*\n"
DETAIL = r"     Nodes=([^\s]+) CPU_IDs=[0-9,-]+ Mem=([0-9]+)([KMGT]?) GRES=([^\s]*)\n"
#: What begins each of these lines, wherever it stands.
NAMES = {
    FIRST: "JobId", USER: "UserId", STATE: "JobState", END: "StartTime", NODES: "NodeList",
    COUNTS: "NumNodes", DETAIL: "Nodes",
}  # fmt: skip


def variables(account: Account, number: str, uid: int, node: str) -> dict[str, str]:
    """Return what slurmd tells a job on its node, for a job of account `uid` that runs on this node alone.

    Raises BadInput for any other job, NotReady when Slurm does not answer.
    """
    if not NUMBER.fullmatch(number):
        raise BadInput(f"{number[:100]!r} is not a number of a job")
    output = commands.run(account, ["scontrol", "show", "job", "--details", number])
    # slurmd finds what it has from its controller only if it is told where that is.
    configuration = {"SLURM_CONF": str(CONFIGURATION)} if CONFIGURATION.exists() else {}
    return {**configuration, **parse(output, number, uid, node)}


def parse(output: str, number: str, uid: int, node: str) -> dict[str, str]:
    """Do `variables` for the output of scontrol."""
    (shown,), (owner,) = _line(output, FIRST), _line(output, USER)
    (state,), (end,) = _line(output, STATE), _line(output, END)
    if shown != number or owner != str(uid):
        raise BadInput(f"job {number} of Slurm is not yours")
    if state != "RUNNING":
        raise BadInput(f"job {number} of Slurm does not run: {state}")
    (nodes,), (node_count, cpus) = _line(output, NODES), _line(output, COUNTS)
    places, memory, unit, gres = _line(output, DETAIL)
    if nodes != node or places != node or node_count != "1":
        raise BadInput(f"job {number} of Slurm does not run on {node} alone, but on {nodes}")
    gpus = re.findall(r"(?:^|,)gpu(?::[\w.-]+)*?:[0-9]+\(IDX:([0-9,-]+)\)", gres, re.ASCII)
    if len(gpus) != len(re.findall(r"(?:^|,)gpu\b", gres)):
        raise BadInput(f"Slurm does not say which cards job {number} has: {gres}")
    # Slurm counts MiB.
    size = int(memory) * UNITS[unit or "M"] // UNITS["M"]
    return {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NODELIST": node,
        "SLURMD_NODENAME": node,
        "SLURM_JOB_GPUS": ",".join(gpus),
        "SLURM_CPUS_ON_NODE": cpus,
        "SLURM_MEM_PER_NODE": str(size),
        "SLURM_JOB_END_TIME": end if end.isdigit() else "",
    }


def _line(output: str, pattern: str) -> tuple[str, ...]:
    """Return what the pattern captures in the one line that it describes. Raises BadInput."""
    name = NAMES[pattern]
    lines = re.findall(rf"^ *{name}=.*$", output, re.MULTILINE)
    match = re.search(rf"^{pattern}", output, re.MULTILINE | re.ASCII)
    if len(lines) != 1 or match is None:
        raise BadInput(f"what Slurm says of the job has {len(lines)} lines of {name}, or one of another form")
    return match.groups()
