"""The makespan of many jobs on a cluster, by train-classifier and by bare sbatch of the same containers.

Makespan: from the first submission that Slurm records to the last end. Both hold one card for each job; sbatch's script runs
`docker run` with the same image, limits and program, and copies nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from hosts.cluster import Cluster, make_cluster
from hosts.machine import make_image
from test_slurm import SlurmCaller, set_up

MODEL = "import time\ntime.sleep({seconds})\nopen('artefacts/done', 'w').write('done')\n"
BARE = """#!/bin/sh
exec docker run --rm --network none --memory 1g --cpus 1 --cap-drop ALL {image} python3 -c 'import time; time.sleep({seconds})'
"""


def makespan(cluster: Cluster, first: int) -> tuple[float, float]:
    """Wait until no job is left; return the makespan of those from Slurm's number `first` on, and one job's median."""
    while cluster.controller.shell("squeue -h").strip():
        time.sleep(1)
    output = cluster.controller.shell("SLURM_TIME_FORMAT=%s scontrol --oneliner show jobs")
    jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in output.splitlines()]
    counted = [job for job in jobs if int(job["JobId"]) >= first]
    states = {job["JobState"] for job in counted}
    assert states == {"COMPLETED"}, states
    ends = [int(job["EndTime"]) for job in counted]
    return (
        max(ends) - min(int(job["SubmitTime"]) for job in counted),
        statistics.median(end - int(job["StartTime"]) for end, job in zip(ends, counted, strict=True)),
    )


def phases(caller: SlurmCaller, group: str) -> str:
    """Median seconds of each phase of the group's jobs on their nodes, in words."""
    answer = json.loads(caller.run("status", group, "--json").stdout)
    seconds = [job["result"]["seconds"] for job in answer["jobs"]]
    return ", ".join(f"{name} {statistics.median(one[name] for one in seconds):.1f}" for name in seconds[0])


def bench(jobs: int, seconds: float = 25, nodes: int = 3) -> dict[str, float]:
    """Run both, print and return the figures."""
    image = make_image("slim")
    with tempfile.TemporaryDirectory(prefix="train-classifier-bench-") as folder:
        cluster = make_cluster(Path(folder) / "cluster", image, nodes=nodes)
        try:
            # Slurm forgets jobs that ended five minutes ago.
            cluster.controller.shell("echo MinJobAge=36000 >>/etc/slurm/slurm.conf")
            set_up(cluster)
            (Path(folder) / "caller").mkdir()
            caller = SlurmCaller(cluster, Path(folder) / "caller", "trainer")
            caller.model("sleep", MODEL.format(seconds=seconds))
            load = os.getloadavg()[0]
            first = int(cluster.sbatch("--output=/dev/null")) + 1
            makespan(cluster, 1)
            script = BARE.format(image=image, seconds=seconds)
            for _ in range(jobs):
                cluster.sbatch("--gres=gpu:1", "--output=/dev/null", script=script)
            bare, bare_job = makespan(cluster, first)
            numbers = ",".join(map(str, range(jobs)))
            words = caller.train("sleep", "--sweep", f"seed={numbers}", "--memory", "1GiB", "--detach")
            done = caller.run(*words)
            assert done.returncode == 0, done.stderr.decode()
            ours, our_job = makespan(cluster, first + jobs)
            print(f"phases of a job, median seconds: {phases(caller, done.stdout.decode().strip())}")
        finally:
            cluster.remove()
    print(
        f"{jobs} jobs of {seconds:g} s over {2 * nodes} cards: sbatch {bare:.0f} s (a job {bare_job:g} s), "
        f"train-classifier {ours:.0f} s (a job {our_job:g} s), ratio {ours / bare:.2f}; aim 1.15 "
        f"(load {load:.1f} to {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors)"
    )
    return {"bare": bare, "bare_job": bare_job, "ours": ours, "our_job": our_job}
