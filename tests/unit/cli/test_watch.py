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


RESIZED = """
import fcntl, itertools, struct, sys, termios
from train_classifier.cli.runs import watch
watch.PAUSE_S = 0.01
looks = itertools.count()
def show(console):
    look = next(looks)
    # While the first page is shown.
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80 if look == 0 else 20, 0, 0))
    console.out("x" * 50 + "\\n" + "\u4e2d" * 11 + "\\n" + "\u00e9" * 20)
    console.say(f"look {look}")
sys.exit(watch.repeat(show, False))
"""


def shown_until(program: str, word: bytes, **variables: str) -> str:
    """Run a program on a terminal of 10 rows and 40 columns until it shows a word, then press Ctrl-C."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
    # The size is the terminal's, whatever this machine's variables say.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm", "GITHUB_ACTIONS": "", "PYTHONIOENCODING": "utf-8", **variables},
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while word not in shown:
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert process.wait(60) == 0
    # The shell's prompt comes below the page.
    assert shown.endswith(b"\r\n\r\n")
    return shown.decode(variables.get("PYTHONIOENCODING", "utf-8"))


def test_page_is_replaced_until_ctrl_c() -> None:
    shown = shown_until(PROGRAM, b"of look 4")
    _, first, second, third, *_ = shown.split("\x1b[J")
    assert "gpu-1 does not answer" in second
    lines = without_escapes(third).splitlines()
    assert [line.strip() for line in lines[1:9]] == [
        "HEAD", "… 25 more", *(f"row {n} of look 2" for n in range(25, 30)), "remark",
    ]  # fmt: skip
    # A page ends with the way back to its beginning: nine lines of ten.
    assert first.endswith("\x1b[9F") and third.endswith("\x1b[9F")


def test_terminal_of_another_encoding_gets_what_it_can_show() -> None:
    assert "\r\n? 25 more\r\n" in shown_until(PROGRAM, b"of look 4", PYTHONIOENCODING="iso-8859-1")


def test_page_of_a_terminal_that_was_made_narrower_is_replaced_as_a_whole() -> None:
    # Of twenty columns each: the time needs two rows, then three, two (wide letters), one and one.
    assert "\r\nlook 0\r\n\x1b[9F\x1b[J" in shown_until(RESIZED, b"look 2")


def test_without_a_terminal_it_is_refused() -> None:
    assert app.run(["list", "--watch"]) == 2
    assert app.run(["status", "--watch", "--json"]) == 2
