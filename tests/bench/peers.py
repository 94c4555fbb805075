"""The contestants: each trains a model of a repository on the test host over ssh and brings the artefacts back."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent / "peers"


@dataclasses.dataclass
class Run:
    """One timed run: seconds of the whole, seconds of phases where the contestant tells, and its output."""

    seconds: float
    phases: dict[str, float]
    output: bytes
    #: (arrival, line) of each line of the log, seconds since the epoch.
    lines: list[tuple[float, bytes]]
    #: The same of what it said beside the log.
    said: list[tuple[float, bytes]] = dataclasses.field(default_factory=list)


def _stamp(stream: IO[bytes], stamped: list[tuple[float, bytes]]) -> None:
    """Note each line of a stream and when it came."""
    for line in stream:
        stamped.append((time.time(), line))


class Failed(Exception):
    """A contestant did not bring the artefacts."""


@dataclasses.dataclass
class Bench:
    """Where the contestants run: how the host is reached and which image they train in."""

    target: str
    ssh: list[str]
    inventory: Path
    image: str
    work: Path

    def _time(self, argv: list[str], environment: dict[str, str], timed_lines: bool = False) -> Run:
        env = {**os.environ, **environment, "SSH": " ".join(self.ssh), "TARGET": self.target}
        env.pop("PYTHONUNBUFFERED", None)
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        start = time.time()
        process = subprocess.Popen(
            argv,
            env=env,
            cwd=self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        lines: list[tuple[float, bytes]] = []
        stamped: list[tuple[float, bytes]] = []
        if timed_lines:
            assert process.stdout and process.stderr
            beside = threading.Thread(target=_stamp, args=(process.stderr, stamped))
            beside.start()
            _stamp(process.stdout, lines)
            beside.join()
            process.wait()
            out, err = b"", b"".join(line for _, line in stamped)
        else:
            out, err = process.communicate()
        seconds = time.time() - start
        if process.returncode:
            raise Failed(f"{argv[:3]}: exit {process.returncode}\n{out[-2000:]!r}\n{(err or b'')[-2000:]!r}")
        return Run(seconds, {}, out, lines, stamped)

    def _script(self, name: str, repo: Path, model: str, output: Path, timed_lines: bool) -> Run:
        return self._time([str(HERE / name), str(repo), model, self.image, str(output)], {}, timed_lines)

    def bare(self, repo: Path, model: str, output: Path, timed_lines: bool = False) -> Run:
        """The bare script: rsync, docker run, tar."""
        return self._script("bare.sh", repo, model, output, timed_lines)

    def original_action(self, repo: Path, model: str, output: Path, timed_lines: bool = False) -> Run:
        """The original action's way: an image of everything, built per run."""
        return self._script("original-action.sh", repo, model, output, timed_lines)

    def stock(self, repo: Path, model: str, output: Path, timed_lines: bool = False) -> Run:
        """A stock playbook with Ansible's defaults."""
        values = {
            "bench_repository": str(repo),
            "bench_model": model,
            "bench_image": self.image,
            "bench_output": str(output),
            "bench_requirements": (repo / model / "requirements.txt").exists(),
        }
        argv = [
            "ansible-playbook",
            "-i",
            str(self.inventory),
            str(HERE / "stock.yml"),
            "-e",
            json.dumps(values),
        ]
        config = self.work / "ansible.cfg"
        config.touch()  # empty: the defaults of Ansible, not ours
        return self._time(argv, {"ANSIBLE_CONFIG": str(config)}, timed_lines)

    def ours(self, repo: Path, model: str, output: Path, timed_lines: bool = False) -> Run:
        """train-classifier itself."""
        argv = [
            "train-classifier", "train", model, "--repo", str(repo), "--inventory", str(self.inventory),
            "--image", self.image, "--gpus", "0", "--output", str(output),
        ]  # fmt: skip
        if timed_lines:
            return self._time(argv, {}, True)
        run = self._time([*argv, "--json"], {})
        run.phases = json.loads(run.output).get("seconds", {})
        return run

    def empty_playbook(self) -> float:
        """Seconds of an empty one-task playbook over the same connection: what Ansible itself costs."""
        argv = ["ansible-playbook", "-i", str(self.inventory), str(HERE / "empty.yml")]
        return self._time(argv, {"ANSIBLE_CONFIG": str(Path(__file__).parents[2] / "ansible.cfg")}).seconds

    def rsync(self, repo: Path) -> float:
        """Seconds of a plain rsync of the tree, as the bare script does it."""
        argv = [
            "rsync",
            "-a",
            "--delete",
            "-e",
            " ".join(self.ssh),
            f"{repo}/",
            f"{self.target}:bench/rsync/",
        ]
        return self._time(argv, {}).seconds


CONTESTANTS: dict[str, Callable[..., Run]] = {
    "train-classifier": Bench.ours,
    "bare script": Bench.bare,
    "stock playbook": Bench.stock,
    "the original action's way": Bench.original_action,
}
