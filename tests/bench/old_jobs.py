"""How long the commands that look take on a host with many old jobs, each over a connection that is open."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hosts import fleet
from hosts.machine import make_image, state_dir

MODEL = (
    "import json, pathlib\nout = pathlib.Path('artefacts')\nout.mkdir(exist_ok=True)\n"
    "(out / 'metrics.json').write_text(json.dumps({'accuracy': 0.9, 'loss': 0.1}))\n"
    "rows = ''.join(f'{n},{1 / (n + 1)}\\n' for n in range(100))\n"
    "(out / 'history.csv').write_text('epoch,loss\\n' + rows)\nprint('done')\n"
)
#: Run in the jobs' folder of the host: copies of a job, each with an id and times of its own, a minute apart.
MULTIPLY = """
import json, os, pathlib, shutil, sys, time
first, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for number in range(1, count):
    at = time.time() - 60 * number
    name = time.strftime("%Y%m%d-%H%M%S-", time.gmtime(at)) + f"{number:08x}"
    shutil.copytree(first, name, symlinks=True)
    for file in ("spec.json", "status.json", "result.json", "manifest.json"):
        path = pathlib.Path(name, file)
        path.write_text(path.read_text().replace(first.name, name))
        os.utime(path, (at, at))
"""


def commands(last: str, earlier: str) -> dict[str, list[str]]:
    """The commands that look at jobs and change nothing."""
    lines = (
        ["list"], ["list", "--json"], ["status", last], ["logs", last], ["report", last], ["history", "model"],
        ["compare", last, earlier], ["top"],
    )  # fmt: skip
    return {" ".join(line).replace(last, "JOB").replace(earlier, "EARLIER"): line for line in lines}


def run(*arguments: str, cwd: Path) -> tuple[float, str]:
    """Seconds of one command, and what it printed."""
    start = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).with_name("train-classifier"), *arguments],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall = time.monotonic() - start
    if done.returncode:
        raise SystemExit(f"{arguments}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return wall, done.stdout


def measure(lines: dict[str, list[str]], rounds: int, cwd: Path) -> dict[str, float]:
    """Median seconds of each command, after a round that does not count."""
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for label, line in lines.items():
            wall, _ = run(*line, cwd=cwd)
            if number:
                times.setdefault(label, []).append(wall)
    return {label: statistics.median(values) for label, values in times.items()}


def bench(count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Train once, measure, make `count` jobs of it, measure again, and print both."""
    os.environ.pop("PYTHONUNBUFFERED", None)
    image = make_image("slim")
    with tempfile.TemporaryDirectory(prefix="train-classifier-bench-") as name:
        work = Path(name)
        model = work / "repository/model"
        model.mkdir(parents=True)
        (model / "__main__.py").write_text(MODEL)
        host = fleet.ssh_host(work / "host", image)
        try:
            os.environ["TRAIN_CLASSIFIER_INVENTORY"] = str(host.inventory("trainer"))
            jobs = []
            for _ in range(2):
                _, printed = run(
                    "train", "model", "--image", image, "--gpus", "0", "--json", cwd=model.parent
                )
                jobs.append(json.loads(printed)["id"])
            lines = {"--version": ["--version"], **commands(jobs[1], jobs[0])}
            few = measure(lines, rounds, work)
            folder = f"{state_dir('trainer')}/jobs"
            host.exec(
                "sh", "-ec", 'cd "$1"; shift; exec python3 - "$@"', "sh", folder, jobs[0], str(count - 1),
                user="trainer", input=MULTIPLY,
            )  # fmt: skip
            many = measure(lines, rounds, work)
        finally:
            host.remove()
    print(f"| median seconds | 2 jobs | {count:,} jobs |\n|---|--:|--:|")
    for label in lines:
        print(f"| `{label}` | {few[label]:.2f} | {many[label]:.2f} |")
    return {"few": few, "many": many}
