"""Kill -9 at random moments: log and archive are whole, or the job is lost with the exact beginning of its log.

The seed of each kill is printed; TRAIN_CLASSIFIER_TEST_SEED repeats it. CI kills eight times, every kind of
victim at least once; `--full` fifty times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.machine import ca_bundle
from loopback.world import World, make_world, tail, wait_until

pytestmark = pytest.mark.engine

VICTIMS = ("controller", "worker", "build", "container", "packing")
KILLS = 50
KILLS_IN_CI = 8
#: Seconds after its moment has come within which a victim is killed: about as long as that part of a job takes.
SPAN_S = {"controller": 8.0, "worker": 6.0, "build": 1.5, "container": 3.0, "packing": 0.6}
LINES = 150
EXPECTED = b"".join(b"line %d\n" % number for number in range(LINES))
MEGABYTES = 24
MODEL = f"""
import random, time
random.seed(1)
with open("artefacts/weights.bin", "wb") as file:
    for number in range({LINES}):
        print("line", number)
        if number < {MEGABYTES}:
            file.write(random.randbytes(1 << 20))
        time.sleep(0.01)
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "local"
version = "{version}"
"""
#: A build back end that needs no package index and takes a moment, so that a build can be killed.
BACKEND = """
import time, zipfile
def build_wheel(folder, settings=None, metadata=None):
    time.sleep(1)
    name = "local-{version}-py3-none-any.whl"
    info = "local-{version}.dist-info/"
    files = {{
        "local.py": "",
        info + "METADATA": "Metadata-Version: 2.1\\nName: local\\nVersion: {version}\\n",
        info + "WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }}
    record = info + "RECORD"
    files[record] = "".join(f"{{file}},,\\n" for file in [*files, record])
    with zipfile.ZipFile(f"{{folder}}/{{name}}", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return name
"""


@pytest.fixture
def world(base_image: str) -> Iterator[World]:
    for world in make_world(base_image):
        world.provide_uv()
        # An image without distutils gets setuptools, which comes from the package index.
        bundle = ca_bundle()
        if bundle is not None:
            settings = json.loads(world.host_json.read_text())
            world.host_json.write_text(json.dumps({**settings, "ca_bundle": str(bundle)}))
        yield world


def weights() -> str:
    """SHA-256 of what the model writes."""
    source = random.Random(1)
    digest = hashlib.sha256()
    for _ in range(MEGABYTES):
        digest.update(source.randbytes(1 << 20))
    return digest.hexdigest()


def container(world: World, kind: str) -> int | None:
    """Process id on this machine of the first process of the job's running container of a kind."""
    phase = {"job": "training", "build": "environment"}[kind]
    # Asking the engine costs more than reading files.
    for status in (status for status in world.statuses() if status.get("phase") == phase):
        labels = [f"label=train-classifier.{key}" for key in (f"job={status['id']}", f"kind={kind}")]
        filters = [word for label in labels for word in ("--filter", label)]
        listed = subprocess.run(["docker", "ps", "-q", *filters], capture_output=True, text=True, check=True)
        for name in listed.stdout.split():
            command = ["docker", "inspect", "-f", "{{.State.Pid}}", name]
            inspected = subprocess.run(command, capture_output=True, text=True, check=False)
            if inspected.returncode == 0 and int(inspected.stdout) > 0:
                return int(inspected.stdout)
    return None


def worker(world: World) -> int | None:
    """Process id of the worker of a running job."""
    return next((s["pid"] for s in world.statuses() if s.get("pid") and s["state"] == "running"), None)


def packer(world: World) -> int | None:
    """Process id of what packs: a child of the worker where the job has an account of its own, else the worker."""
    if not any(status.get("phase") == "artefacts" for status in world.statuses()):
        return None
    for pid, command in world.processes():
        if " part pack " in command:
            return pid
    return worker(world)


def wait_for_victim(world: World, victim: str, train: subprocess.Popen[bytes]) -> int | None:
    """Wait until a victim is there and return its process id; None when the run ends without one."""
    find = {
        "controller": lambda: train.pid,
        "worker": lambda: worker(world),
        "build": lambda: container(world, "build"),
        "container": lambda: container(world, "job"),
        "packing": lambda: packer(world),
    }[victim]
    end = time.monotonic() + 240
    while train.poll() is None:
        assert time.monotonic() < end, f"there is no {victim} to kill"
        pid = find()
        if pid is not None:
            return pid
        time.sleep(0.01)
    return None


def read_archive(path: Path) -> tuple[bytes, str | None]:
    """The log in an archive, and the SHA-256 of the weights in it."""
    inspected: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                inspected[member.name] = file.read()
    data = inspected.get("artefacts/weights.bin")
    return inspected["job/log.txt"], None if data is None else hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=() if n < KILLS_IN_CI else (pytest.mark.full,)) for n in range(KILLS)],
)
def test_kill_at_random_moment(world: World, number: int) -> None:
    victim = VICTIMS[number % len(VICTIMS)]
    seed = int(os.environ.get("TRAIN_CLASSIFIER_TEST_SEED") or random.randrange(10**6))
    print(f"{victim} killed with TRAIN_CLASSIFIER_TEST_SEED={seed}")
    delay = random.Random(seed).uniform(0, SPAN_S[victim])
    model = world.model(MODEL, "probe")
    package = world.repo / "local"
    package.mkdir()
    # A version of its own: no environment of another test fits.
    version = f"1.{number}.{seed}"
    (package / "pyproject.toml").write_text(PROJECT.format(version=version))
    (package / "backend.py").write_text(BACKEND.format(version=version))
    (world.repo / model / "requirements.txt").write_text("./local\n")
    train = world.start(*world.train(model))
    pid = wait_for_victim(world, victim, train)
    # The moment is random, so that nothing is waited for here.
    time.sleep(delay)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    out, err = train.communicate(timeout=300)
    messages = err.decode(errors="replace")
    assert b"Traceback" not in err, messages
    if victim == "controller":
        # A killed process cannot remove its private folder.
        for entry in world.temp.iterdir():
            shutil.rmtree(entry)

    jobs = world.statuses()
    if not jobs:
        assert victim == "controller", messages
        return
    (job,) = jobs
    name = job["id"]
    if job["state"] in ("prepared", "pushed"):
        # Nothing was promised: `clean` removes it once it is old.
        assert victim == "controller", messages
        world.assert_clean()
        return
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    archive = elsewhere / "artefacts.tar.gz"
    attached = world.run("attach", name, "--inventory", world.local, "-o", archive)
    assert b"Traceback" not in attached.stderr, tail(attached.stderr)
    result = world.result(name)
    outcome, reason = result["outcome"], result["reason"] or ""
    log = world.log(name) if (world.state / "jobs" / name / "log.txt").exists() else b""
    assert log == attached.stdout
    assert "out of memory" not in reason, reason
    if outcome == "trained":
        assert log == EXPECTED, f"{len(log)} bytes"
        assert read_archive(archive) == (EXPECTED, weights())
        if victim != "controller":
            assert train.returncode == 0, messages
            assert out == EXPECTED
            assert read_archive(world.work / "artefacts.tar.gz") == (EXPECTED, weights())
    else:
        expected = {
            "controller": (),
            "worker": ("lost",),
            "build": ("no-environment",),
            "container": ("failed", "lost"),
            "packing": ("lost", "nothing-delivered"),
        }[victim]
        assert outcome in expected, f"{outcome}: {reason}; {messages}"
        assert EXPECTED.startswith(log), log[-200:]
        if log:
            # What came to training has an archive, and that has the same log.
            assert read_archive(archive)[0] == log
    crash = world.state / "jobs" / name / "crash.txt"
    assert not crash.exists(), crash.read_text()
    assert train.returncode != 1, messages
    wait_until(lambda: not (world.state / "jobs" / name / "run").exists(), 60)
    world.assert_clean()
