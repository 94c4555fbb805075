"""Row 30: a package index and a package mirror that are slow, stall, or close in the middle. uv and apt are real.

The servers are stand-ins; test_environment and test_packages have those that cannot be reached at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import docker
import pytest
from index_server import gateway, wheel
from worker_site import Site, layers, own_base, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment

__all__ = ["own_base", "site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine

METADATA = "Metadata-Version: 2.1\nName: tc_large\nVersion: 1.0\n"
#: Large enough to close the connection in its middle.
WEIGHTS = os.urandom(150 << 10).hex()
WEIGHTS_HASH = hashlib.sha256(WEIGHTS.encode()).hexdigest()


def deb(folder: Path) -> tuple[bytes, str]:
    """A large Debian package, and its entry in a mirror's list."""
    root = folder / "tc-large"
    (root / "DEBIAN").mkdir(parents=True)
    control = (
        "Package: tc-large\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: for a test\n"
    )
    (root / "DEBIAN" / "control").write_text(control)
    (root / "usr" / "share" / "tc-large").mkdir(parents=True)
    (root / "usr" / "share" / "tc-large" / "weights").write_text(WEIGHTS)
    deb_file = folder / "tc-large.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, deb_file], check=True, capture_output=True)
    data = deb_file.read_bytes()
    entry = f"{control}Filename: ./tc-large.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    return data, entry


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; those over 100 KiB in the manner that is set."""

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
                # Until the client closes the connection.
                while self.connection.recv(1 << 10):
                    pass
            elif self.manner == "truncates once":
                type(self).manner = "whole"
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(engine: docker.DockerClient) -> Iterator[str]:
    """Address of the stand-in, as containers see it."""
    Server.manner, Server.files = "whole", {}
    with http.server.ThreadingHTTPServer((gateway(engine), 0), Server) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"{running.server_address[0]}:{running.server_port}"
        running.shutdown()


@pytest.fixture
def index(site: Site, server: str) -> None:
    # Large public indexes serve the metadata beside the wheel (PEP 658).
    name, content = wheel("tc_large", "1.0", files={"tc_large_weights": WEIGHTS})
    page = f'<a href="/{name}" data-core-metadata="true">{name}</a>'.encode()
    Server.files = {"/simple/tc-large/": page, f"/{name}": content, f"/{name}.metadata": METADATA.encode()}
    settings = {
        "UV_DEFAULT_INDEX": f"http://{server}/simple", "UV_HTTP_TIMEOUT": "3", "UV_HTTP_RETRIES": "1",
        "no_proxy": server.partition(":")[0],
    }  # fmt: skip
    site.host = dataclasses.replace(site.host, environment=settings)


def assert_builds(site: Site) -> None:
    environment = site.prepare("tc-large\nsetuptools ; python_version < '3'\n")
    assert "tc-large==1.0" in environment.packages
    program = "import hashlib, tc_large; path = tc_large.__file__.replace('.py', '_weights'); print(hashlib.sha256(open(path, 'rb').read()).hexdigest())"
    assert site.run(site.find(), environment, program).strip() == WEIGHTS_HASH


@pytest.mark.parametrize("manner", ["slow", "truncates once"])
def test_slow_index_and_one_truncated_download_do_not_fail_the_build(
    site: Site, index: None, manner: str
) -> None:
    Server.manner = manner
    assert_builds(site)
    assert site.containers() == []


@pytest.mark.parametrize("manner", ["truncates", "stalls"])
def test_broken_index_download_is_reported_and_retried_later(site: Site, index: None, manner: str) -> None:
    Server.manner = manner
    with pytest.raises(NoEnvironment) as raised:
        site.prepare("tc-large\nsetuptools ; python_version < '3'\n")
    assert raised.value.reason == "the package index ended the connection during a download", (
        raised.value.detail
    )
    assert "tc-large==1.0" in (raised.value.detail or "") and raised.value.hint
    assert (site.containers(), site.environments()) == ([], [])
    # The incomplete download is not used.
    Server.manner = "whole"
    assert_builds(site)


@pytest.fixture
def mirror(site: Site, server: str, tmp_path: Path) -> None:
    data, entry = deb(tmp_path)
    Server.files = {"/debian/./Packages": entry.encode(), "/debian/./tc-large.deb": data}
    Server.files.update({path.replace("/./", "/"): content for path, content in Server.files.items()})
    sources = tmp_path / "host.list"
    sources.write_text(f"deb [trusted=yes] http://{server}/debian ./\n")
    settings = {"no_proxy": server.partition(":")[0]}
    site.host = dataclasses.replace(site.host, apt_sources=sources, environment=settings)


def test_slow_mirror_does_not_fail_the_build(site: Site, mirror: None, own_base: str) -> None:
    Server.manner = "slow"
    layer = site.layer("tc-large", own_base)
    weights = "sha256sum /usr/share/tc-large/weights"
    assert site.run(layer, None, weights, shell=True).split()[0] == WEIGHTS_HASH


def test_truncated_mirror_download_is_reported_and_retried_later(
    engine: docker.DockerClient, site: Site, mirror: None, own_base: str
) -> None:
    Server.manner = "truncates"
    with pytest.raises(NoEnvironment, match="the package mirror cannot be reached") as raised:
        site.layer("tc-large", own_base)
    assert "tc-large.deb" in (raised.value.detail or "")
    assert site.containers() == []
    assert layers(engine, engine.images.get(own_base).id) == []
    Server.manner = "whole"
    layer = site.layer("tc-large", own_base)
    assert "weights" in site.run(layer, None, "ls /usr/share/tc-large", shell=True)
