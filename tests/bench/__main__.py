"""Train the same models in the same image by train-classifier and by its peers; print a table of medians.

Interleaved (each round runs every contestant once), after one round that does not count. Figures are
ratios of one run of this bench; absolute seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from hosts import fleet
from hosts.machine import CA_BUNDLE, ca_bundle, make_image, run

from bench import cluster, cluster_sizes, old_jobs, pairs
from bench.peers import CONTESTANTS, Bench, Run

EMPTY = "import pathlib\npathlib.Path('artefacts').mkdir(exist_ok=True)\npathlib.Path('artefacts/done').write_text('{}')\n"
LARGE = "import os\nos.makedirs('artefacts', exist_ok=True)\nwith open('artefacts/large', 'wb') as f:\n    for _ in range(200):\n        f.write(os.urandom(1 << 20))\n"
TICKS = (
    "import pathlib, time\npathlib.Path('artefacts').mkdir(exist_ok=True)\npathlib.Path('artefacts/done').touch()\n"
    "for _ in range(60):\n    print('tick', time.time(), flush=True)\n    time.sleep(0.1)\n"
)
LOUD = (
    "import pathlib, sys\npathlib.Path('artefacts').mkdir(exist_ok=True)\npathlib.Path('artefacts/done').touch()\n"
    "line = 'x' * 999 + '\\n'\nfor _ in range(200000):\n    sys.stdout.write(line)\n"
)
# Small packages without dependencies: one more of them each round.
COMMON = ["six==1.16.0", "idna==3.10", "attrs==24.2.0"]
MORE = ["toolz==1.0.0", "zipp==3.20.2", "tomli==2.0.2", "colorama==0.4.6", "certifi==2024.8.30", "pytz==2024.2",
        "filelock==3.16.1", "packaging==24.1", "tabulate==0.9.0", "termcolor==2.4.0", "wcwidth==0.2.13"]  # fmt: skip


def repository(root: Path, code: str, requirements: list[str] | None = None, files: int = 0) -> Path:
    """Make a repository with one model `model`, and `files` more files of 100 bytes."""
    model = root / "model"
    model.mkdir(parents=True)
    (model / "__init__.py").touch()
    (model / "__main__.py").write_text(code)
    if requirements:
        (model / "requirements.txt").write_text("\n".join(requirements) + "\n")
    for number in range(files):
        folder = root / "data" / f"{number // 100:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"{number:<99}\n")
    return root


def bench_image() -> str:
    """The image all train in: Debian 12 with Python and pip (the peers need pip), and this machine's CA bundle."""
    slim = make_image("slim")
    tag = "train-classifier-bench:bookworm"
    have = run(
        "docker", "image", "inspect", "-f", '{{index .Config.Labels "base"}}', tag, check=False
    ).stdout.strip()
    base = run("docker", "image", "inspect", "-f", "{{.Id}}", slim).stdout.strip()
    if have == base:
        return tag
    bundle = ca_bundle()
    container = run(
        "docker",
        "create",
        slim,
        "sh",
        "-ec",
        "apt-get update -q && apt-get install -yq --no-install-recommends python3-pip && apt-get clean",
    ).stdout.strip()
    try:
        if bundle:
            run("docker", "cp", bundle, f"{container}:/etc/ssl/certs/ca-certificates.crt")
        run("docker", "start", "-a", container)
        run("docker", "commit", "--change", "CMD [\"/bin/sh\"]", "--change", f"LABEL base={base}",
            "--change", "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt", container, tag)  # fmt: skip
    finally:
        run("docker", "rm", "-f", container)
    return tag


