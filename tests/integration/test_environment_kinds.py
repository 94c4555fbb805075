"""Environments over an image with frameworks, and isolated ones: real uv, real engine, an index on loopback."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.types import Mount
from index_server import Index, serve, wheel
from worker_site import Site, image_after, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.environments import environment
from train_classifier.worker.environments.environment_build import MOUNTED

__all__ = ["site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine

#: The packages of the image. `broken` needs what no index has.
IMAGE = (
    "tensorflow-cpu==2.19.1", "keras==3.5.0", "numpy==2.1.3", "plotting==2.0", "opencv-python-headless==4.10.0",
)  # fmt: skip
SCRIPT = (
    f"/uv pip install --system --break-system-packages --python /usr/bin/python3 {' '.join(IMAGE)} && "
    "/uv pip install --system --break-system-packages --python /usr/bin/python3 --no-deps broken"
)
VERSIONS = "; ".join(
    f"print('{name}', {name}.version, {name}.__file__)" for name in ("tensorflow", "keras", "numpy")
)


def package(
    name: str, version: str, *requires: str, module: str = "", tag: str = "py3-none-any"
) -> tuple[str, bytes]:
    """Make a wheel whose module says its version."""
    return wheel(
        name.replace("-", "_"), version, files={f"{module or name}.py": f"version = {version!r}\n"},
        requires=requires, tag=tag,
    )  # fmt: skip


@pytest.fixture(scope="module")
def index(engine: docker.DockerClient) -> Iterator[Index]:
    with serve(engine) as new_index:
        new_index.add(
            package("tensorflow-cpu", "2.19.1", "numpy>=1.26,<2.2", "keras>=3.5", module="tensorflow"),
            package("tensorflow", "2.19.1", "numpy>=1.26,<2.2", "keras>=3.5"),
            package("tensorflow", "2.15.1", "numpy>=1.23,<2", "keras>=2.15,<2.16"),
            package("keras", "3.5.0", "numpy"), package("keras", "2.15.0"),
            package("numpy", "2.1.3"), package("numpy", "1.26.4"), package("numpy", "1.21.6", tag="cp38.cp39.cp310-none-any"),
            package("plotting", "2.0", "numpy>=2"), package("plotting", "1.0", "numpy"),
            package("opencv-python-headless", "4.10.0", module="cv2"), package("opencv-python", "4.11.0", module="cv2"),
            package("broken", "1.0", "numpy>=99"), package("setuptools", "80.0"),
            package("tools", "1.0"),
        )  # fmt: skip
        yield new_index


@pytest.fixture(scope="module")
def framework_image(engine: docker.DockerClient, base_image: str, uv: object, index: Index) -> Iterator[str]:
    """An image with stand-ins of TensorFlow, Keras and NumPy, and a package whose needs are not met."""
    with image_after(
        engine, base_image, "kinds", ["sh", "-c", SCRIPT], mounts=[Mount("/uv", str(uv), "bind", read_only=True)],
        environment={"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host},
    ) as image:  # fmt: skip
        yield image


@pytest.fixture(autouse=True)
def use_index(site: Site, index: Index) -> None:
    variables = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
    site.host = dataclasses.replace(site.host, environment=variables)


def test_packages_of_the_image_are_replaced_while_all_agree(site: Site, framework_image: str) -> None:
    image = site.find(framework_image)
    built = site.prepare("numpy<2", framework_image)
    assert built.kind == "image"
    # What needs the image's NumPy is replaced too; the framework is the image's.
    lines = site.run(image, built, f"import tensorflow, keras, numpy; {VERSIONS}").splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["tensorflow", "2.19.1"], ["keras", "3.5.0"], ["numpy", "1.26.4"],
    ]  # fmt: skip
    assert [line.split()[2].startswith(MOUNTED) for line in lines] == [False, False, True]
    assert "plotting==1.0" in built.packages
    assert environment.description(built, image) == (
        "kind image (requirements.txt agrees with the image); "
        "replaced: numpy 2.1.3 by 1.26.4, plotting 2.0 by 1.0"
    )


def test_distributions_of_one_module_count_as_one(site: Site, framework_image: str) -> None:
    built = site.prepare("tensorflow>=2.10\nopencv-python\ntools", framework_image)
    installed = set(built.packages) - {
        f"{name}=={version}" for name, version in site.find(framework_image).packages.items()
    }
    assert (built.kind, installed) == ("image", {"tools==1.0", "setuptools==80.0"})


def test_other_framework_makes_an_isolated_environment(site: Site, framework_image: str) -> None:
    image = site.find(framework_image)
    (site.workspace / "m" / "__main__.py").write_text("import layers\n")
    (site.workspace / "layers.py").write_text("from tensorflow.keras import layers\n")
    built = site.prepare("keras==2.15.0", framework_image)
    assert (built.kind, built.reason) == (
        "isolated",
        "requirements.txt conflicts with the image's keras==3.5.0",
    )
    # The model's framework is added, at a version that fits.
    assert {"keras==2.15.0", "tensorflow==2.15.1", "numpy==1.26.4"} <= set(built.packages)
    lines = site.run(image, built, f"import tensorflow, keras, numpy; {VERSIONS}").splitlines()
    assert all(line.split()[2].startswith(MOUNTED) for line in lines)
    program = "import importlib.util as u; print([u.find_spec(name) for name in ('cv2', 'plotting')])"
    assert site.run(image, built, program) == "[None, None]\n"
    assert any("isolated environment is tried" in message for message in site.messages)
    assert site.prepare("keras==2.15.0", framework_image) == built
    assert site.containers() == []


def test_packages_of_the_project(site: Site, framework_image: str) -> None:
    image = site.find(framework_image)
    (site.workspace / "requirements.txt").write_text("plotting==1.0\n")
    (site.workspace / "pyproject.toml").write_text("[project]\ndependencies = ['tools']\n")
    request = environment.EnvironmentRequest("m", "0" * 16)
    built = environment.prepare(site.context(), image, site.workspace, request)
    assert (built.files, built.reason) == (("pyproject.toml",), "pyproject.toml agrees with the image")
    assert {"tools==1.0", "plotting==2.0"} <= set(built.packages)
    assert "m/requirements.txt is missing: the packages are those of pyproject.toml" in site.messages
    (site.workspace / "pyproject.toml").write_text("[project]\ndependencies = ['nowhere']\n")
    with pytest.raises(NoEnvironment) as raised:
        environment.prepare(site.context(), image, site.workspace, request)
    assert raised.value.reason == "requirement nowhere is not in the package index (pyproject.toml)"
    assert "write what the model needs into m/requirements.txt" in (raised.value.hint or "")


def test_packages_of_a_lock(site: Site, framework_image: str, index: Index, uv: Path) -> None:
    image = site.find(framework_image)
    index.add(package("pinned", "1.0", "helping"), package("helping", "1.0"), package("unwanted", "1.0"))
    project = site.workspace / "pyproject.toml"
    text = "[project]\nname = 'x'\nversion = '1'\nrequires-python = '>=3.9'\ndependencies = ['pinned', 'numpy<2']\n"
    project.write_text(f"{text}[dependency-groups]\ndev = ['unwanted']\n")
    subprocess.run(
        [uv, "lock", "--quiet", "--no-config", "--default-index", index.url], check=True, cwd=site.workspace,
        env={**os.environ, "no_proxy": index.host, "UV_CACHE_DIR": str(site.workspace.parent / "uv-cache")},
    )  # fmt: skip
    index.add(package("pinned", "2.0"), package("helping", "2.0"))
    request = environment.EnvironmentRequest("m", "0" * 16)
    built = environment.prepare(site.context(), image, site.workspace, request)
    assert (built.files, built.reason) == (("uv.lock", "pyproject.toml"), "uv.lock agrees with the image")
    assert {"pinned==1.0", "helping==1.0", "numpy==1.26.4", "tensorflow-cpu==2.19.1"} <= set(built.packages)
    assert not any(line.startswith("unwanted") for line in built.packages)
    isolated = environment.prepare(
        site.context(), image, site.workspace, dataclasses.replace(request, kind="isolated")
    )
    assert set(isolated.packages) == {"pinned==1.0", "helping==1.0", "numpy==1.26.4", "setuptools==80.0"}


def test_kind_image_refuses_another_framework(site: Site, framework_image: str) -> None:
    with pytest.raises(NoEnvironment) as raised:
        site.prepare("tensorflow==2.15.1", framework_image, kind="image")
    assert "the image's own tensorflow-cpu==2.19.1 cannot be replaced" in raised.value.reason
    assert "--environment isolated" in raised.value.hint
    assert (site.containers(), site.environments()) == ([], [])


def test_isolated_environment_on_request(site: Site, framework_image: str) -> None:
    image = site.find(framework_image)
    built = site.prepare("tools", framework_image, kind="isolated")
    assert (built.kind, built.reason) == ("isolated", "as asked")
    assert "numpy" not in " ".join(built.packages)
    # The same requirements agree with the image: nobody gets the isolated environment unasked.
    assert site.prepare("tools", framework_image).kind == "image"
    prefix = site.run(image, built, "import sys; print(sys.prefix)")
    assert prefix == f"{MOUNTED}\n"


def test_conflict_about_python_names_the_versions(site: Site, framework_image: str) -> None:
    with pytest.raises(NoEnvironment) as raised:
        site.prepare("numpy==1.21.6", framework_image)
    assert "requirements.txt needs Python 3.8 to 3.10; image" in raised.value.reason
    assert 'python = "3.10"' in raised.value.hint
    assert (site.containers(), site.environments()) == ([], [])
