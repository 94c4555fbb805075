"""A host for tests in a temporary folder, and the worker as a controller calls it."""

import atexit
import base64
import contextlib
import dataclasses
import fcntl
import functools
import grp
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train_classifier.controller.worker_bundle import bundle
from train_classifier.core.job import SCHEMA, new_job_id
from train_classifier.worker.containers import image
from train_classifier.worker.state import files
from train_classifier.worker.state.store import Store

IMAGE = os.environ.get("TRAIN_CLASSIFIER_TEST_IMAGE", "tc-slim:bookworm")
#: The host's own Python, with the distribution's Docker SDK.
PYTHON = os.environ.get("TRAIN_CLASSIFIER_TEST_PYTHON", "/usr/bin/python3")
#: Python that waits until the test says so (Machine.go).
HOLD = """
import os, time
while not os.path.exists(os.environ["TRAIN_CHECKPOINT_DIR"] + "/go"):
    time.sleep(0.05)
"""
#: Accounts that every Debian has: root's jobs run as the first, the second is a person without rights.
SERVICE_USER = "nobody"
PERSON = "daemon"


def docker(*arguments: str) -> str:
    """Run the docker command and return its output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@functools.cache
def compiled_worker() -> Path:
    """Return a folder with the worker and its bytecode: each of some hundred hosts would compile it anew."""
    folder = Path(tempfile.mkdtemp(prefix="train-classifier-worker-"))
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o755)
    for name, content in bundle()[1].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    subprocess.run([PYTHON, "-I", "-m", "compileall", "-q", folder], check=True)
    return folder


@functools.cache
def image_answer(reference: str) -> tuple[str, str]:
    """Return the id of an image, and what its Python answers to the probe of a job."""
    output = docker("run", "--rm", "--network=none", reference, "python3", "-c", image.probe_program())
    identity = docker("image", "inspect", "-f", "{{.Id}}", reference)
    return identity, output.splitlines()[-1].removeprefix("train-classifier:")


def remember_image(state: Path, reference: str = IMAGE) -> None:
    """Store the answer of an image as an earlier job does: each of some hundred hosts would ask it anew."""
    identity, answer = image_answer(reference)
    path = image.answer_path(Store(state), identity)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    # Whole at once: two processes of a test may share the state folder.
    files.write_bytes(path, answer.encode(), 0o644)


def accounts() -> list[str]:
    """Return the accounts that tests can run as: root and a person, or whoever runs them."""
    return ["root", PERSON] if os.geteuid() == 0 else [pwd.getpwuid(os.geteuid()).pw_name]


def write_model(tree: Path, program: str = "", requirements: str = "", packages: str = "") -> Path:
    """Write the model `model` with its lists of Python and Debian packages into a tree; returns the tree."""
    (tree / "model").mkdir(parents=True)
    (tree / "model" / "__main__.py").write_text(program)
    for name, text in (("requirements.txt", requirements), ("apt-pkgs.txt", packages)):
        if text:
            (tree / "model" / name).write_text(text)
    return tree


def packed(names: list[bytes]) -> str:
    """Return a list of files as `prepare` takes it."""
    return base64.b64encode(zlib.compress(b"".join(name + b"\0" for name in names))).decode()


def until_building(job: str) -> None:
    """Wait for the container of a job's build."""
    end = time.monotonic() + 240
    while not docker("ps", "-q", "--filter", f"label=train-classifier.job={job}"):
        assert time.monotonic() < end
        time.sleep(0.2)


