"""GitHub's API as its official description says it is: `@octokit/openapi`, answered by `@stoplight/prism-cli`.

Prism checks each request's path, method, parameters and body against the description, and answers by its examples.
Both come from npm into a cache folder (never into the repository). From the description only the paths of runners
are taken, unchanged, with everything they refer to: the whole of it takes Prism a minute to read.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

#: package.json names the versions; package-lock.json has a hash of every package that they bring, and no registry's address:
#: npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts
LOCK = Path(__file__).parent / "npm"
PATHS = re.compile(
    r"/(repos/\{owner\}/\{repo\}|orgs/\{org\}|enterprises/\{enterprise\})(/actions/runners.*|/actions/runner-groups|/installation)"
    r"|/repos/\{owner\}/\{repo\}|/repos/\{owner\}/\{repo\}/releases/tags/\{tag\}"
    r"|/app/installations/\{installation_id\}/access_tokens"
)


class Unavailable(Exception):
    """npm is missing or its registry cannot be reached."""


def cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "train-classifier" / "github_api"


def install() -> Path:
    """The cache folder with both packages in it, installed first when they are missing. Raises Unavailable."""
    lock_hash = hashlib.sha256((LOCK / "package-lock.json").read_bytes()).hexdigest()
    folder = cache() / lock_hash[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        npm = shutil.which("npm")
        if not npm:
            raise Unavailable("npm is missing: apt-get install npm")
        # Renamed when it is complete: an interrupted installation must not be used.
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            installation = Path(work) / "made"
            shutil.copytree(LOCK, installation)
            options = ["--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run([npm, "ci", *options], cwd=installation, capture_output=True, text=True)
            if done.returncode:
                raise Unavailable(f"npm ci failed: {done.stderr.strip().splitlines()[-1:]}")
            installation.rename(folder)
    return folder


def runner_part(description: dict[str, Any]) -> dict[str, Any]:
    """The runners' part of the description: its paths as they are, and every component they reach."""
    paths = {path: item for path, item in description["paths"].items() if PATHS.fullmatch(path)}
    pending, resolved = list(_references(paths)), set()
    components: dict[str, dict[str, Any]] = {}
    while pending:
        reference = pending.pop()
        if reference in resolved:
            continue
        resolved.add(reference)
        _, _, kind, name = reference.split("/", 3)
        part = description["components"][kind][name.replace("~1", "/").replace("~0", "~")]
        components.setdefault(kind, {})[name] = part
        pending.extend(_references(part))
    return {
        **{key: description[key] for key in ("openapi", "info", "servers")},
        "paths": paths,
        "components": components,
    }


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for value in node.values() for reference in _references(value)]
    if isinstance(node, list):
        return [reference for value in node for reference in _references(value)]
    return []


class Prism:
    """Prism on a free port, for use as a context manager."""

    def __init__(self, folder: Path, work: Path) -> None:
        description = json.loads((folder / "node_modules/@octokit/openapi/generated/ghec.json").read_text())
        self.description = runner_part(description)
        path = work / "description.json"
        path.write_text(json.dumps(self.description))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        program = folder / "node_modules/.bin/prism"
        self.log = work / "prism.log"
        self._command = [str(program), "mock", "-p", str(self.port), "-h", "127.0.0.1", "--errors", str(path)]

    def __enter__(self) -> "Prism":
        with self.log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        for _ in range(300):
            if self._process.poll() is not None:
                raise Unavailable(self.log.read_text()[-500:])
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.2)
            else:
                return self
        self.__exit__()
        raise Unavailable("prism did not come up within a minute")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=240)

    def status(self, method: str, path: str, body: dict[str, Any] | None = None) -> int:
        """The status Prism answers to a request made here, not by the client."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
