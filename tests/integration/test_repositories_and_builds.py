"""Requirements from git, and packages that import others while they are built: real uv, git and engine."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from git_commands import git
from index_server import BACKEND, PYPROJECT, Index, gateway, sdist, wheel
from worker_site import Site, index, own_base, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.environments import environment
from train_classifier.worker.environments.build_failures import PythonConflict

__all__ = ["index", "own_base", "site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and prints nothing."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Serve a file to whom has the login; look for it in the command lines of this machine meanwhile."""
        server: Any = self.server
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                server.seen += [line for line in [path.read_bytes()] if server.word and b"precious" in line]
        login = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic "))
        if server.word and login != f"me:{server.word}".encode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()


class GitServer:
    """A repository with a package, which plain HTTP serves."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder, self.public = folder / "work", folder / "public"
        self.public.mkdir(parents=True)
        git(folder, "init", "-q", "-b", "main", str(self.folder))
        git(folder, "init", "-q", "--bare", "-b", "main", str(self.public / "shapes.git"))
        handler = functools.partial(Quiet, directory=str(self.public))
        self.server = http.server.ThreadingHTTPServer((host, 0), handler)
        self.server.daemon_threads = True
        #: A password, and the command lines that have it.
        self.server.word, self.server.seen = "", []  # type: ignore[attr-defined]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"git+http://{host}:{self.server.server_port}/shapes.git"

    def publish(self, version: str) -> str:
        """Commit a version of the package in the folder `python`, and return the commit."""
        package = self.folder / "python"
        package.mkdir(exist_ok=True)
        (package / "pyproject.toml").write_text(PYPROJECT)
        (package / "backend.py").write_text(BACKEND.format(name="shapes", version=version))
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-q", "-m", version)
        git(self.folder, "push", "-q", str(self.public / "shapes.git"), "main")
        git(self.public / "shapes.git", "update-server-info")
        return git(self.folder, "rev-parse", "HEAD")

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def git_server(tmp_path: Path, engine: docker.DockerClient) -> Iterator[GitServer]:
    server = GitServer(tmp_path / "git", gateway(engine))
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        yield server


def test_repository_without_a_commit_gets_the_one_of_its_branch(
    engine: docker.DockerClient, site: Site, index: Index, git_server: GitServer, own_base: str
) -> None:
    image = engine.images.get(site.layer("git", own_base).id).tags[0]
    first = git_server.publish("1.0")
    text = f"-e {git_server.address}@main#egg=shapes&subdirectory=python\n"
    built = site.prepare(text, image)
    assert "shapes==1.0" in built.packages
    assert built.repositories == (f"{git_server.address}@{first}",)
    assert site.prepare(text, image) == built
    # The branch goes on: another environment.
    second = git_server.publish("2.0")
    later = site.prepare(text, image)
    assert "shapes==2.0" in later.packages
    assert later.repositories == (f"{git_server.address}@{second}",)
    server: Any = git_server.server
    server.word = "p/precious"
    private = git_server.address.replace("://", "://me:p%2Fprecious@")
    assert "shapes==2.0" in site.prepare(f"shapes @ {private}#subdirectory=python\n", image).packages
    assert server.seen == []
    with pytest.raises(NoEnvironment, match="cannot be read"):
        site.prepare(text, image)
    server.word = ""
    with pytest.raises(NoEnvironment, match="it has no branch or tag 'none'"):
        site.prepare(f"{git_server.address}@none", image)
    git_server.stop()
    with pytest.raises(NoEnvironment, match=r"the git repository git\+http://.* cannot be read") as raised:
        site.prepare(text, image)
    assert "unable to access" in (raised.value.detail or "")
    assert site.containers() == []


@pytest.mark.parametrize("kind", ["image", "isolated"])
def test_package_that_imports_another_while_it_is_built(site: Site, index: Index, kind: str) -> None:
    index.add(
        wheel("tensor", "1.0", "version = 'seen 1.0'\n"),
        wheel("ninja", "1.0"),
        sdist("flashy", "1.0", "import tensor, ninja\nSEEN = tensor.version\n"),
    )
    built = site.prepare("flashy\ntensor\n", kind=kind)
    assert {"flashy==1.0", "tensor==1.0"} <= set(built.packages)
    # A tool of the build is no part of the environment.
    assert "ninja==1.0" not in built.packages
    assert site.run(site.find(), built, "import flashy; print(flashy.seen)") == "seen 1.0\n"
    assert built.unisolated == ("flashy",)
    assert environment.description(built, site.find()).endswith(
        "built with the environment's own packages: flashy"
    )
    assert not any("train-classifier:" in message for message in site.messages)


def test_package_is_built_with_the_framework_of_the_file(site: Site, index: Index) -> None:
    for version in ("2.0", "3.0", "4.0"):
        index.add(wheel("torch", version, f"version = '{version}'\n"))
    index.add(sdist("ext", "1.0", "import torch\nSEEN = torch.version\n", requires=["torch"]))
    # The cache of the first build has a package that was built with the other version.
    for version in ("2.0", "3.0"):
        built = site.prepare(f"torch=={version}\next\n")
        assert site.run(site.find(), built, "import ext; print(ext.seen)") == f"{version}\n"
        assert built.unisolated == ()


def test_package_for_older_tools_is_built_with_them(site: Site, index: Index) -> None:
    backend = (
        "import setuptools\nif not hasattr(setuptools, 'old'):\n"
        "    raise SystemExit('error in aged setup command: use_2to3 is invalid.')\nSEEN = setuptools.old\n"
    )
    index.add(
        wheel("setuptools", "57.0", "old = True\n"),
        sdist("aged", "1.0", backend, requires=["setuptools"]),
        sdist("modern", "1.0", "", requires=["setuptools>=61"]),
    )
    built = site.prepare("aged\n")
    assert "aged==1.0" in built.packages and "setuptools==57.0" not in built.packages
    with pytest.raises(NoEnvironment) as raised:
        site.prepare("aged\nmodern\n", repository="1" * 16)
    assert "use_2to3 is invalid" in str(raised.value.detail)


def test_failed_build_asks_for_the_python_that_has_wheels(site: Site, index: Index) -> None:
    index.add(wheel("native", "1.0", tag="cp39-none-any"), sdist("native", "1.0", "raise OSError('no')\n"))
    with pytest.raises(PythonConflict) as raised:
        site.prepare("native\n")
    assert raised.value.pythons == ("3.9",)
    for part in (
        "or give --python 3.9; or keep Python 3.11: ",
        "require a version of native that has a wheel for",
    ):
        assert part in str(raised.value.hint)
