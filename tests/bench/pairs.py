"""Warm turnaround of this checkout beside another one (an earlier commit) on one test host, in turn."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

Figures = dict[str, float]
WALL, HERE, HOST = "seconds", "CPU seconds of the controller", "CPU seconds of the host"


def _host_cpu(container: str) -> float:
    """CPU seconds of a test host so far, its engine and workers included (version 1 or 2 of control groups)."""
    groups = Path("/sys/fs/cgroup")
    for path in groups.glob(f"cpuacct/docker/{container}*/cpuacct.usage"):
        return int(path.read_text()) / 1e9
    for path in groups.glob(f"system.slice/docker-{container}*.scope/cpu.stat"):
        return int(path.read_text().split()[1]) / 1e6
    return 0.0


def train(checkout: Path, container: str, repository: Path, arguments: list[str], output: Path) -> Figures:
    """Train once with the command of a checkout's own environment.

    Raises:
        SystemExit: it failed.
    """
    programs = checkout / ".venv/bin"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    environment.pop("PYTHONUNBUFFERED", None)
    argv = [str(programs / "train-classifier"), "train", "model", "--repo", str(repository), *arguments]
    argv += ["--output", str(output), "--json"]
    host, here, start = _host_cpu(container), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(argv, env=environment, cwd=output.parent, capture_output=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{argv}: exit {done.returncode}\n{done.stdout[-2000:]!r}\n{done.stderr[-2000:]!r}")
    cpu = after.ru_utime + after.ru_stime - here.ru_utime - here.ru_stime
    return {WALL: wall, HERE: cpu, HOST: _host_cpu(container) - host, **json.loads(done.stdout)["seconds"]}


def compare(
    run_old: Callable[[], Figures], run_new: Callable[[], Figures], rounds: int
) -> list[list[Figures]]:
    """Run both in turn, the first round uncounted, each second round in the other order; print the medians."""
    pairs: list[list[Figures]] = []
    for number in range(rounds + 1):
        order = [run_old, run_new] if number % 2 else [run_new, run_old]
        figures = [run() for run in order]
        pair = figures if number % 2 else figures[::-1]
        print(
            f"  round {number}: "
            + ", ".join(f"{pair[0][key]:.2f} -> {pair[1][key]:.2f}" for key in (WALL, HERE, HOST))
        )
        if number:
            pairs.append(pair)
    print("\n| median | other | this | this / other, median of pairs |\n|---|--:|--:|--:|")
    for key in pairs[0][1]:
        old, new = ([pair[side].get(key, 0.0) for pair in pairs] for side in (0, 1))
        ratios = [b / a for a, b in zip(old, new, strict=True) if a]
        ratio = f"{statistics.median(ratios):.3f}" if ratios else "–"
        print(f"| {key} | {statistics.median(old):.3f} | {statistics.median(new):.3f} | {ratio} |")
    return pairs
