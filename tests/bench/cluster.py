"""The makespan of many jobs on a cluster, by train-classifier and by bare sbatch of the same containers.

    python -m tests.bench.cluster [--jobs 40] [--seconds 30] [--nodes 3]

Makespan: from the first submission that Slurm records to the last end. Both hold one card for each job; sbatch's script runs
`docker run` with the same image, limits and program, and copies nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from hosts.cluster import Cluster, make_cluster
from hosts.machine import make_image
from test_slurm import SlurmCaller, set_up

MODEL = "import time\ntime.sleep({seconds})\nopen('artefacts/done', 'w').write('done')\n"
BARE = """#!/bin/sh
exec docker run --rm --network none --memory 1g --cpus 1 --cap-drop ALL {image} python3 -c 'import time; time.sleep({seconds})'
"""


def makespan(cluster: Cluster, first: int) -> float:
    """Wait until no job is left; return the seconds that those from Slurm's number `first` on took, all together."""
    while cluster.controller.shell("squeue -h").strip():
        time.sleep(1)
    output = cluster.controller.shell("SLURM_TIME_FORMAT=%s scontrol --oneliner show jobs")
    jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in output.splitlines()]
    counted = [job for job in jobs if int(job["JobId"]) >= first]
    states = {job["JobState"] for job in counted}
    assert states == {"COMPLETED"}, states
    return max(int(job["EndTime"]) for job in counted) - min(int(job["SubmitTime"]) for job in counted)


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--nodes", type=int, default=3)
    options = parser.parse_args()
    image = make_image("slim")
    with tempfile.TemporaryDirectory() as folder:
        cluster = make_cluster(Path(folder) / "cluster", image, nodes=options.nodes)
        try:
            # Slurm forgets jobs that ended five minutes ago.
            cluster.controller.shell("echo MinJobAge=36000 >>/etc/slurm/slurm.conf")
            set_up(cluster)
            (Path(folder) / "caller").mkdir()
            caller = SlurmCaller(cluster, Path(folder) / "caller", "trainer")
            caller.model("sleep", MODEL.format(seconds=options.seconds))
            load = os.getloadavg()[0]
            first = int(cluster.sbatch("--output=/dev/null")) + 1
            makespan(cluster, 1)
            for _ in range(options.jobs):
                cluster.sbatch(
                    "--gres=gpu:1",
                    "--output=/dev/null",
                    script=BARE.format(image=image, seconds=options.seconds),
                )
            bare = makespan(cluster, first)
            first += options.jobs
            numbers = ",".join(map(str, range(options.jobs)))
            words = caller.train("sleep", "--sweep", f"seed={numbers}", "--memory", "1GiB", "--detach")
            done = caller.run(*words)
            assert done.returncode == 0, done.stderr.decode()
            ours = makespan(cluster, first)
        finally:
            cluster.remove()
    print(
        f"{options.jobs} jobs of {options.seconds:g} s over {2 * options.nodes} cards: sbatch {bare:.0f} s, "
        f"train-classifier {ours:.0f} s, ratio {ours / bare:.2f} (load {load:.1f} to {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} processors)"
    )


if __name__ == "__main__":
    main()
