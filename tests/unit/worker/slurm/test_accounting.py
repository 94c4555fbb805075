"""The manifest's entry about Slurm, from what `scontrol show job` of Slurm 24.11 prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from train_classifier.worker.slurm import accounting
from train_classifier.worker.state import results
from train_classifier.worker.system.host import Host

VARIABLES = {
    "SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "lab", "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_RESTART_COUNT": "1",
}  # fmt: skip
RECORD = (
    "JobId=7 JobName=tc-x UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A Priority=1 Nice=0 Account={account} QOS={qos} "
    "JobState=RUNNING Reason=None SubmitTime=1795817000 EligibleTime=1795817000 StartTime=1795817042 EndTime=Unknown "
    "Partition=gpu ReqTRES=cpu=8,mem=4000M {tres}=cpu=8,mem=4000M,node=2,billing=8,gres/gpu=2 "
    "Comment=Account=evil StartTime=5 Restarts=1\n"
)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol that prints the file `record`, which a test writes, and the names of two nodes."""
    tool = tmp_path / "scontrol"
    tool.write_text(
        f'#!/bin/sh\nif [ "$2" = hostnames ]; then printf "node1\\nnode2\\n"; else cat {tmp_path}/record; fi\n'
    )
    tool.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    monkeypatch.setattr(accounting.commands, "environment", lambda account: variables)
    return tmp_path / "record"


@pytest.mark.parametrize(
    ("account", "qos", "tres"), [("lab", "long", "AllocTRES"), ("(null)", "(null)", "TRES")]
)
def test_entry_has_what_slurm_knows(scontrol: Path, account: str, qos: str, tres: str) -> None:
    scontrol.write_text(RECORD.format(account=account, qos=qos, tres=tres))
    entry = accounting.read(Host().caller(), VARIABLES)
    assert entry == {
        "job": "7", "cluster": "lab", "partition": "gpu", "nodes": ["node1", "node2"], "restarts": 1,
        "account": "lab" if account == "lab" else None, "qos": "long" if qos == "long" else None,
        "started": 1795817042, "queued_s": 42,
        "tres": {"cpu": 8, "mem": 4000 << 20, "node": 2, "billing": 8, "gres/gpu": 2},
    }  # fmt: skip
    complete = results._slurm(entry)
    assert complete is not None and complete["cpu_time_s"] == pytest.approx(8 * complete["elapsed_s"])


def test_job_without_answer_of_slurm_has_what_its_variables_say(scontrol: Path) -> None:
    entry = accounting.read(Host().caller(), {**VARIABLES, "SLURM_JOB_NODELIST": "node1"})
    assert (entry["partition"], entry["nodes"], entry["started"], entry["tres"]) == (
        "gpu",
        ["node1"],
        None,
        {},
    )
    complete = results._slurm(entry)
    assert complete is not None and complete["elapsed_s"] is complete["cpu_time_s"] is None
    assert results._slurm(None) is None
