"""`exec`, `shell` and `forward`: into the container of a running job, over ssh as on this machine."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from loopback.sshd import Sshd
from loopback.world import World, wait_until

pytestmark = pytest.mark.engine
EVENTS = Path(__file__).parents[1] / "unit/data/events.out.tfevents.1"

#: Listens on the container's loopback alone, until the test writes a file.
SERVER = """
import http.server, pathlib, threading, time
server = http.server.ThreadingHTTPServer(("127.0.0.1", 6006), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
pathlib.Path("artefacts/answer").write_text("42")
pathlib.Path("artefacts/events.out.tfevents.1").write_bytes(pathlib.Path("events").read_bytes())
print("listening", flush=True)
while not pathlib.Path("/checkpoints/end").exists():
    time.sleep(0.05)
"""


def typed(argv: list[str], environment: dict[str, str], text: bytes) -> tuple[int, bytes]:
    """Run a command on a terminal, type a text, and return its exit status and what it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    os.write(ours, text)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(ours)
    return process.wait(60), shown


@pytest.mark.parametrize("connection", ["local", "ssh"])
def test_into_a_running_job(world: World, sshd: Sshd, connection: str) -> None:
    inventory: Path = world.inventory(sshd) if connection == "ssh" else world.local
    where = ("-i", inventory)
    (world.repo / "events").write_bytes(EVENTS.read_bytes())
    job = world.run(*world.train(world.model(SERVER), "--network", "none", "--detach", inventory=inventory))
    name = job.stdout.decode().strip()
    assert job.returncode == 0, job.stderr.decode()
    wait_until(lambda: b"listening" in world.run("logs", name, *where).stdout)
    # As the job, with its folders; standard input, output and the exit status are the command's.
    command = "id -u; pwd; cat; printf '%s' '  a  b' >/checkpoints/written; exit 7"
    process = world.start("exec", name, *where, "--", "sh", "-c", command, stdin=subprocess.PIPE)
    out, err = process.communicate(b"typed\n", timeout=120)
    assert (process.returncode, err) == (7, b"")
    uid, folder, text = out.decode().splitlines()
    assert uid != "0" and (folder, text) == ("/workspace", "typed")
    status, shown = typed(
        world.command("shell", name, *where), world.environment, b"cat /checkpoints/written; tty; exit 3\n"
    )
    assert status == 3 and b"  a  b" in shown and b"/dev/pts/" in shown
    # A port of the container's loopback, of a job that has no network.
    forward = world.start("forward", name, "0:6006", *where)
    assert forward.returncode is None
    assert forward.wait(60) == 2  # 0 is no port
    forward = world.start("forward", name, f"{free_port()}:6006", *where)
    assert forward.stderr is not None
    address = forward.stderr.readline().decode().split()[0]
    for _ in range(2):
        with urllib.request.urlopen(f"{address}/artefacts/answer", timeout=120) as answer:
            assert answer.read() == b"42"
    forward.send_signal(signal.SIGINT)
    assert forward.wait(60) == 0
    if connection == "ssh":
        check_board(world, name, *where)
    world.run("exec", name, *where, "--", "touch", "/checkpoints/end")
    assert world.run("attach", name, *where).returncode == 0
    ended = world.run("exec", name, *where, "--", "true")
    assert ended.returncode == 3 and b"has ended" in ended.stderr


def check_board(world: World, job: str, *where: str | Path) -> None:
    """TensorBoard itself reads the curves of the running job, and ends with the command."""
    if not (shutil.which("tensorboard") or shutil.which("uvx")):
        pytest.skip("no tensorboard and no uvx")
    board = world.start("board", job, *where)
    assert board.stderr is not None
    address = board.stderr.readline().decode().split()[0]

    def tags() -> dict[str, dict[str, object]]:
        with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=120) as answer:
            found: dict[str, dict[str, object]] = json.load(answer)
            return found

    assert set(wait_until(tags)[f"{job}/artefacts"]) == {"epoch_accuracy", "Loss/train"}
    # Other accounts of this machine do not know the path.
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(urllib.parse.urljoin(address, "/data/plugin/scalars/tags"), timeout=120)
    board.send_signal(signal.SIGTERM)
    assert board.wait(60) == 0
    with pytest.raises(OSError):
        tags()


def free_port() -> int:
    """A port of this machine that nothing uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
