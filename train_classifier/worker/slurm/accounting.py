"""What Slurm knows about a job when its manifest is written: where it runs, who pays, and what it has.

Slurm's own measurements (sacct: TotalCPU, MaxRSS) are of our worker, since a container runs in the engine's
control group: those of the model are in usage.csv.
"""

import re
from collections.abc import Mapping
from typing import Any, Optional

from train_classifier.core.errors import TrainClassifierError
from train_classifier.worker.slurm import commands
from train_classifier.worker.system.host import Account

#: Words for a value that is not there.
NOTHING = ("", "(null)", "N/A", "Unknown", "None")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def read(account: Account, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry `slurm` of the manifest, without what grows; null for what Slurm does not say now."""
    number = variables["SLURM_JOB_ID"]
    output = _output(account, ["scontrol", "show", "job", "--oneliner", number])
    started = _number(output, "StartTime")
    submitted = _number(output, "SubmitTime")
    return {
        "job": number,
        "cluster": variables.get("SLURM_CLUSTER_NAME"),
        "partition": variables.get("SLURM_JOB_PARTITION"),
        "nodes": node_names(account, variables),
        "account": _word(output, "Account"),
        "qos": _word(output, "QOS"),
        "restarts": int(variables.get("SLURM_RESTART_COUNT") or 0),
        "started": started,
        "queued_s": started - submitted if started is not None and submitted is not None else None,
        # Before version 23 another name.
        "tres": parse_tres(_word(output, "AllocTRES") or _word(output, "TRES") or ""),
    }


def node_names(account: Account, variables: Mapping[str, str]) -> list[str]:
    """Return the names of the job's nodes, the first one first."""
    text = variables.get("SLURM_JOB_NODELIST", "")
    if not re.search(r"[\[,]", text):
        return [text] if text else []
    return _output(account, ["scontrol", "show", "hostnames", text]).split() or [text]


def parse_tres(text: str) -> dict[str, float]:
    """Return resources by Slurm's names, from a text as `cpu=8,mem=4000M,gres/gpu=1`; sizes become bytes."""
    resources: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([\w/:.-]{1,100})=(\d+(?:\.\d+)?)([KMGT]?)", part)
        if match:
            size = float(match[2]) * UNITS[match[3]]
            resources[match[1]] = int(size) if size == int(size) else size
    return resources


def _output(account: Account, command: list[str]) -> str:
    try:
        return commands.run(account, command)
    except TrainClassifierError:
        # Slurm may be down: that ends no job.
        return ""


def _word(output: str, name: str) -> Optional[str]:
    """Return a value of `scontrol show job`; texts of users, such as the comment, come last there."""
    match = re.search(rf"(?:^| ){name}=(\S*)", output)
    return match[1] if match and match[1] not in NOTHING else None


def _number(output: str, name: str) -> Optional[int]:
    word = _word(output, name)
    return int(word) if word and word.isdigit() else None
