"""Row 30: a package index and a package mirror that are slow, stall, or close in the middle. uv and apt are real.

The servers are stand-ins for what goes wrong between us and real ones; those that cannot be reached at all are in
test_environment and test_packages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import docker
import pytest
from worker_site import Site, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment

__all__ = ["site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine

WHEEL = "tc_lame-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tc-lame\nVersion: 1.0\n"
WEIGHT = os.urandom(300 << 10)


def wheel() -> bytes:
    """A package of some weight, so that there is a middle to close in."""
    buffer = io.BytesIO()
    info = "tc_lame-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("tc_lame/__init__.py", "")
        file.writestr("tc_lame/weights", WEIGHT)
        file.writestr(f"{info}/METADATA", METADATA)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = (
            "tc_lame/__init__.py",
            "tc_lame/weights",
            *(f"{info}/{n}" for n in ("METADATA", "WHEEL", "RECORD")),
        )
        file.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return buffer.getvalue()


def deb(folder: Path) -> tuple[bytes, str]:
    """A Debian package of some weight, and what a mirror's list says of it."""
    root = folder / "tc-lame"
    (root / "DEBIAN").mkdir(parents=True)
    control = (
        "Package: tc-lame\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: for a test\n"
    )
    (root / "DEBIAN" / "control").write_text(control)
    (root / "usr" / "share" / "tc-lame").mkdir(parents=True)
    (root / "usr" / "share" / "tc-lame" / "weights").write_bytes(WEIGHT)
    made = folder / "tc-lame.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, made], check=True, capture_output=True)
    data = made.read_bytes()
    listed = (
        f"{control}Filename: ./tc-lame.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    )
    return data, listed


class Lame(http.server.BaseHTTPRequestHandler):
    """Serves `files`; what is over 100 KiB in the manner that is set."""

    #: whole, slow, stalls, truncates, truncates once
    manner: ClassVar[str] = "whole"
    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header(
            "Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(data) < 100 << 10 or self.manner == "whole":
            self.wfile.write(data)
        elif self.manner == "slow":
            for at in range(0, len(data), 20 << 10):
                self.wfile.write(data[at : at + (20 << 10)])
                time.sleep(0.2)
        else:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if self.manner == "stalls":
                self.connection.settimeout(60)
                # Until the other side has had enough.
                while self.connection.recv(1 << 10):
                    pass
            elif self.manner == "truncates once":
                type(self).manner = "whole"
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(engine: docker.DockerClient) -> Iterator[str]:
    """Address of the stand-in, as containers see it."""
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    Lame.manner, Lame.files = "whole", {}
    with http.server.ThreadingHTTPServer((gateway, 0), Lame) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"{gateway}:{made.server_port}"
        made.shutdown()


@pytest.fixture
def index(site: Site, server: str) -> None:
    # As the great indexes do, it has the metadata beside the wheel (PEP 658).
    page = f'<a href="/{WHEEL}" data-core-metadata="true">{WHEEL}</a>'.encode()
    Lame.files = {
        "/simple/tc-lame/": page, f"/{WHEEL}": wheel(), f"/{WHEEL}.metadata": METADATA.encode(),
    }  # fmt: skip
    settings = {
        "UV_DEFAULT_INDEX": f"http://{server}/simple", "UV_HTTP_TIMEOUT": "3", "UV_HTTP_RETRIES": "1",
        "no_proxy": server.partition(":")[0],
    }  # fmt: skip
    site.host = dataclasses.replace(site.host, environment=settings)


def builds(site: Site) -> None:
    made = site.prepare("tc-lame\nsetuptools ; python_version < '3'\n")
    assert "tc-lame==1.0" in made.packages
    weights = "import hashlib, tc_lame, os; print(hashlib.sha256(open(os.path.dirname(tc_lame.__file__) + '/weights', 'rb').read()).hexdigest())"
    assert site.run(site.find(), made, weights).strip() == hashlib.sha256(WEIGHT).hexdigest()


@pytest.mark.parametrize("manner", ["slow", "truncates once"])
def test_slow_index_and_one_truncated_download_do_not_fail_the_build(
    site: Site, index: None, manner: str
) -> None:
    Lame.manner = manner
    builds(site)
    assert site.containers() == []


@pytest.mark.parametrize("manner", ["truncates", "stalls"])
def test_broken_index_download_is_reported_and_retried_later(site: Site, index: None, manner: str) -> None:
    Lame.manner = manner
    with pytest.raises(NoEnvironment) as raised:
        site.prepare("tc-lame\nsetuptools ; python_version < '3'\n")
    assert raised.value.reason == "the package index broke off in the middle of a download", (
        raised.value.detail
    )
    assert "tc-lame==1.0" in (raised.value.detail or "") and raised.value.hint
    assert (site.containers(), site.environments()) == ([], [])
    # Nothing of the half that came is taken for the whole.
    Lame.manner = "whole"
    builds(site)


@pytest.fixture
def mirror(site: Site, server: str, tmp_path: Path) -> None:
    data, listed = deb(tmp_path)
    Lame.files = {"/debian/./Packages": listed.encode(), "/debian/./tc-lame.deb": data}
    Lame.files.update({path.replace("/./", "/"): content for path, content in Lame.files.items()})
    sources = tmp_path / "host.list"
    sources.write_text(f"deb [trusted=yes] http://{server}/debian ./\n")
    settings = {"no_proxy": server.partition(":")[0]}
    site.host = dataclasses.replace(site.host, apt_sources=sources, environment=settings)


@pytest.fixture
def own_base(engine: docker.DockerClient, base_image: str, site: Site) -> Iterator[str]:
    """A base of this test's own, so that no layer over it is there yet."""
    container = engine.containers.create(base_image, ["true"], labels={"train-classifier-test": site.job.id})
    try:
        made = container.commit("tc-env-lame", f"test-{os.getpid()}")
    finally:
        container.remove(force=True)
    yield f"tc-env-lame:test-{os.getpid()}"
    label = ["train-classifier.kind=image", f"train-classifier.base={made.id}"]
    for found in engine.images.list(filters={"label": label}):
        engine.images.remove(found.id, force=True)
    engine.images.remove(made.id, force=True)


def test_slow_mirror_does_not_fail_the_build(site: Site, mirror: None, own_base: str) -> None:
    Lame.manner = "slow"
    made = site.layer("tc-lame", own_base)
    weights = "sha256sum /usr/share/tc-lame/weights"
    assert site.run(made, None, weights, shell=True).split()[0] == hashlib.sha256(WEIGHT).hexdigest()


def test_truncated_mirror_download_is_reported_and_retried_later(
    engine: docker.DockerClient, site: Site, mirror: None, own_base: str
) -> None:
    Lame.manner = "truncates"
    with pytest.raises(NoEnvironment, match="the package mirror cannot be reached") as raised:
        site.layer("tc-lame", own_base)
    assert "tc-lame.deb" in (raised.value.detail or "")
    assert site.containers() == []
    base = engine.images.get(own_base).id
    assert engine.images.list(filters={"label": f"train-classifier.base={base}"}) == []
    Lame.manner = "whole"
    made = site.layer("tc-lame", own_base)
    assert "weights" in site.run(made, None, "ls /usr/share/tc-lame", shell=True)
