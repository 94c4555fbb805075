"""Environments with the real uv, the real index and the real engine."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.types import Mount
from index_server import Index, serve, wheel
from worker_site import Site, build_in_two_processes, numpy_image, site, tmp_path, uv

from train_classifier.core.errors import BadInput, NoEnvironment, NotReady
from train_classifier.worker.environments import environment_build

__all__ = ["numpy_image", "site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine

IMPORTED_FROM = "import {0}; print({0}.__file__, getattr({0}, '__version__', ''))"


def test_requirements_become_importable_and_are_built_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = site.prepare("\ufeffsix\r\nattrs  # classes\r\n")
    assert {line.partition("==")[0] for line in environment.packages} >= {"six", "attrs"}
    printed = site.run(site.find(), environment, IMPORTED_FROM.format("six") + "; import attr")
    assert printed.startswith("/opt/train-classifier/environment/six.py")
    assert site.containers() == []

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a container was started")

    monkeypatch.setattr(environment_build.helper, "run_helper", refuse)
    # The order of the lines, comments and code elsewhere in the repository define nothing.
    assert site.prepare("# again\nattrs\nsix\n") == environment
    # A repeated job takes the environment that it had, whatever its lines would mean today.
    assert site.prepare("idna\n", pinned=environment.hash).packages == environment.packages
    with pytest.raises(AssertionError, match="a container was started"):
        site.prepare("idna\n", pinned="0" * 40)
    assert any("the environment of the repeated job is not here" in line for line in site.messages)


def test_distutils_works_without_requirements(site: Site) -> None:
    environment = site.prepare("")
    program = "from distutils import dir_util; print(dir_util.copy_tree.__module__)"
    assert "dir_util" in site.run(site.find(), environment, program)
    assert any("lacks distutils" in message for message in site.messages)


def test_new_requirement_extends_similar_environment(site: Site) -> None:
    first, second = site.prepare("six"), site.prepare("six\nidna")
    envs = site.store.envs
    assert first.hash != second.hash
    one, two = (envs / environment.hash / "site" / "six.py" for environment in (first, second))
    # It is a copy: no file is shared with another environment.
    assert one.stat().st_ino != two.stat().st_ino
    assert not (envs / first.hash / "site" / "idna").exists()
    assert any("over a similar environment" in message for message in site.messages)
    assert "idna" in site.run(site.find(), second, IMPORTED_FROM.format("idna"))


def test_requirements_replace_image_packages_but_not_its_framework(site: Site, numpy_image: str) -> None:
    image = site.find(numpy_image)
    assert image.frameworks == {"numpy": "1.26.4"}
    environment = site.prepare("numpy\nsix\npython-dateutil==2.9.0.post0", numpy_image)
    folder = site.store.envs / environment.hash / "site"
    # Packages of the image that need not be newer are used from the image.
    assert not (folder / "numpy").exists()
    assert not (folder / "six.py").exists()
    assert {"numpy==1.26.4", "six==1.15.0", "python-dateutil==2.9.0.post0"} <= set(environment.packages)
    program = (
        "import dateutil, numpy, six; print(numpy.__file__, numpy.__version__, six.__file__, six.__version__)"
    )
    dist = "/usr/local/lib/python3.11/dist-packages"
    assert site.run(image, environment, program).split() == [
        f"{dist}/numpy/__init__.py",
        "1.26.4",
        f"{dist}/six.py",
        "1.15.0",
    ]
    newer = site.prepare("six>=1.16", numpy_image)
    assert "six==1.15.0" not in newer.packages
    assert site.run(image, newer, IMPORTED_FROM.format("six")).startswith(
        "/opt/train-classifier/environment/six.py 1.1"
    )
    names = [path.name for path in (site.store.envs / newer.hash / "site").iterdir()]
    # No metadata of the image's packages is left, also none of a replaced one.
    assert [name for name in names if name.startswith(("numpy", "six-1.15"))] == []


def test_numpy_of_the_image_is_replaced_with_what_depends_on_it(site: Site, numpy_image: str) -> None:
    image = site.find(numpy_image)
    environment = site.prepare("numpy==2.2.6", numpy_image)
    program = "import numpy; print(numpy.__version__, numpy.dot([1, 2], [3, 4]))"
    assert site.run(image, environment, program) == "2.2.6 11\n"
    assert environment.kind == "image"


def test_unknown_package_is_reported(site: Site) -> None:
    with pytest.raises(NoEnvironment) as raised:
        site.prepare("six\nno-such-package-of-ours-1")
    assert "no-such-package-of-ours-1 is not in the package index" in raised.value.reason
    assert "was not found in the package registry" in (raised.value.detail or "")
    assert (site.containers(), site.environments()) == ([], [])


def test_conflicting_requirements_are_reported(site: Site) -> None:
    with pytest.raises(NoEnvironment, match="has no solution") as raised:
        site.prepare("six==1.16.0\nsix==1.17.0")
    assert "six==1.16.0" in (raised.value.detail or "")


def test_invalid_requirements_file_starts_no_build(site: Site) -> None:
    with pytest.raises(BadInput) as raised:
        site.prepare("six 1\n-e ../y\n-r ../x")
    assert len(raised.value.problems) == 3


def test_requirement_hashes_are_checked(site: Site) -> None:
    good = "8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254"
    assert "six==1.16.0" in site.prepare(f"six==1.16.0 \\\n    --hash=sha256:{good}\n").packages
    with pytest.raises(NoEnvironment) as raised:
        site.prepare(f"six==1.16.0 --hash=sha256:{'0' * 64}\n")
    assert "ash" in (raised.value.detail or "")


def test_constraints_and_included_files_apply(site: Site) -> None:
    (site.workspace / "common.txt").write_text("idna\n")
    (site.workspace / "limits.txt").write_text("idna<3\n")
    assert "idna==2.10" in site.prepare("-r ../common.txt\n-c ../limits.txt").packages
    (site.workspace / "limits.txt").write_text("idna<2.10\n")
    assert "idna==2.9" in site.prepare("-r ../common.txt\n-c ../limits.txt").packages


def test_local_package_is_built_from_a_copy(site: Site) -> None:
    """Its program is on the PATH, and what `.pth` files of another package say is done."""
    package = site.workspace / "lib" / "shapes"
    package.mkdir(parents=True)
    (package / "pyproject.toml").write_text(
        "[build-system]\nrequires=['setuptools']\nbuild-backend='setuptools.build_meta'\n"
        "[project]\nname='shapes'\nversion='1'\n[project.scripts]\ncorners='shapes:main'\n"
        "[tool.setuptools]\npy-modules=['shapes']\n"
    )
    (package / "shapes.py").write_text("corners = 3\ndef main():\n    print('of', corners)\n")
    first = site.prepare("./lib/shapes\nsetuptools\n")
    assert (site.store.envs / first.hash / "site" / "distutils-precedence.pth").exists()
    assert site.run(site.find(), first, "corners", shell=True) == "of 3\n"
    # A build writes beside the code, but not in the job's workspace.
    assert sorted(path.name for path in package.iterdir()) == ["pyproject.toml", "shapes.py"]
    (package / "shapes.py").write_text("corners = 4\n")
    second = site.prepare("./lib/shapes\nsetuptools\n")
    assert second.hash != first.hash
    assert site.run(site.find(), second, "import shapes; print(shapes.corners)") == "4\n"


def test_requirements_of_the_repository_itself_are_not_installed(site: Site) -> None:
    """Its own requirements.txt and constraints.txt are not what is installed."""
    (site.workspace / "pyproject.toml").write_text(
        "[build-system]\nrequires=['setuptools']\nbuild-backend='setuptools.build_meta'\n"
        "[project]\nname='shapes'\nversion='1'\n[tool.setuptools]\npy-modules=['shapes']\n"
    )
    (site.workspace / "shapes.py").write_text("corners = 3\n")
    (site.workspace / "requirements.txt").write_text("no-such-package-of-ours-1\n")
    (site.workspace / "constraints.txt").write_text("idna==1.0\n")
    (site.workspace / "limits.txt").write_text("idna==2.10\n")
    environment = site.prepare(".\nidna\n-c ../limits.txt\n")
    assert {"shapes==1", "idna==2.10"} <= set(environment.packages)
    # A job imports the repository from its own copy.
    workspace = Mount("/workspace", str(site.workspace), "bind", read_only=True)
    environment = dataclasses.replace(environment, mounts=(*environment.mounts, workspace))
    assert site.run(site.find(), environment, "import shapes; print(shapes.corners)") == "3\n"


HOSTILE_SETUP = """
import glob, os
from setuptools import setup
for folder in [*glob.glob("/train-classifier/"), *glob.glob("/train-classifier/*/"), *glob.glob("/train-classifier/build/*/")]:
    for name in ("train-classifier.pth", "environment.json", "site"):
        try:
            os.symlink(os.environ["VICTIM"], os.path.join(folder, name))
        except OSError:
            pass
