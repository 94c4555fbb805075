"""What the tests of the worker's environment parts share: a host, its state folder, images with packages."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import Mount
from hosts.fleet import uv_binary
from index_server import Index, serve, wheel
from worker_support import IMAGE, compiled_worker, kill_processes_of, remember_image

from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.containers import helper, image, package_layers
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.engine import labels
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import environment
from train_classifier.worker.environments.stored_environments import Environment
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Host

#: The host's own: the interpreter of the tests may be out of that user's reach.
PYTHON = "/usr/bin/python3"
CA = Path("/etc/ssl/certs/ca-certificates.crt")
#: The Python of the plain image.
PLAIN_VERSION = "3.9"
#: Large parts of an interpreter that nothing here needs.
LEFT_OUT = ("__pycache__", "test", "idlelib", "share", "config-")
JOB = "20260101-000000-0000{:04x}"


def install_program(folder: Path) -> None:
    """Put the worker where the job's user can read it: parts of it run as that user."""
    program.PROGRAM, program.PYTHON = folder / "program", PYTHON
    # A second process of a test finds the program of the first.
    if not program.PROGRAM.exists():
        shutil.copytree(compiled_worker(), program.PROGRAM)
        program.open_to_all()


class Site:
    """One host with its state folder, as one test sees it."""

    def __init__(
        self, client: docker.DockerClient, folder: Path, base: str, uv: Path, **settings: Any
    ) -> None:
        self.client = client
        self.base = base
        values: dict[str, Any] = {"uv": uv, "service_user": "nobody", "root": folder / "root"}
        if CA.exists():
            values["ca_bundle"] = CA
        self.host = Host(**{**values, **settings})
        self.store = Store(folder / "state").make()
        if base == IMAGE:
            remember_image(self.store.root)
        install_program(folder)
        self.job = Job(self.store.jobs / JOB.format(os.getpid() & 0xFFFF))
        self.job.run.mkdir(parents=True, exist_ok=True)
        spec = JobSpec(self.job.id, "m", Repository("r", "0" * 16))
        (self.job.dir / "spec.json").write_text(json.dumps(spec.to_dict()))
        self.workspace = folder / "workspace"
        (self.workspace / "m").mkdir(parents=True, exist_ok=True)
        self.messages: list[str] = []

    def find(self, reference: str | None = None) -> Image:
        spec = JobSpec(self.job.id, "m", Repository("r", "0" * 16), image=reference or self.base)
        return image.resolve(self.context(), spec, False)

    def context(self, check: Callable[[], None] = lambda: None) -> Context:
        return Context(self.client, self.host, self.store, self.job, self.messages.append, check)

    def prepare(
        self,
        content: str | bytes,
        reference: str | None = None,
        check: Callable[[], None] = lambda: None,
        repository: str = "0" * 16,
        kind: str = "auto",
        pinned: str | None = None,
    ) -> Environment:
        # Replaced atomically: two jobs of a test may share the workspace.
        temporary = self.workspace / "m" / f".requirements.{os.getpid()}"
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(self.workspace / "m" / "requirements.txt")
        base = self.find(reference)
        request = environment.EnvironmentRequest("m", repository, kind, pinned=pinned)
        return environment.prepare(self.context(check), base, self.workspace, request)

    def layer(
        self, text: str, reference: str | None = None, check: Callable[[], None] = lambda: None
    ) -> Image:
        (self.workspace / "m" / "apt-pkgs.txt").write_text(text)
        base = self.find(reference)
        return package_layers.layer(self.context(check), base, self.workspace, "m")

    def run(self, base: Image, built: Environment | None, program: str, shell: bool = False) -> str:
        """Run a program as a job would: the environment's Python and mounts, the job's user."""
        python = built.python if built else base.python
        running = helper.Helper(
            base.id,
            ["/bin/sh", "-c", program] if shell else [python, "-W", "ignore", "-c", program],
            user=self.host.job_user(), network=False,
            mounts=built.mounts if built else (), environment={**built.defaults, **built.variables} if built else {},
            labels=labels("probe", job=self.job.id), limits=self.host.limits("a test"),
        )  # fmt: skip
        status, output = helper.run_helper(self.context(), running)
        assert status == 0, output.decode()
        return output.decode()

    def containers(self) -> list[Any]:
        label = f"train-classifier.job={self.job.id}"
        running: list[Any] = self.client.containers.list(all=True, filters={"label": label})
        return running

    def environments(self) -> list[str]:
        """What is built, or half built."""
        return sorted(
            path.name for folder in (self.store.envs, self.store.builds) for path in folder.glob("*")
        )


def layers(engine: docker.DockerClient, base: str) -> list[docker.models.images.Image]:
    """The layers over a base; other tests may make layers at the same time."""
    names = ["train-classifier.kind=image", f"train-classifier.base={base}"]
    images: list[docker.models.images.Image] = engine.images.list(filters={"label": names})
    return images


