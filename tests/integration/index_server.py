"""A package index: what it serves is made in the test, and it records each request."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import re
import tarfile
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import docker


def wheel(
    name: str,
    version: str,
    code: str = "",
    files: dict[str, str] | None = None,
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
) -> tuple[str, bytes]:
    """Make a wheel of one module; returns its file name and content."""
    buffer = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    texts = {
        f"{name}.py": code,
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    with zipfile.ZipFile(buffer, "w") as file:
        for path, text in texts.items():
            file.writestr(path, text)
        file.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*texts, f"{info}/RECORD"]))
    return f"{name}-{version}-{tag}.whl", buffer.getvalue()


def sdist(name: str, version: str, backend: str, requires: Sequence[str] = ()) -> tuple[str, bytes]:
    """Make a source distribution whose build back end is `backend`, a module in it that needs `requires`."""
    texts = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": PYPROJECT.replace("[]", str([*requires]), 1),
        "backend.py": backend + BACKEND.format(name=name, version=version),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for path, text in texts.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text.encode())
            file.addfile(entry, io.BytesIO(text.encode()))
    return f"{name}-{version}.tar.gz", buffer.getvalue()


PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
#: Makes a wheel of one module without any other package: nothing is downloaded for a build.
BACKEND = """
def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    import os, zipfile
    info = "{name}-{version}.dist-info"
    texts = {{
        "{name}.py": "seen = %r\\n" % (globals().get("SEEN"),),
        info + "/METADATA": "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
        info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        info + "/RECORD": "",
    }}
    file = "{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, file), "w") as made:
        for path, text in texts.items():
            made.writestr(path, text)
    return file
"""


class Index:
    """A running index; `files` are served, `requests` are path and login of each request."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.host = address.partition(":")[0]
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        #: "login:password" without which it answers 401.
        self.login = ""

    @property
    def url(self) -> str:
        return f"http://{self.address}/simple"

    def add(self, *files: tuple[str, bytes]) -> None:
        self.files.update(files)

    def logins(self) -> set[str]:
        """Every login that was sent to it."""
        return {login for _, login in self.requests if login}


def gateway(engine: docker.DockerClient) -> str:
    """Return the address of this machine as containers see it."""
    address: str = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    return address


@contextlib.contextmanager
def serve(engine: docker.DockerClient) -> Iterator[Index]:
    """Serve an index that containers reach; it also answers as a proxy."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            header = self.headers.get("Authorization", "")
            login = base64.b64decode(header[len("Basic ") :]).decode() if header.startswith("Basic ") else ""
            index.requests.append((self.path, login))
            # A proxy gets the whole address.
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            name = path.strip("/").rpartition("/")[2]
            if index.login and login != index.login:
                self.answer(401, b"", ("WWW-Authenticate", 'Basic realm="index"'))
            elif path.startswith("/simple/"):
                files = [file for file in index.files if re.split(r"-\d", file)[0] == name.replace("-", "_")]
                page = "".join(f'<a href="/files/{file}">{file}</a>' for file in files).encode()
                self.answer(200 if files else 404, page, ("Content-Type", "text/html"))
            else:
                content = index.files.get(name)
                self.answer(404 if content is None else 200, content or b"")

        def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer((gateway(engine), 0), Handler) as server:
        index = Index(f"{server.server_address[0]}:{server.server_port}")
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield index
        server.shutdown()
