"""A repository that runs with another Python than the image's: a plain image, made of an interpreter of this machine."""

from __future__ import annotations

import dataclasses

import docker
import pytest
from index_server import serve, wheel
from worker_site import PLAIN_VERSION as VERSION
from worker_site import Site, plain_reference, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.containers import plain_image
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments import environment
from train_classifier.worker.environments.environment_build import MOUNTED
from train_classifier.worker.environments.stored_environments import ISOLATED
from train_classifier.worker.gpus import devices
from train_classifier.worker.jobs.run import JobRun, add_packages, build_environment, find_image
from train_classifier.worker.system.host import Host
from train_classifier.worker.transfer import workspace_copy

__all__ = ["plain_reference", "site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine


def resolve(site: Site, **settings: object) -> Image:
    spec = JobSpec(site.job.id, "m", Repository("r", "0" * 16), **settings)
    return plain_image.resolve(site.context(), spec, False)


def start_job(site: Site, requirements: str) -> None:
    """Make the job one whose sources were copied and whose worker runs."""
    site.job.workspace.symlink_to(site.workspace)
    site.job.copy.write_bytes(workspace_copy.COPIED)
    site.job.write_status(state="running")
    (site.workspace / "m" / "requirements.txt").write_text(requirements)


def test_job_gets_a_plain_image_of_the_python_it_runs_with(
    site: Site, engine: docker.DockerClient, plain_reference: str
) -> None:
    images = {"cpu": site.base, f"python{VERSION}": plain_reference}
    with serve(engine) as index:
        index.add(wheel("tools", "1.0", "import sys; version = sys.version_info[:2]"))
        variables = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
        site.host = dataclasses.replace(site.host, images=images, environment=variables)
        (site.workspace / "m" / "requirements.txt").write_text("tools\n")
        plain = resolve(site, required_pythons=("3.8", VERSION))
        assert (plain.reference, plain.plain, plain.python_version[:3]) == (plain_reference, True, VERSION)
        request = environment.EnvironmentRequest("m", "0" * 16, ISOLATED)
        built = environment.prepare(site.context(), plain, site.workspace, request)
    assert (built.kind, built.reason) == ("isolated", f"Python {plain.python_version} is required")
    program = "import tools; print(tools.version, tools.__file__)"
    assert site.run(plain, built, program).startswith(f"(3, 9) {MOUNTED}/")
    # The image of the host serves where its Python is among those that the repository runs with.
    own = resolve(site, required_pythons=(VERSION, "3.11"))
    assert (own.reference, own.plain) == (site.base, False)
    assert any(f"Python 3.8 or {VERSION} is required" in message for message in site.messages)


def test_requirements_that_the_plain_image_cannot_have(
    site: Site, engine: docker.DockerClient, plain_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {"cpu": site.base, f"python{VERSION}": plain_reference}
    start_job(site, "modern\n")
    with serve(engine) as index:
        index.add(wheel("modern", "1.0", "", tag="cp311-none-any"), wheel("setuptools", "80.0"))
        variables = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
        host = dataclasses.replace(site.host, images=images, environment=variables)
        monkeypatch.setattr(Host, "load", lambda: host)
        run = JobRun(site.job)
        run.engine = engine
        for python in (None, VERSION):
            run.spec = JobSpec(
                site.job.id, "m", Repository("r", "0" * 16), required_pythons=(VERSION,), python=python
            )
            find_image(run)
            add_packages(run)
            assert run.image.plain
            if python is None:
                build_environment(run)
                assert any(note.endswith("the usual image is taken") for note in site.job.status()["notes"])
                assert (run.image.reference, run.environment.kind) == (site.base, "image")
                assert "modern==1.0" in run.environment.packages
            else:
                with pytest.raises(NoEnvironment):
                    build_environment(run)


def test_cuda_of_torch_is_named_on_a_host_without_gpus(
    site: Site, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(engine) as index:
        index.add(wheel("setuptools", "80.0"), wheel("nvidia_blas", "1.0"))
        index.add(
            wheel("torch", "2.0", requires=["nvidia-blas"]), wheel("learning", "1.0", requires=["torch"])
        )
        variables = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
        host = dataclasses.replace(site.host, images={"cpu": site.base}, environment=variables)
        monkeypatch.setattr(Host, "load", lambda: host)
        start_job(site, "learning\n")
        for gpus in ((), (object(),)):
            monkeypatch.setattr(devices, "discover", lambda *_, gpus=gpus, **__: devices.Discovery(gpus))
            site.job.write_status(notes=[])
            run = JobRun(site.job)
            run.engine = engine
            find_image(run)
            build_environment(run)
            noted = [
                note
                for note in site.job.status()["notes"]
                if note.startswith("torch brings its CUDA (1 package")
            ]
            assert len(noted) == (0 if gpus else 1)
    assert "/whl/cpu in m/requirements.txt installs" in environment.unused_cuda(
        run.environment, run.image, "m"
    )
    locked = dataclasses.replace(run.environment, files=("uv.lock",))
    assert environment.unused_cuda(locked, run.image, "m") == ""


def test_python_that_the_requirements_need_is_taken(
    site: Site, engine: docker.DockerClient, plain_reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_job(site, "old\n")
    with serve(engine) as index:
        index.add(wheel("old", "1.0", "", tag="cp39-none-any"), wheel("setuptools", "80.0"))
        variables = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
        monkeypatch.setattr(Host, "load", lambda: site.host)
        run = JobRun(site.job)
        run.engine = engine
        for image in (plain_reference, "train-classifier/missing:1"):
            run.host = dataclasses.replace(
                site.host, images={"cpu": site.base, f"python{VERSION}": image}, environment=variables
            )
            run.spec = JobSpec(site.job.id, "m", Repository("r", "0" * 16))
            find_image(run)
            add_packages(run)
            assert not run.image.plain
            if image == plain_reference:
                build_environment(run)
                assert (run.image.reference, run.environment.kind) == (plain_reference, "isolated")
                assert "old==1.0" in run.environment.packages
            else:
                with pytest.raises(NoEnvironment) as raised:
                    build_environment(run)
                assert f"needs Python {VERSION}; image {site.base} has" in raised.value.reason
                assert f"an image with Python {VERSION}" in raised.value.hint


def test_what_files_ask_for_stops_no_job(site: Site) -> None:
    site.host = dataclasses.replace(
        site.host, images={"cpu": site.base, "python3.8": "train-classifier/missing:1"}
    )
    for settings in ({}, {"image": site.base}, {"environment_kind": "image"}):
        usual = resolve(site, required_pythons=("3.8",), **settings)
        assert (usual.reference, usual.plain) == (site.base, False)
    for settings in ({}, {"image": site.base}, {"environment_kind": "image"}):
        with pytest.raises(NoEnvironment) as raised:
            resolve(site, python="3.8", required_pythons=("3.11",), **settings)
        assert "--python 3.11" in raised.value.hint