def build_in_two_processes(site: Site, folder: Path, build: Callable[[Site], str]) -> None:
    """Build in two processes at the same time: both return the same identity, and one of them installs."""

    def run(number: int) -> None:
        other = Site(docker.from_env(), folder, site.base, site.host.uv)
        (folder / f"out-{number}").write_text("\n".join([build(other), *other.messages]))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(500)
        assert process.exitcode == 0
    outputs = [(folder / f"out-{number}").read_text() for number in range(2)]
    assert len({output.splitlines()[0] for output in outputs}) == 1
    assert sum("installing" in output for output in outputs) == 1


@pytest.fixture(scope="session")
def uv() -> Path:
    return Path(uv_binary())


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that the job's user may enter; pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="train-classifier-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    kill_processes_of(folder)
    shutil.rmtree(folder)


@pytest.fixture
def site(engine: docker.DockerClient, base_image: str, tmp_path: Path, uv: Path) -> Iterator[Site]:
    new_site = Site(engine, tmp_path, base_image, uv)
    yield new_site
    for container in new_site.containers():
        container.remove(force=True)


@contextlib.contextmanager
def image_after(
    engine: docker.DockerClient, base: str, name: str, command: Sequence[str], *,
    content: bytes = b"", configuration: dict[str, Any] | None = None, **options: Any,
) -> Iterator[str]:  # fmt: skip
    """Yield the name of the image `tc-env-NAME` that a command makes of another one; remove it at the end.

    `content` is an archive that is unpacked before. Mounts are no part of the image, as volumes would be.
    """
    container = engine.containers.create(base, command, **options)
    try:
        if content:
            container.put_archive("/", content)
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs().decode()
        configuration = {"Cmd": [], "Entrypoint": []} if configuration is None else configuration
        image_of_test = container.commit(f"tc-env-{name}", f"test-{os.getpid()}", conf=configuration)
    finally:
        container.remove(force=True)
    try:
        yield f"tc-env-{name}:test-{os.getpid()}"
    finally:
        engine.images.remove(image_of_test.id, force=True)


@pytest.fixture
def index(site: Site, engine: docker.DockerClient) -> Iterator[Index]:
    """The index of the host; the image lacks distutils, so it has setuptools too."""
    with serve(engine) as new_index:
        new_index.add(wheel("setuptools", "80.0"))
        settings = {"UV_DEFAULT_INDEX": new_index.url, "no_proxy": new_index.host}
        site.host = dataclasses.replace(site.host, environment=settings)
        yield new_index


@pytest.fixture
def own_base(engine: docker.DockerClient, base_image: str, site: Site) -> Iterator[str]:
    """A base image of this test alone, so that there is no layer over it yet."""
    configuration = {
        "Cmd": ["sleep", "1"], "Entrypoint": ["/bin/echo", "hello"], "User": "daemon", "WorkingDir": "/srv",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "BASE=kept"],
    }  # fmt: skip
    with image_after(engine, base_image, "base", ["true"], configuration=configuration) as base:
        yield base
        for layer in layers(engine, engine.images.get(base).id):
            engine.images.remove(layer.id, force=True)


@pytest.fixture(scope="session")
def numpy_image(engine: docker.DockerClient, base_image: str, uv: Path) -> Iterator[str]:
    """An image whose own packages are an older NumPy, its framework, and an older six."""
    script = (
        "/uv pip install --system --break-system-packages --python /usr/bin/python3 numpy==1.26.4 six==1.15.0 && "
        "cp -r /usr/local/lib/python3.11/dist-packages/six-1.15.0.dist-info /tmp/x && "
        "rm -r /usr/local/lib/python3.11/dist-packages/six-1.15.0.dist-info && "
        "cp /tmp/x/METADATA /usr/local/lib/python3.11/dist-packages/six-1.15.0.egg-info"
    )
    with image_after(
        engine, base_image, "numpy", ["sh", "-c", script],
        mounts=[Mount("/uv", str(uv), "bind", read_only=True), Mount("/ca.pem", str(CA), "bind", read_only=True)],
        environment={"SSL_CERT_FILE": "/ca.pem"},
    ) as image_of_test:  # fmt: skip
        yield image_of_test


@contextlib.contextmanager
def plain_image(engine: docker.DockerClient, base: str, version: str) -> Iterator[str]:
    """Yield a plain image of a version of Python, made of an interpreter of this machine."""
    folders = sorted(Path.home().glob(f".pyenv/versions/{version}.*"))
    if not folders:
        pytest.skip(f"no Python {version} on this machine")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(
            folders[0], "usr/local",
            filter=lambda entry: None if Path(entry.name).name.startswith(LEFT_OUT) else entry,
        )  # fmt: skip
    with image_after(
        engine, base, f"python{version}", ["/sbin/ldconfig"], content=content.getvalue()
    ) as image_of_test:
        yield image_of_test


@pytest.fixture(scope="session")
def plain_reference(engine: docker.DockerClient, base_image: str) -> Iterator[str]:
    """A plain image of Python 3.9."""
    with plain_image(engine, base_image, PLAIN_VERSION) as reference:
        yield reference