class Table:
    """Collects runs and prints medians with the ratio to the first column."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, list[float]]] = {}

    def add(self, case: str, who: str, seconds: float) -> None:
        self.results.setdefault(case, {}).setdefault(who, []).append(seconds)

    def median(self, case: str, who: str) -> float:
        return statistics.median(self.results[case][who])

    def markdown(self) -> str:
        columns = list(CONTESTANTS)
        rows = [f"| median seconds | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
        for case, values in self.results.items():
            cells = []
            for who in columns:
                if who not in values:
                    cells.append("–")
                    continue
                ratio = self.median(case, who) / self.median(case, columns[0])
                cells.append(
                    f"{self.median(case, who):.2f}" + (f" (×{ratio:.2f})" if who != columns[0] else "")
                )
            rows.append(f"| {case} | {' | '.join(cells)} |")
        return "\n".join(rows)


def turnaround(
    bench: Bench,
    table: Table,
    case: str,
    repo: Path,
    rounds: int,
    change: Callable[[int], None] | None = None,
    beside: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Time every contestant on `repo`, interleaved; `change(round)` alters it before each round (the first is not counted).

    `beside` measures something else once in every round, so that it is compared under the same conditions.
    """
    for number in range(rounds + 1):
        if change:
            change(number)
        for who, contestant in CONTESTANTS.items():
            output = bench.work / f"{who.replace(' ', '-')}.tar.gz"
            done: Run = contestant(bench, repo, "model", output)
            if not output.stat().st_size:
                raise SystemExit(f"{case}: {who} brought nothing")
            print(
                f"  {case}, round {number}: {who} {done.seconds:.2f} s {json.dumps(done.phases)}", flush=True
            )
            if number:
                table.add(case, who, done.seconds)
                for phase, seconds in done.phases.items():
                    table.results.setdefault(f"phases: {case}", {}).setdefault(phase, []).append(seconds)
        for label, seconds in beside().items() if beside else ():
            print(f"  {case}, round {number}: {label} {seconds:.3f} s", flush=True)
            if number:
                table.add(BESIDE, label, seconds)


#: Figures that are no contestant's whole run.
BESIDE = "beside"
PLAYBOOK = "empty one-task playbook"
RSYNC = "plain rsync of 10,000 unchanged files"
CONTAINER = "from the end of the push to the phase of training"
MODEL = "from the end of the push to the model's first line"
LAG = "log lag: "


def live(bench: Bench, repo: Path) -> dict[str, float]:
    """How live a run is: seconds from a line's printing to its arrival, and from the push to the container.

    The stock playbook shows nothing until its end. Host and caller have the same clock here.
    """
    times = {}
    for who in ("train-classifier", "bare script"):
        output = bench.work / "live.tar.gz"
        done = CONTESTANTS[who](bench, repo, "model", output, True)
        ticks = [(at, float(line.split()[1])) for at, line in done.lines if line.startswith(b"tick ")]
        times[LAG + who] = statistics.median(at - printed for at, printed in ticks)
        pushed = next((at for at, line in done.said if line.startswith(b"push: ")), None)
        if pushed is not None:
            with tarfile.open(output) as archive:
                paper = archive.extractfile("job/manifest.json")
                assert paper is not None
                times[CONTAINER] = json.load(paper)["times"]["training"][0] - pushed
            times[MODEL] = ticks[0][1] - pushed
    return times


