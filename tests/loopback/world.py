"""Everything a run needs, in folders of its own: a repository, a host's state and settings, an inventory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from json_output import check
from worker_support import compiled_worker, remember_image

from train_classifier.controller.worker_bundle import bundle

from .sshd import Sshd

PACKAGE = Path(__file__).resolve().parents[2]
MAIN = "import os, sys\n"
#: Python that waits until the test says so (World.go).
HOLD = """
import time
while not os.path.exists("/checkpoints/go"):
    time.sleep(0.05)
"""


class World:
    """One host (this machine) and one repository. As root, jobs run as `nobody`."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.repo = folder / "a repository"
        self.state = folder / "state"
        self.work = folder / "work"
        self.temp = folder / "temp"
        for each in (self.work, self.temp, folder / "queue"):
            each.mkdir()
        (self.repo / "artefacts").mkdir(parents=True)
        self.host_json = folder / "host.json"
        settings: dict[str, Any] = {
            "schema": 1,
            "images": {"cpu": image},
            "queue_dir": str(folder / "queue"),
            "service_user": "nobody",
            # Not that of a machine that role training_host prepared: see provide_uv.
            "uv": str(folder / "no-uv"),
        }
        self.host_json.write_text(json.dumps(settings))
        self.worker = self.state / "workers" / bundle()[0]
        # As an earlier run left it, with its bytecode: each of some hundred hosts would compile it anew.
        self.state.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
        shutil.copytree(compiled_worker(), self.worker)
        remember_image(self.state, image)
        self.local = folder / "local.yml"
        self.local.write_text(
            "all:\n  hosts:\n    here:\n      ansible_connection: local\n"
            f"      training_job_state_dir: {self.state}\n"
        )

    def provide_uv(self) -> None:
        """Let jobs install packages of Python; without, a job of a model without requirements has one container less."""
        uv = shutil.which("uv")
        if uv:
            settings = json.loads(self.host_json.read_text())
            self.host_json.write_text(json.dumps({**settings, "uv": uv}))

    def assert_untouched(self) -> None:
        """No job was sent to this host."""
        assert sorted(path.name for path in self.state.iterdir()) == ["images", "workers"]

    def model(self, program: str, name: str = "probe") -> str:
        """Write a model whose `__main__.py` is `program` and return its name."""
        folder = self.repo / name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text(MAIN + program)
        return name

    def inventory(self, sshd: Sshd, port: int | None = None) -> Path:
        """Return an inventory that reaches this machine by ssh."""
        return sshd.inventory(port, training_job_state_dir=str(self.state))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command."""
        return {
            **os.environ,
            "TRAIN_CLASSIFIER_HOST_JSON": str(self.host_json),
            "PYTHONPATH": str(PACKAGE),
            "TMPDIR": str(self.temp),
            # Control sockets of one world never serve another.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
        }

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the argument vector of our command."""
        return [sys.executable, "-m", "train_classifier", *map(str, arguments)]

    def run(
        self, *arguments: str | Path, timeout: float = 300, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run our command to its end; what --json prints has its published form."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            cwd=cwd or self.work,
            env={**self.environment, **environment},
            check=False,
        )
        check(arguments, done.stdout)
        return done

    def start(self, *arguments: str | Path, **how: Any) -> subprocess.Popen[bytes]:
        """Start our command in a session of its own."""
        options: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            "cwd": self.work,
            "env": self.environment,
            "start_new_session": True,
            # Reading a line and then the rest must not lose what a buffer holds.
            "bufsize": 0,
            **how,
        }
        return subprocess.Popen(self.command(*arguments), **options)

    def train(self, model: str, *arguments: str | Path, inventory: Path | None = None) -> list[str | Path]:
        """Return the arguments of a `train` on the CPU."""
        own = ["train", model, "--repo", self.repo, "--gpus", "0", "--inventory", inventory or self.local]
        return [*own, *arguments]

    def jobs(self) -> list[dict[str, Any]]:
        """Return what `list --json` says."""
        done = self.run("list", "--all", "--json", "--inventory", self.local)
        assert done.returncode == 0, done.stderr
        answer: list[dict[str, Any]] = json.loads(done.stdout)
        return answer

    def wait_for(self, state: Callable[[dict[str, Any]], bool], timeout: float = 240) -> dict[str, Any]:
        """Return the newest job's status file once `state` holds for it."""
        return wait_until(lambda: next((s for s in self.statuses()[-1:] if state(s)), None), timeout)

    def go(self) -> None:
        """Let the newest job go on from HOLD."""
        newest = max((self.state / "jobs").iterdir())
        (next(newest.rglob("checkpoints")) / "go").touch()

    def statuses(self) -> list[dict[str, Any]]:
        """Return the status files of all jobs, oldest first."""
        values = []
        for path in sorted((self.state / "jobs").glob("*/status.json")):
            with contextlib.suppress(OSError, ValueError):
                values.append(json.loads(path.read_text()))
        return values

    def result(self, job: str) -> dict[str, Any]:
        """Return a job's result from its file, once it is there."""
        path = self.state / "jobs" / job / "result.json"
        wait_until(path.exists)
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def log(self, job: str) -> bytes:
        """Return the job's log as the host has it."""
        return (self.state / "jobs" / job / "log.txt").read_bytes()

    def assert_clean(self) -> None:
        """Nothing of ours is left: no container, no temporary file, no half-written archive, no process."""
        ids = [path.name for path in (self.state / "jobs").glob("*")]
        for job in ids:
            listed = subprocess.run(
                ["docker", "ps", "-aq", "--filter", f"label=train-classifier.job={job}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert listed.stdout == "", f"containers of {job}"
        assert [path.name for path in self.temp.iterdir()] == []
        assert [path.name for path in self.work.iterdir() if path.name.startswith(".")] == []
        wait_until(lambda: not self.processes(), 30)

    def files_with(self, word: bytes) -> list[Path]:
        """Return the files of this world that hold a word; what goes away meanwhile is left out."""
        paths = []
        for top in (self.temp, self.state, self.work):
            for folder, _, names in os.walk(top):
                for path in (Path(folder, name) for name in names):
                    with contextlib.suppress(FileNotFoundError):
                        if path.is_file() and word in path.read_bytes():
                            paths.append(path)
        return paths

    def processes(self) -> list[tuple[int, str]]:
        """Return the processes that know of this world, ours excepted."""
        commands = []
        needle = os.fsencode(str(self.folder))
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                # Ansible's persistent connections end by themselves, a minute after their last use.
                if needle in command and not command.startswith((b"sshd", b"/usr/sbin/sshd", b"ssh:")):
                    commands.append((int(entry.name), command.replace(b"\0", b" ").decode()))
        return commands


#: A limit that suits a busy machine, in seconds.
PATIENCE_S = 240.0


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE_S) -> Any:
    """Return what `condition` returns once that is true; fail after `timeout` seconds, or PATIENCE_S if that is more."""
    timeout = max(timeout, PATIENCE_S)
    end = time.monotonic() + timeout
    while (started := time.monotonic()) < end:
        value = condition()
        if value:
            return value
        # An expensive condition is checked less often: the process it waits for needs the machine, too.
        time.sleep(max(0.05, 4 * (time.monotonic() - started)))
    raise AssertionError(f"not within {timeout} s: {condition}")


def make_world(image: str) -> Iterator[World]:
    """Yield a world in a folder that every account may pass, and remove it."""
    # A symbolic link in TMPDIR, or a folder of mode 0700 above, would hide it from the job's account.
    folder = Path(tempfile.mkdtemp(prefix="tc-world-", dir="/var/tmp")).resolve()
    try:
        yield World(folder, image)
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def tail(data: bytes | Sequence[bytes]) -> str:
    """Return the end of an output, for a failure's message."""
    return (data if isinstance(data, bytes) else b"".join(data))[-3000:].decode("utf-8", "replace")