seen = sorted(os.listdir("/train-classifier") + os.listdir("/train-classifier/build"))
setup(name="hostile", version="1", py_modules=["hostile"], description=" ".join(seen))
"""


def test_links_made_by_a_build_are_not_followed(site: Site, tmp_path: Path) -> None:
    """Code of a requirement runs as the job's user; nothing that runs as root follows its links."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    site.host = dataclasses.replace(site.host, environment={"VICTIM": str(victim)})
    earlier = site.prepare("idna")
    package = site.workspace / "lib"
    package.mkdir()
    (package / "setup.py").write_text(HOSTILE_SETUP)
    (package / "hostile.py").touch()
    environment = site.prepare("./lib")
    assert (victim.read_text(), victim.stat().st_mode & 0o777, victim.stat().st_uid) == (
        "precious", 0o600, os.geteuid(),
    )  # fmt: skip
    folder = site.store.envs / environment.hash
    assert (
        not (folder / "environment.json").is_symlink() and not (folder / "train-classifier.pth").is_symlink()
    )
    # A build sees only its own folder and its repository's cache: no other environment, no lock.
    summary = site.run(
        site.find(),
        environment,
        "from importlib.metadata import metadata; print(metadata('hostile')['Summary'])",
    )
    assert sorted(set(summary.split()) - {"ca.pem"}) == ["build", "ours", "site", "uv", "uv-cache", "work"]
    mounts = site.run(site.find(), environment, "print(open('/proc/self/mountinfo').read())")
    assert earlier.hash not in mounts
    # A link that is planted later is not mounted either.
    (folder / "train-classifier.pth").unlink()
    (folder / "train-classifier.pth").symlink_to(victim)
    with pytest.raises(NotReady, match="tampered"):
        site.prepare("./lib")