class Refused(Exception):
    """The worker answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["reason"])
        self.error = error
        self.code = error["code"]


@dataclasses.dataclass
class Machine:
    """The host as one account sees it."""

    root: Path
    user: str
    settings: dict[str, Any]
    #: Another address of the engine than its own.
    docker_host: str | None = None
    #: The interpreter that runs the worker.
    python: str = PYTHON

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def program(self) -> Path:
        return self.state / "workers" / bundle()[0]

    def job_dir(self, job: str) -> Path:
        return self.state / "jobs" / job

    def prefix(self) -> list[str]:
        """Return what a command line begins with to run as the account."""
        entry = pwd.getpwnam(self.user)
        if entry.pw_uid == os.geteuid():
            return []
        docker_group = grp.getgrnam("docker").gr_gid
        return [
            "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", f"--groups={docker_group}",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.root),
            "TRAIN_CLASSIFIER_HOST_JSON": str(self.root / "host.json"),
            **({"DOCKER_HOST": self.docker_host} if self.docker_host else {}),
        }

    def install(self) -> None:
        """Put the worker there, as the transport does."""
        owner = pwd.getpwnam(self.user)
        self.state.mkdir(mode=0o711 if self.user == "root" else 0o700)
        shutil.copytree(compiled_worker(), self.program)
        remember_image(self.state)
        for folder, _, names in os.walk(self.state):
            for path in [folder, *(os.path.join(folder, name) for name in names)]:
                if os.geteuid() == 0:
                    os.chown(path, owner.pw_uid, owner.pw_gid)

    def forget_images(self) -> None:
        """Let the next job ask its image, as the first job of a host does."""
        shutil.rmtree(self.state / "images")

    def write_settings(self, **changes: Any) -> None:
        self.settings.update(changes)
        path = self.root / "host.json"
        path.write_text(json.dumps(self.settings))
        path.chmod(0o644)

    @contextlib.contextmanager
    def changed_settings(self, **changes: Any) -> Iterator[None]:
        """Change settings until the end of the block."""
        before = dict(self.settings)
        self.write_settings(**changes)
        try:
            yield
        finally:
            self.settings = before
            self.write_settings()

    def unreachable_archive(self) -> "contextlib.AbstractContextManager[None]":
        """Take Debian packages from an address that swallows every packet (RFC 5737), until the end of the block."""
        sources = self.root / "sources.list"
        sources.write_text("deb [trusted=yes] http://192.0.2.1/debian bookworm main\n")
        return self.changed_settings(apt_sources=str(sources))

    @contextlib.contextmanager
    def patched(self, module: str, text: str) -> Iterator[None]:
        """Append `text` to a module of the installed worker, for faults that cannot be timed from outside."""
        path = self.program / "train_classifier" / "worker" / f"{module}.py"
        original = path.read_bytes()
        path.write_bytes(original + b"\n\n" + text.encode())
        try:
            yield
        finally:
            path.write_bytes(original)

    @contextlib.contextmanager
    def on_small_disk(self, size: str) -> Iterator["Machine"]:
        """The same host with its state folder on a disk of its own, which can be filled for real."""
        if os.geteuid() != 0:
            pytest.skip("mounting wants root")
        disk = Path(tempfile.mkdtemp(dir=self.root))
        options = f"size={size},mode=0755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
        try:
            shutil.copytree(self.program, disk / "state" / "workers" / self.program.name)
            subprocess.run(["chown", "-R", "--reference", str(self.state), str(disk)], check=True)
            subprocess.run(["chmod", "--reference", str(self.state), str(disk / "state")], check=True)
            small = Machine(disk, self.user, {**self.settings})
            small.write_settings(disk_floor_bytes=0)
            yield small
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def stored_status(self, job: str) -> dict[str, Any]:
        """Return a job's status from its file: no verb of the worker looks at the job."""
        status: dict[str, Any] = json.loads((self.job_dir(job) / "status.json").read_text())
        return status

    def stored_result(self, job: str) -> dict[str, Any]:
        """Return a job's result from its file, once it is there: no verb of the worker looks at the job."""
        path = self.job_dir(job) / "result.json"
        end = time.monotonic() + 240
        while not path.exists():
            assert time.monotonic() < end, self.stored_status(job)
            time.sleep(0.1)
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def until_finished(self, job: str, timeout: float = 240) -> None:
        """Wait for the end of a job by its files alone."""
        end = time.monotonic() + timeout
        while self.stored_status(job)["state"] != "finished":
            assert time.monotonic() < end, self.stored_status(job)
            time.sleep(0.1)

    def until_worker_is_gone(self, job: str, timeout: float = 240) -> None:
        """Wait for the death of a job's worker, by its files: the worker would finish the job."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pid = self.stored_status(job)["pid"]
            if pid is not None:
                try:
                    if b") Z " in Path(f"/proc/{pid}/stat").read_bytes():
                        return
                except (FileNotFoundError, ProcessLookupError):
                    return
            time.sleep(0.05)
        raise AssertionError(f"the worker lives: {self.status(job)}")

    def call(self, verb: str, timeout: float = 240, **request: Any) -> dict[str, Any]:
        """Ask the worker; raises Refused with its error."""
        done = subprocess.run(
            [*self.prefix(), self.python, "-I", str(self.program)],
            input=json.dumps({"verb": verb, "state_dir": str(self.state), **request}).encode(),
            capture_output=True, env=self.environment(), cwd="/", timeout=timeout, check=True,
        )  # fmt: skip
        assert b"Traceback" not in done.stdout + done.stderr
        # The last of several answers.
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def spec(self, **changes: Any) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "id": new_job_id(), "model": "model", "gpus": 0, "image": IMAGE, "grace_s": 2.0,
            "repository": {"name": "repo", "key": "0123456789abcdef", "commit": None, "dirty": None},
            **changes,
        }  # fmt: skip

    def push(self, tree: Path, spec: dict[str, Any], fingerprint: str | None = None) -> bool:
        """Do `prepare` and rsync, as the transport does; returns whether a push was needed."""
        names = [
            os.path.relpath(os.path.join(os.fsencode(folder), name), os.fsencode(tree))
            for folder, folders, files in os.walk(os.fsencode(tree))
            for name in [*files, *(entry for entry in folders if os.path.islink(os.path.join(folder, entry)))]
        ]
        if self.call("prepare", spec=spec, files=packed(names), fingerprint=fingerprint)["pushed"]:
            self.until_copied(spec["id"])
            return False
        done = self.rsync(tree, spec["id"], names)
        if done.returncode:
            line = next((ln for ln in done.stderr.splitlines() if ln.startswith(b'{"error"')), None)
            if line is not None:
                raise Refused(json.loads(line)["error"])
            raise AssertionError(done.stderr.decode(errors="replace"))
        self.until_copied(spec["id"])
        return True

    def until_copied(self, job: str) -> None:
        """Wait for the copy of the mirror, which runs in the background after a push."""
        with (self.job_dir(job) / "copy").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)

    def rsync_command(self, tree: Path, job: str) -> list[str]:
        rsync_path = shlex.join(
            ["env", "-i", *(f"{k}={v}" for k, v in self.environment().items()), *self.prefix(), self.python, "-I",
             str(self.program), "receive", job, "--", "rsync"]
        )  # fmt: skip
        shell = self.root / "rsh"
        if not shell.exists():
            # Written once: another push may be about to read it.
            shell.write_text('shift\nexec sh -c "$*"\n')
        return [
            "rsync", "-lptS", "--chmod=Du+rwx,Fu+rw", "--files-from=-", "--from0", "-e", f"sh {shell}",
            "--rsync-path", rsync_path, f"{tree}/", "host:.",
        ]  # fmt: skip

    def rsync(self, tree: Path, job: str, names: list[bytes]) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            self.rsync_command(tree, job), input=b"".join(name + b"\0" for name in names),
            capture_output=True, timeout=240, check=False,
        )  # fmt: skip

    def start(self, program: str, secrets: dict[str, str] | None = None, **changes: Any) -> str:
        """Submit a model whose __main__.py is `program`; returns the job's id."""
        with tempfile.TemporaryDirectory() as folder:
            tree = write_model(Path(folder), program)
            (tree / "model" / "__init__.py").touch()
            return self.start_tree(tree, secrets, **changes)

    def start_tree(self, tree: Path, secrets: dict[str, str] | None = None, **changes: Any) -> str:
        spec = self.spec(secrets=sorted(secrets or {}), **changes)
        self.push(tree, spec)
        self.call("submit", id=spec["id"], secrets=secrets or {})
        return str(spec["id"])

    def wait(self, job: str, timeout: float = 240) -> dict[str, Any]:
        """Follow a job to its end; returns its result."""
        until = time.monotonic() + timeout
        offset, version = 0, None
        while time.monotonic() < until:
            answer = self.call("read", id=job, offset=offset, seen=version, wait=5, renew=True)
            offset, version = answer["log_size"], answer["status"]["version"]
            if answer["status"]["state"] == "finished":
                result: dict[str, Any] = answer["result"]
                return result
        raise AssertionError(f"no end: {self.status(job)}")

    def train(
        self, program: str, secrets: dict[str, str] | None = None, **changes: Any
    ) -> tuple[str, dict[str, Any]]:
        job = self.start(program, secrets, **changes)
        return job, self.wait(job)

    def status(self, job: str) -> dict[str, Any]:
        status: dict[str, Any] = self.call("status", id=job)["status"]
        return status

    def until(self, job: str, *phases: str, text: bytes = b"", timeout: float = 240) -> dict[str, Any]:
        """Wait until a job is in one of the phases, and its log holds `text`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = self.stored_status(job)
            if (not phases or status["phase"] in phases) and text in self.log(job):
                return status
            time.sleep(0.02)
        raise AssertionError(f"never in {phases}: {self.status(job)}, log {self.log(job)[-500:]!r}")

    def go(self, job: str) -> None:
        """Let a job go on from HOLD."""
        (next(self.job_dir(job).rglob("checkpoints")) / "go").touch()

    def log(self, job: str) -> bytes:
        path = self.job_dir(job) / "log.txt"
        return path.read_bytes() if path.exists() else b""

    def archive(self, job: str) -> tarfile.TarFile:
        return tarfile.open(self.job_dir(job) / "artefacts.tar.gz")

    def names(self, job: str) -> list[str]:
        with self.archive(job) as archive:
            return [name for name in archive.getnames() if name.startswith("artefacts")]

    def manifest(self, job: str) -> dict[str, Any]:
        with self.archive(job) as archive:
            file = archive.extractfile("job/manifest.json")
            assert file is not None
            content: dict[str, Any] = json.load(file)
            return content

    def pack(self, job: str, max_bytes: int | None = None) -> dict[str, Any]:
        """Pack the artefacts that stayed on the host, as `fetch` does; returns the job's result."""
        result: dict[str, Any] = self.call("pack", id=job, most=max_bytes)["result"]
        return result

    def kill_worker(self, job: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.stored_status(job)["pid"], number)

    def assert_clean(self, job: str) -> None:
        """Nothing of a job is left but its files."""
        end = time.monotonic() + 240
        label = f"label=train-classifier.job={job}"
        while docker("ps", "-aq", "--filter", label) and time.monotonic() < end:
            time.sleep(0.1)
        assert docker("ps", "-aq", "--filter", label) == ""
        # The worker reports `finished` before it removes the rest.
        while (self.job_dir(job) / "run").exists() and time.monotonic() < end:
            time.sleep(0.05)
        # The worker holds the job's lock until it ends.
        with (self.job_dir(job) / "lock").open("rb") as lock:
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.05)
        entries = {entry.name for entry in self.job_dir(job).iterdir()}
        allowed = {
            "spec.json", "status.json", "result.json", "log.txt", "usage.csv", "manifest.json", "report.html", "artefacts.tar.gz",
            "lock", "lease", "checkpoints", "resumed", "files", "stock.json", "facts.json", "cancel", "fingerprint",
        }  # fmt: skip
        assert entries <= allowed, entries - allowed
        assert not [name for name in os.listdir(self.settings["queue_dir"]) if job in name]
        for folder in ("/dev/shm", "/run"):
            assert not [name for name in os.listdir(folder) if job in name]


