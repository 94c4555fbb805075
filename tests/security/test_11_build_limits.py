"""Row 11: builds and checks have limits, name the one that they reach, and end when their job is cancelled."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.types import Mount
from index_server import BACKEND, PYPROJECT
from worker_site import CA, Site, site, tmp_path, uv
from worker_support import Machine, machine, write_model

from train_classifier.core.errors import ExitCode, NoEnvironment
from train_classifier.worker.environments.environment import Environment
from train_classifier.worker.gpus import devices, visibility

__all__ = ["site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine

FORKS = "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)\n"
FILLS_MEMORY = "held = []\nwhile True:\n    held.append(bytearray(b'x') * (1 << 24))\n"
RUNS_ON = "import time\nwhile True:\n    time.sleep(1)\n"


def package(folder: Path, backend: str) -> None:
    """Write a local package whose build runs `backend`."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT + '[project]\nname = "evil"\nversion = "1"\n')
    (folder / "backend.py").write_text(backend + BACKEND.format(name="evil", version="1"))


@pytest.mark.parametrize(
    ("backend", "limits", "sentence"),
    [
        (FORKS, {"build_pids": 64}, "started more than 64 processes"),
        (FILLS_MEMORY, {"build_memory_bytes": 256 << 20}, "needs more than 256 MiB of memory"),
        (RUNS_ON, {"build_timeout_s": 4.0}, "not installed within 4 s"),
    ],
    ids=["processes", "memory", "time"],
)
def test_11_build_ends_at_its_limits(site: Site, backend: str, limits: dict[str, Any], sentence: str) -> None:
    site.find()
    package(site.workspace / "lib", backend)
    site.host = dataclasses.replace(site.host, **limits)
    with pytest.raises(NoEnvironment, match=sentence) as raised:
        site.prepare("./lib\nsetuptools ; python_version < '3'")
    assert raised.value.code is ExitCode.NO_ENVIRONMENT
    setting = next(iter(limits))
    assert f"{setting} in host.json" in (raised.value.hint or "")
    assert f"training_host_{setting}" in (raised.value.hint or "")
    assert (site.containers(), site.environments()) == ([], [])


def test_11_layers_and_probes_have_limits(site: Site) -> None:
    unlimited = site.host
    for answer in site.store.images.iterdir():
        answer.unlink()
    site.host = dataclasses.replace(unlimited, build_memory_bytes=7 << 20)
    with pytest.raises(NoEnvironment, match=r"the probe of Python in image .* needs more than 7 MiB"):
        site.find()
    site.host = unlimited
    site.find()
    site.host = dataclasses.replace(unlimited, build_memory_bytes=12 << 20)
    with pytest.raises(NoEnvironment, match=r"Debian packages \(apt-pkgs.txt\) needs more than 12 MiB"):
        site.layer("cowsay")
    assert site.containers() == []


class Inspected(Exception):
    """The container was seen; what it runs need not end."""


def settings_of_container(
    site: Site, engine: docker.DockerClient, run: Callable[[Callable[[], None]], object]
) -> dict[str, Any]:
    """Return the engine's settings of the container that `run` starts; `run` gets a check for cancellation."""
    configs: list[dict[str, Any]] = []

    def inspect() -> None:
        for container in site.containers():
            configs.append(engine.api.inspect_container(container.id)["HostConfig"])
            raise Inspected

    with pytest.raises(Inspected):
        run(inspect)
    assert site.containers() == []
    return configs[0]


def test_11_build_container_has_no_capabilities(site: Site, engine: docker.DockerClient) -> None:
    site.find()
    package(site.workspace / "lib", RUNS_ON)
    config = settings_of_container(site, engine, lambda check: site.prepare("./lib", check=check))
    assert config["PidsLimit"] == 4096 and config["NanoCpus"] > 0
    assert config["Memory"] == config["MemorySwap"] > 0
    assert config["CapDrop"] == ["ALL"] and not config["CapAdd"]
    assert config["SecurityOpt"] == ["no-new-privileges"]


def test_11_gpu_check_has_limits(
    site: Site, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check imports the model's own packages; its container gets no card, since the machine may have none."""
    base = site.find()
    monkeypatch.setattr(devices, "device_options", lambda *_: {})
    packages = site.workspace / "packages"
    packages.mkdir()
    (packages / "torch.py").write_text(RUNS_ON)
    mounts = (Mount("/packages", str(packages), "bind", read_only=True),)
    environment = Environment("", (), mounts, {"PYTHONPATH": "/packages"}, base.python)
    config = settings_of_container(
        site,
        engine,
        lambda check: visibility.prove(site.context(check), base, environment, (), "framework"),
    )
    assert config["PidsLimit"] == 4096 and config["NanoCpus"] > 0
    assert config["Memory"] == config["MemorySwap"] > 0


@pytest.fixture(scope="module")
def host(uv: Path) -> Iterator[Machine]:
    settings: dict[str, Any] = {"uv": str(uv)}
    if CA.exists():
        settings["ca_bundle"] = str(CA)
    with machine(**settings) as new_host:
        yield new_host


@pytest.mark.parametrize("trigger", ["cancel", "signal", "lease"])
def test_11_build_ends_with_its_job(
    host: Machine, engine: docker.DockerClient, tmp_path: Path, trigger: str
) -> None:
    tree = tmp_path / "tree"
    package(tree / "lib", RUNS_ON)
    write_model(tree, requirements="./lib\nsetuptools ; python_version < '3'\n")
    job = host.start_tree(tree, lease_s=5.0 if trigger == "lease" else None)
    build_filter = {"label": [f"train-classifier.job={job}", "train-classifier.kind=build"]}
    end = time.monotonic() + 120
    while trigger != "lease" and not engine.containers.list(filters=build_filter, ignore_removed=True):
        assert time.monotonic() < end, host.status(job)
        time.sleep(0.05)
    if trigger == "cancel":
        host.call("cancel", id=job, by="a test")
    elif trigger == "signal":
        host.kill_worker(job, signal.SIGTERM)
    host.until_finished(job)
    result = host.call("status", id=job)["result"]
    assert (result["outcome"], result["exit_code"]) == ("cancelled", 6), result
    host.assert_clean(job)
    assert list((host.state / "environments" / "build").iterdir()) == []


def test_11_packages_that_create_accounts_install_with_few_rights(site: Site) -> None:
    layer = site.layer("uuid-runtime")
    assert "uuidd" in site.run(layer, None, "cat /etc/passwd", shell=True)