def test_two_jobs_at_once_build_one_environment(site: Site, tmp_path: Path) -> None:
    site.find()
    build_in_two_processes(site, tmp_path, lambda other: other.prepare("six\ncertifi").hash)
    assert len(site.environments()) == 1


def test_cancelled_build_leaves_nothing(site: Site) -> None:
    def cancel() -> None:
        if site.containers():
            raise KeyboardInterrupt

    site.find()
    with pytest.raises(KeyboardInterrupt):
        site.prepare("six\nattrs\nidna", check=cancel)
    assert (site.containers(), site.environments()) == ([], [])


def test_next_build_removes_killed_build(site: Site, tmp_path: Path) -> None:
    site.find()
    program = (
        "import sys; from pathlib import Path; import docker; from worker_site import Site\n"
        "Site(docker.from_env(), Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])).prepare('six\\nidna')\n"
    )
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path, site.base, site.host.uv],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}:{here.parents[1]}"},
    )
    label = "train-classifier.kind=build"
    own_builds = f"train-classifier.place={site.store.builds}"

    def building() -> list[str]:
        containers = site.client.containers.list(filters={"label": label}, ignore_removed=True)
        return [
            container.id
            for container in containers
            if own_builds in f"train-classifier.place={container.labels['train-classifier.place']}"
        ]

    while not building():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    environment = site.prepare("six\nidna")
    assert site.environments() == [environment.hash]
    assert building() == []
    assert "six" in site.run(site.find(), environment, IMPORTED_FROM.format("six"))


@pytest.fixture
def private_index(engine: docker.DockerClient) -> Iterator[Index]:
    """An index that requires a password."""
    with serve(engine) as index:
        index.add(wheel("tc_private", "1.0"))
        index.login = "ml:hunter2-a-rare-word"
        yield index


@pytest.mark.parametrize("route", [pytest.param("direct", marks=pytest.mark.full), "by a proxy"])
def test_netrc_login_is_used_and_not_stored(
    site: Site, private_index: Index, route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The login of the caller's netrc is used and stored nowhere; only the proxy knows the name of the index."""
    server = private_index.address if route == "direct" else "index.private.example"
    settings = {"UV_INDEX": f"http://{server}/simple", "UV_HTTP_RETRIES": "0"}
    if route == "by a proxy":
        settings["http_proxy"] = f"http://{private_index.address}"
    site.host = dataclasses.replace(site.host, environment=settings)
    netrc = tmp_path / "a netrc"
    netrc.write_text(f"machine {server.partition(':')[0]} login ml password hunter2-a-rare-word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(NoEnvironment, match="requires a login, or rejected this one"):
        site.prepare("tc-private")
    monkeypatch.setenv("NETRC", str(netrc))
    environment = site.prepare("tc-private")
    assert "tc-private==1.0" in environment.packages
    assert site.run(site.find(), environment, IMPORTED_FROM.format("tc_private")).startswith(
        "/opt/train-classifier/environment/"
    )
    if route == "by a proxy":
        assert f"http://{server}/simple/tc-private/" in [path for path, _ in private_index.requests]
    for path in site.store.root.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    assert "hunter2" not in "".join(site.messages)


def test_unreachable_index_is_reported(site: Site) -> None:
    settings = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    host = dataclasses.replace(site.host, environment=settings)
    site.host = host
    with pytest.raises(NoEnvironment, match="the package index cannot be reached"):
        site.prepare("six")
    # Without requirements the job continues.
    environment = site.prepare("")
    assert environment.hash == ""
    assert any("a model that imports distutils will fail" in message for message in site.messages)


@pytest.mark.parametrize(("content", "problem"), [(None, "is missing"), ("no program", "does not work")])
def test_uv_that_does_not_work_fails_only_what_needs_it(
    site: Site, tmp_path: Path, content: str | None, problem: str
) -> None:
    uv = tmp_path / "uv"
    if content:
        uv.write_text(content)
        uv.chmod(0o755)
    site.host = dataclasses.replace(site.host, uv=uv)
    with pytest.raises(NotReady, match=f"{uv} {problem}"):
        site.prepare("six")
    assert site.prepare("").hash == ""
    assert any(f"{uv} {problem}" in message for message in site.messages)
