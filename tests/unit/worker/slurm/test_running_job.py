"""What the service account believes of a job of Slurm: its owner chooses the job's name, account and comment."""

from __future__ import annotations

import pytest

from train_classifier.core.errors import BadInput
from train_classifier.worker.slurm import running_job

#: Slurm 24.11's `scontrol show job --details` with SLURM_TIME_FORMAT=%s.
RUNNING = """\
JobId=7 JobName=tc-20261128-093000-0123abcd
   UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A
   Priority=1 Nice=0 Account=(null) QOS=(null)
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   DerivedExitCode=0:0
   RunTime=00:00:05 TimeLimit=01:01:00 TimeMin=N/A
   SubmitTime=1764322200 EligibleTime=1764322200
   AccrueTime=1764322200
   StartTime=1764322201 EndTime=1764325861 Deadline=N/A
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=1764322201 Scheduler=Main
   Partition=gpu AllocNode:Sid=controller:100
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=node1
   BatchHost=node1
   NumNodes=1 NumCPUs=4 NumTasks=1 CPUs/Task=4 ReqB:S:C:T=0:0:*:*
   ReqTRES=cpu=4,mem=2000M,node=1,billing=4,gres/gpu=2
   AllocTRES=cpu=4,mem=2000M,node=1,billing=4,gres/gpu=2
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:1 CoreSpec=*
   JOB_GRES=gpu:2
     Nodes=node1 CPU_IDs=0-3 Mem=2000 GRES=gpu:2(IDX:0,3)
   MinCPUsNode=4 MinMemoryCPU=500M MinTmpDiskNode=0
   Features=(null) DelayBoot=00:00:00
   OverSubscribe=OK Contiguous=0 Licenses=(null) LicensesAlloc=(null) Network=(null)
   Command=(null)
   WorkDir=/
   Comment=train-classifier: look
   TresPerNode=gres/gpu:2
"""
NAME = "JobName=tc-20261128-093000-0123abcd"
DETAIL = "     Nodes=node1 CPU_IDs=0-3 Mem=2000 GRES=gpu:2(IDX:0,3)\n"


def parse(output: str) -> dict[str, str]:
    return running_job.parse(output, "7", 1000, "node1")


def test_allocation_is_what_slurm_says() -> None:
    assert parse(RUNNING) == {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "SLURMD_NODENAME": "node1",
        "SLURM_JOB_GPUS": "0,3",
        "SLURM_CPUS_ON_NODE": "4",
        "SLURM_MEM_PER_NODE": "2000",
        "SLURM_JOB_END_TIME": "1764325861",
    }


@pytest.mark.parametrize(
    ("gres", "cards"),
    [
        ("gpu:rtx_4090:2(IDX:0-1)", "0-1"),
        ("gpu:a100:1(IDX:2),gpu:t4:1(IDX:0),shard:0(IDX:)", "2,0"),
        ("", ""),
        ("license:1", ""),
    ],
)
def test_cards_are_the_places_of_gres_conf(gres: str, cards: str) -> None:
    assert parse(RUNNING.replace("gpu:2(IDX:0,3)", gres))["SLURM_JOB_GPUS"] == cards


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("ada(1000)", "eve(1001)", "not yours"),
        ("ada(1000)", "ada(1000)(1001)", "another form"),
        ("JobId=7 ", "JobId=71 ", "not yours"),
        ("JobState=RUNNING", "JobState=COMPLETING", "does not run: COMPLETING"),
        ("JobState=RUNNING", "JobState=PENDING", "does not run"),
        ("   NodeList=node1", "   NodeList=node2", "not run on node1 alone"),
        ("   NodeList=node1", "   NodeList=node[1-2]", "not run on node1 alone"),
        ("NumNodes=1 ", "NumNodes=2 ", "not run on node1 alone"),
        ("     Nodes=node1", "     Nodes=node2", "not run on node1 alone"),
        (DETAIL, "", "0 lines of Nodes"),
        (DETAIL, DETAIL + DETAIL.replace("0,3", "1"), "2 lines of Nodes"),
        ("gpu:2(IDX:0,3)", "gpu:2", "does not say which cards"),
        ("JobId=7 JobName=", "JobId=7 ArrayJobId=6 ArrayTaskId=1 JobName=", "another form"),
        ("JobId=7 JobName=", "JobId=7 HetJobId=6 HetJobOffset=0 JobName=", "another form"),
        # What its owner writes into the name, the account or the comment.
        (NAME, "JobName=job", "another form"),
        (NAME, f"{NAME} UserId=eve(1000)", "another form"),
        (NAME, f"{NAME}\n   UserId=eve(1000) GroupId=eve(1000) MCS_label=N/A", "2 lines of UserId"),
        ("Account=(null)", "Account=x\n   JobState=RUNNING Reason=x", "2 lines of JobState"),
        ("Account=(null)", f"Account=x\n{DETAIL}", "2 lines of Nodes"),
        ("Account=(null)", f"Account=x\n{DETAIL.strip()}", "2 lines of Nodes"),
        ("Comment=", "Comment=x\n   NodeList=node1\n", "2 lines of NodeList"),
        ("Comment=", "Comment=\nJobId=7 JobName=tc-0\n", "2 lines of JobId"),
        ("Comment=", "Comment=\n   StartTime=1 EndTime=9999999999 Deadline=N/A\n", "2 lines of StartTime"),
    ],
)
def test_job_that_is_not_certainly_the_callers_is_refused(before: str, after: str, reason: str) -> None:
    assert before in RUNNING
    with pytest.raises(BadInput, match=reason):
        parse(RUNNING.replace(before, after))


def test_forged_lines_of_a_job_that_waits_do_not_make_it_run() -> None:
    waiting = RUNNING.replace("JobState=RUNNING", "JobState=PENDING").replace(DETAIL, "")
    forged = f"Account=x\n   JobState=RUNNING Reason=x\n{DETAIL}"
    with pytest.raises(BadInput, match="2 lines of JobState"):
        parse(waiting.replace("Account=(null)", forged))


@pytest.mark.parametrize("number", ["", "0", "7_1", "7 8", "7\n", "-a", "٧", "7" * 13, "7+0", "07"])
def test_only_a_number_reaches_slurm(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from train_classifier.worker.system.host import Host

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInput, match="is not a number of a job"):
        running_job.variables(Host().caller(), number, 1000, "node1")