def kill_processes_of(root: Path) -> None:
    """Kill what is still at work in a test's folder: workers, and the rm or cp that outlives a worker."""
    for _ in range(600):
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                own = os.geteuid() in (0, folder.stat().st_uid) and int(folder.name) != os.getpid()
                if own and os.fsencode(root) in (folder / "cmdline").read_bytes():
                    pids.append(int(folder.name))
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    raise AssertionError(f"these do not end: {pids}")


def host_fixture(users: list[str], scope: Any = "module") -> Any:
    """Return a fixture that runs the tests of a module on a host of each of these accounts."""

    @pytest.fixture(scope=scope, params=users)
    def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
        with machine(request.param) as new_host:
            yield new_host

    return host


@contextlib.contextmanager
def machine(user: str = "root", **settings: Any) -> Iterator[Machine]:
    """Make a host for one account, and remove it with all its containers."""
    root = Path(tempfile.mkdtemp(prefix="train-classifier-test-", dir="/var/tmp"))
    root.chmod(0o711)
    try:
        owner = pwd.getpwnam(user)
        queue = root / "queue"
        queue.mkdir()
        if os.geteuid() == 0:
            os.chown(root, owner.pw_uid, owner.pw_gid)
            os.chown(queue, 0, grp.getgrnam("docker").gr_gid)
        queue.chmod(0o2770)
        host = Machine(root, user, {})
        host.write_settings(
            schema=1, images={"cpu": IMAGE, "gpu": IMAGE}, queue_dir=str(queue), service_user=SERVICE_USER,
            disk_floor_bytes=1 << 20,
            # Not that of a machine that role training_host prepared: a job without requirements would try setuptools.
            **{"uv": str(root / "uv"), **settings},
        )  # fmt: skip
        host.install()
        yield host
    finally:
        kill_processes_of(root)
        jobs = root / "state" / "jobs"
        for job in jobs.iterdir() if jobs.exists() else ():
            containers = docker("ps", "-aq", "--filter", f"label=train-classifier.job={job.name}").split()
            if containers:
                docker("rm", "-fv", *containers)
        subprocess.run(["chmod", "-R", "u+rwX", "--", str(root)], check=False)
        shutil.rmtree(root)
