"""Kill -9 controller, worker and engine in each phase: nothing is lost that was promised, nothing is left behind.

Phases are the worker's and the controller's alike. CI runs a fixed set that has every phase, and every victim as every
user and with every init; `--full` runs every combination.
The engine that dies is the test host's own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hosts.caller import Caller, archived
from hosts.machine import TestHost
from loopback.world import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.host]

KILLER = Path(__file__).parents[1] / "hosts" / "killer.py"
VICTIMS = ("controller", "worker", "engine")
PHASES = (
    "preflight", "push", "start", "image", "packages", "environment", "queue", "gpu-check", "training",
    "artefacts", "fetch",
)  # fmt: skip
#: Only a host with GPUs has them.
GPU_PHASES = ("queue", "gpu-check")
#: Until the job is submitted nothing is promised.
UNPROMISED = ("preflight", "push", "start")
USERS = ("root", "trainer")
INITS = ("systemd", "none")
LINES = 60
EXPECTED = b"".join(b"line %d\n" % number for number in range(LINES))
MODEL = f"""
import os, sys, time
os.makedirs("artefacts", exist_ok=True)
for number in range({LINES}):
    print("line", number)
    time.sleep(float(os.environ["PACE"]))
with open("artefacts/weights.bin", "wb") as file:
    for _ in range(int(os.environ["MEGABYTES"])):
        file.write(os.urandom(1 << 20))
"""


@dataclasses.dataclass(frozen=True)
class Case:
    victim: str
    phase: str
    user: str
    init: str

    def __str__(self) -> str:
        return f"{self.victim}-{self.phase}-{self.user}-{self.init}"


#: What CI runs: each phase, and each victim as each user and with each init.
USUAL = (
    Case("controller", "preflight", "root", "none"),
    Case("worker", "push", "trainer", "none"),
    Case("controller", "start", "trainer", "systemd"),
    Case("engine", "image", "trainer", "systemd"),
    Case("engine", "packages", "root", "none"),
    Case("worker", "environment", "root", "systemd"),
    Case("engine", "queue", "root", "systemd"),
    Case("worker", "gpu-check", "trainer", "systemd"),
    Case("controller", "training", "trainer", "none"),
    Case("engine", "training", "trainer", "systemd"),
    Case("worker", "artefacts", "root", "none"),
    Case("controller", "fetch", "root", "systemd"),
)


def cases() -> list[object]:
    """Every combination; what is not usual is marked full."""
    combinations = [Case(*values) for values in itertools.product(VICTIMS, PHASES, USERS, INITS)]
    # Jobs wait for a GPU only where there is one, and the simulated ones need Debian 13's engine.
    combinations = [case for case in combinations if case.phase not in GPU_PHASES or case.init == "systemd"]
    return [
        pytest.param(case, id=str(case), marks=() if case in USUAL else (pytest.mark.full,))
        for case in combinations
    ]


def test_usual_cases_cover_every_phase_victim_and_init() -> None:
    assert {case.phase for case in USUAL} == set(PHASES)
    assert {(case.victim, case.user) for case in USUAL} == set(itertools.product(VICTIMS, USERS))
    assert {(case.victim, case.init) for case in USUAL} == set(itertools.product(VICTIMS, INITS))


#: Makes a job that was never submitted twenty minutes older; one without a status counts from its specification.
AGE = """
import json, os, sys, time
then = time.time() - 1200
for name in ("status.json", "spec.json"):
    path = os.path.join(sys.argv[1], name)
    if os.path.exists(path):
        if name == "status.json":
            with open(path) as file:
                data = json.load(file)
            with open(path, "w") as file:
                json.dump({**data, "updated": then, "updated_uptime": data["updated_uptime"] - 1200}, file)
        os.utime(path, (then, then))