def beside_another(other: Path, rounds: int) -> list[list[pairs.Figures]]:
    """Train an empty model by another checkout's command and by this one's, in turn, and print their medians."""
    image = bench_image()
    with tempfile.TemporaryDirectory(prefix="train-classifier-bench-") as name:
        work = Path(name)
        host = fleet.ssh_host(work / "host", make_image("slim"))
        try:
            host.load_image(image)
            arguments = ["--inventory", str(host.inventory("trainer")), "--image", image, "--gpus", "0"]
            runs = []
            for label, checkout in (("other", other), ("this", Path(__file__).parents[2])):
                model = repository(work / label, EMPTY, COMMON)
                output = work / f"{label}.tar.gz"
                runs.append(
                    functools.partial(pairs.train, checkout, host.container, model, arguments, output)
                )
            return pairs.compare(*runs, rounds)
        finally:
            host.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="instead: an empty model again, by this checkout and by another one with its .venv, in turn",
    )
    parser.add_argument(
        "--old-jobs",
        type=int,
        metavar="N",
        help="instead: the commands that look, on a host with N finished jobs",
    )
    parser.add_argument(
        "--cluster",
        type=int,
        metavar="JOBS",
        help="instead: the makespan of JOBS jobs on a Slurm cluster of three nodes, beside bare sbatch",
    )
    parser.add_argument(
        "--cluster-sizes",
        action="store_true",
        help="instead: the commands that ask a cluster of 1, 4 and 16 nodes",
    )
    options = parser.parse_args()
    if options.against or options.old_jobs or options.cluster or options.cluster_sizes:
        figures: object
        if options.against:
            figures = beside_another(options.against.resolve(), options.rounds)
        elif options.old_jobs:
            figures = old_jobs.bench(options.old_jobs, options.rounds)
        elif options.cluster:
            figures = cluster.bench(options.cluster)
        else:
            figures = cluster_sizes.bench(options.rounds)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))
        return
    image = bench_image()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="train-classifier-bench-") as name:
        work = Path(name)
        host = fleet.ssh_host(work / "host", make_image("slim"))
        try:
            host.load_image(image)
            control = ["-o", "ControlMaster=auto", "-o", f"ControlPath={work}/c", "-o", "ControlPersist=60"]
            ssh = ["ssh", *host.ssh_options(), *control]
            bench = Bench("trainer@127.0.0.1", ssh, host.inventory("trainer"), image, work)
            subprocess.run([*ssh, bench.target, "mkdir -p bench"], check=True)
            if ca_bundle():
                host.exec("cp", CA_BUNDLE, "/etc/ssl/certs/ca-certificates.crt")
            empty = repository(work / "empty", EMPTY)
            ticks = repository(work / "ticks", TICKS)
            turnaround(
                bench, table, "empty model, again", empty, options.rounds,
                beside=lambda: {PLAYBOOK: bench.empty_playbook(), **live(bench, ticks)},
            )  # fmt: skip

            code = repository(work / "code", EMPTY, COMMON)
            turnaround(bench, table, "code changed", code, options.rounds,
                       lambda n: (code / "model/__main__.py").write_text(f"# {n}\n{EMPTY}") and None)  # fmt: skip
            more = repository(work / "more", EMPTY, COMMON)
            turnaround(bench, table, "one requirement more", more, options.rounds,
                       lambda n: (more / "model/requirements.txt").write_text("\n".join(COMMON + MORE[: n + 1]) + "\n") and None)  # fmt: skip
            many = repository(work / "many", EMPTY, files=10_000)
            turnaround(
                bench, table, "10,000 files unchanged", many, options.rounds,
                beside=lambda: {RSYNC: bench.rsync(many)},
            )  # fmt: skip
            turnaround(
                bench,
                table,
                "200 MB of artefacts",
                repository(work / "large", LARGE),
                max(1, options.rounds // 2),
            )
            turnaround(
                bench, table, "200 MB of log", repository(work / "loud", LOUD), max(1, options.rounds // 2)
            )
        finally:
            host.remove()
    beside = {label: statistics.median(values) for label, values in table.results[BESIDE].items()}
    playbook, rsync = beside[PLAYBOOK], beside[RSYNC]
    measured = table.results.pop(BESIDE)
    phases = {case: times for case, times in table.results.items() if case.startswith("phases: ")}
    for case in phases:
        del table.results[case]
    added = table.median("empty model, again", "train-classifier") - table.median(
        "empty model, again", "bare script"
    )
    print(
        f"\n{platform.machine()}, Python {platform.python_version()}, {options.rounds} rounds, interleaved\n"
    )
    print(table.markdown())
    print("\n| phases of train-classifier, median seconds | |\n|---|---|")
    for case, times in phases.items():
        words = " · ".join(f"{phase} {statistics.median(values):.2f}" for phase, values in times.items())
        print(f"| {case.removeprefix('phases: ')} | {words} |")
    # A push that sends nothing is part of preflight: what counts is what the files add to both.
    many, none = (
        sum(statistics.median(phases[f"phases: {case}"][phase]) for phase in ("preflight", "push"))
        for case in ("10,000 files unchanged", "empty model, again")
    )
    whole = table.median("empty model, again", "train-classifier") / table.median(
        "empty model, again", "stock playbook"
    )
    print(
        f"\nWhat we add to the bare script: {added / playbook:.2f} empty one-task playbooks (of {playbook:.2f} s); aim 2.5."
    )
    print(f"The whole beside the stock playbook: {whole:.2f}; aim 0.33.")
    print(
        f"10,000 unchanged files add {(many - none) / rsync:.2f} of a plain rsync ({rsync:.2f} s) to preflight and push."
    )
    print(
        f"The container starts {beside[CONTAINER]:.2f} s after the push, the model says its first word after "
        f"{beside[MODEL]:.2f} s; aim 2 s."
    )
    lags = [
        f"{label.removeprefix(LAG)} {value * 1000:.0f} ms"
        for label, value in beside.items()
        if label.startswith(LAG)
    ]
    print(f"Log lag: {', '.join(lags)}; aim under 500 ms.")
    if options.json:
        data = {
            "cases": table.results,
            "phases": phases,
            "beside": measured,
        }
        options.json.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
