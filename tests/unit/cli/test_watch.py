"""--watch on a terminal: in the same place, within its height, and gone with Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios

from train_classifier.cli import app
from train_classifier.core.text import without_escapes

PROGRAM = """
import sys
from train_classifier.cli.runs import watch
from train_classifier.core.errors import NotReady
watch.PAUSE_S = 0.01
looks = iter(range(10**9))
def show(console):
    look = next(looks)
    if look == 1:
        raise NotReady("gpu-1 does not answer")
    console.out("\\n".join(["HEAD", *(f"row {n} of look {look}" for n in range(30))]))
    console.say("remark")
sys.exit(watch.repeat(show, False))
"""


def test_page_is_replaced_until_ctrl_c() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
    # The size is the terminal's, whatever this machine's variables say.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm", "GITHUB_ACTIONS": ""},
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"of look 4" not in shown:
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert process.wait(60) == 0
    _, first, second, third, *_ = shown.decode().split("\x1b[J")
    assert "gpu-1 does not answer" in second
    lines = without_escapes(third).splitlines()
    assert [line.strip() for line in lines[1:9]] == [
        "HEAD", "… 25 more", *(f"row {n} of look 2" for n in range(25, 30)), "remark",
    ]  # fmt: skip
    # A page ends with the way back to its beginning: nine lines of ten.
    assert first.endswith("\x1b[9F") and third.endswith("\x1b[9F")


def test_without_a_terminal_it_is_refused() -> None:
    assert app.run(["list", "--watch"]) == 2
    assert app.run(["status", "--watch", "--json"]) == 2