"""


class Scene(Caller):
    """One job on one test host, and a folder of the caller's."""

    def __init__(self, host: TestHost, case: Case, folder: Path) -> None:
        super().__init__(host, folder, case.user)
        self.case, self.jobs_dir = case, f"{self.state}/jobs"
        # Below the folder: `local_processes` finds this run's ssh by it.
        self.control = str(folder / "cp")
        self.model("probe", MODEL)
        if case.phase == "environment":
            # A comment of its own: no environment of another test fits.
            (self.repo / "probe" / "requirements.txt").write_text(f"# {folder}\nsix==1.16.0\nidna==3.10\n")
        if case.phase == "packages":
            (self.repo / "probe" / "apt-pkgs.txt").write_text("hello\n")
        if case.phase == "push":
            with (self.repo / "large.bin").open("wb") as file:
                for _ in range(120):
                    file.write(os.urandom(1 << 20))

    def start_training(self, errors: Path) -> subprocess.Popen[bytes]:
        """Start the training of the case; its standard error goes to the file `errors`."""
        megabytes = 80 if self.case.phase in ("artefacts", "fetch") else 1
        pace = 0.06 if self.case.phase == "training" else 0
        gpus = {"queue": "2", "gpu-check": "1"}.get(self.case.phase, "0")
        options = ("--env", f"PACE={pace}", "--env", f"MEGABYTES={megabytes}", "--gpus", gpus)
        return self.start(*self.train("probe", *options), errors=errors)

    def remove_caches(self) -> None:
        """Remove what earlier jobs prepared, where the phase would be too short with it."""
        if self.case.phase == "image":
            self.host.shell(f"rm -f {self.state}/images/*.json")
        if self.case.phase == "packages":
            layers = "docker images -q --filter label=train-classifier.kind=image"
            self.host.shell(f"{layers} | sort -u | xargs -r docker rmi -f")
        if self.case.phase == "gpu-check":
            self.host.shell(f"rm -f {self.state}/proofs/*.json")

    def jobs(self) -> set[str]:
        return set(self.host.shell(f"test ! -d {self.jobs_dir} || ls {self.jobs_dir}").split())

    def start_engine(self) -> None:
        """Start the killed engine, as an administrator does where nothing restarts it."""
        if self.case.init == "none":
            script = "rm -f /var/run/docker.pid; setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &"
            self.host.shell(script)
        else:
            self.host.shell("systemctl reset-failed docker docker.socket; systemctl start docker")
        wait_until(lambda: self.host.exec("docker", "version", check=False).returncode == 0, 60)

    def workers(self) -> list[str]:
        """Processes of the worker on the host."""
        return self.host.exec("pgrep", "-f", f"{self.state}/workers/", check=False).stdout.split()

    def local_processes(self) -> list[str]:
        """Processes on the controller that belong to this run (ssh's shared connections end by themselves)."""
        local = subprocess.run(
            ["pgrep", "-fa", str(self.folder)], capture_output=True, text=True, check=False
        )
        return [line for line in local.stdout.splitlines() if " ssh: " not in line and "pytest" not in line]

    def state_of(self, job: str) -> str | None:
        """The state of a job as the host has it; None when the host does not know it."""
        text = self.host.exec("cat", f"{self.jobs_dir}/{job}/status.json", check=False).stdout
        return str(json.loads(text)["state"]) if text else None

    def submitted(self, job: str) -> bool:
        """Whether the job was started on the host."""
        return self.state_of(job) not in (None, "prepared", "pushed")

    def assert_nothing_left(self) -> None:
        host = self.host
        wait_until(lambda: not host.containers(), 60)
        assert host.shell("find /var/lib/train-classifier/queue -name '*.json'") == ""
        find = f"test -d {self.jobs_dir} || exit 0; cd {self.jobs_dir}; find . -mindepth 2 -maxdepth 2 '(' -name workspace -o -name run -o -name '*.tmp*' -o -name '.*' ')'"
        # The worker reports `finished` before it removes the rest.
        wait_until(lambda: host.shell(find) == "", 30)
        assert (
            host.shell(
                f"test ! -d {self.state}/environments/build || find {self.state}/environments/build -maxdepth 1 -name '.*.tmp*'"
            )
            == ""
        )

        wait_until(lambda: not self.workers(), 30)
        assert [path.name for path in self.work.iterdir() if path.name.startswith(".")] == []
        # A killed controller cannot remove its private folder in TMPDIR, which holds no secret.
        if self.case.victim != "controller":
            assert list(self.temp.iterdir()) == []


@pytest.fixture
def scene(request: pytest.FixtureRequest, case: Case, tmp_path: Path) -> Scene:
    name = (
        "gpu_host"
        if case.phase in GPU_PHASES
        else {"systemd": "systemd_host", "none": "plain_host"}[case.init]
    )
    return Scene(request.getfixturevalue(name), case, tmp_path)


@pytest.mark.parametrize("case", cases())
def test_job_survives_kill_in_each_phase(scene: Scene, case: Case) -> None:
    host = scene.host
    holder = None
    if case.phase == "queue":
        # A job that holds both GPUs while the one under test waits.
        scene.model("holder", "import time\nprint('holding')\ntime.sleep(300)\n")
        started = scene.run(*scene.train("holder", "--gpus", "2", "--detach"))
        assert started.returncode == 0, started.stderr
        holder = started.stdout.decode().strip()
        wait_until(lambda: b"holding" in scene.run("logs", holder).stdout, 60)
    scene.remove_caches()
    before = scene.jobs()
    host.write("/root/killer.py", KILLER.read_text())
    killer = subprocess.Popen(
        ["docker", "exec", host.container, "python3", "/root/killer.py", scene.jobs_dir, case.phase, case.victim],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert killer.stdout and killer.stdout.readline() == "watching\n"
    errors = scene.folder / "errors"
    train = scene.start_training(errors)
    pids = killer.stdout.readline().strip()
    killer.wait()
    if case.victim == "controller":
        os.kill(train.pid, signal.SIGKILL)
    if case.victim == "engine":
        scene.start_engine()
    if holder:
        # The engine answers: the holder ends, so that the next job gets its GPUs.
        time.sleep(0.3)
        assert scene.run("cancel", holder).returncode in (0, 6)
    out, _ = train.communicate(timeout=240)
    code = train.returncode
    if case.phase in UNPROMISED and code != 0:
        # The worker may still run what the controller started.
        wait_until(lambda: not scene.workers() or any(map(scene.submitted, scene.jobs() - before)), 60)
    (job,) = scene.jobs() - before or {""}
    messages = errors.read_text(errors="replace")[-3000:]
    assert pids.replace(",", "").isdigit(), f"{pids}; {messages}"
    assert "Traceback" not in messages, messages

    elsewhere = scene.folder / "elsewhere"
    elsewhere.mkdir()
    archive = elsewhere / "artefacts.tar.gz"
    if case.victim == "controller":
        assert code == -9
        wait_until(lambda: not scene.local_processes(), 60)
        if case.phase != "fetch":
            assert not (scene.work / "artefacts.tar.gz").exists()
    if case.phase in UNPROMISED and code != 0 and not scene.submitted(job):
        # Nothing was promised before the start; `clean` removes a push that nobody touched for 15 minutes.
        assert code in ((-9,) if case.victim == "controller" else (3,)), messages
        if job:
            host.exec("python3", "-c", AGE, f"{scene.jobs_dir}/{job}")
        assert scene.run("clean").returncode == 0
        assert scene.jobs() == before
    elif case.victim == "controller":
        attached = scene.run("attach", job, cwd=elsewhere)
        assert attached.returncode == 0, attached.stderr.decode()[-2000:]
        assert attached.stdout == EXPECTED
        assert archived(archive, "job/log.txt") == EXPECTED
    elif case.victim == "worker" and case.phase not in (*UNPROMISED, "fetch"):
        assert code == 10, messages
        assert scene.run("status", job, "--json").returncode == 0
        logs = scene.run("logs", job)
        assert EXPECTED.startswith(logs.stdout)
        if case.phase in ("training", "artefacts"):
            # What never came to training has nothing to pack.
            assert scene.run("fetch", job, "-o", archive, cwd=elsewhere).returncode == 0
            assert archived(archive, "job/log.txt") == logs.stdout
        if case.phase == "artefacts":
            assert logs.stdout == EXPECTED
    elif code == 0:
        assert out == EXPECTED
        assert archived(scene.work / "artefacts.tar.gz", "job/log.txt") == EXPECTED
    else:
        # A killed engine ends a build that it runs; one without live-restore (the host
        # without systemd has a bare engine) ends the container, too. A job that just starts finds no engine.
        built = ("image", "packages", "environment")
        allowed = {**dict.fromkeys(built, (3, 9)), "start": (3,), "gpu-check": (3, 8)}
        allowed["training"] = (10,) if case.init == "none" else ()
        assert case.victim == "engine" and code in allowed.get(case.phase, ()), f"exit {code}: {messages}"
    assert scene.state_of(job) in ("finished", None)
    scene.assert_nothing_left()
