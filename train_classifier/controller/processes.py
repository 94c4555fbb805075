"""The programs that a connection to a host runs: their input, their output, and what they complain of."""

import contextlib
import os
import re
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence

from train_classifier.core.errors import NotReady

#: Bytes and the total that rsync has told of; None as long as it does not know.
Progress = Callable[[int, int | None], None]
#: Of what a program complains the end is kept.
COMPLAINTS_BYTES = 65536


class Silent(Exception):
    """A program printed nothing for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def start(argv: Sequence[str], own_session: bool) -> "subprocess.Popen[bytes]":
    """Start a program with all three streams as pipes. Raises NotReady when it is not installed.

    `own_session` keeps the terminal's Ctrl-C from it.
    """
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=own_session,
        )
    except FileNotFoundError as error:
        raise NotReady(f"{argv[0]} is not installed on this machine.", f"Install {argv[0]}.") from error


def _environment() -> dict[str, str]:
    """Tools answer in English, so that their words can be understood."""
    return {**os.environ, "LC_ALL": "C"}


def lines(
    process: "subprocess.Popen[bytes]", data: bytes, silence: float
) -> Generator[bytes, None, tuple[int, bytes]]:
    """Give a program its input and yield what it prints line by line; the value is (status, complaints).

    Raises Silent after `silence` seconds without a word.
    """
    assert process.stdin and process.stdout and process.stderr
    complaints = bytearray()
    try:
        # A request is small: it fits the pipe, whoever reads it when.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(data)
        yield from _printed(process, complaints, silence)
        try:
            status = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise Silent(30) from None
        # Not to its end: a shared connection's master may keep it open.
        os.set_blocking(process.stderr.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while block := os.read(process.stderr.fileno(), 1 << 16):
                complaints += block
        return status, bytes(complaints[-COMPLAINTS_BYTES:])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _printed(
    process: "subprocess.Popen[bytes]", complaints: bytearray, silence: float
) -> Generator[bytes, None, None]:
    """Yield the lines of standard output until its end; standard error goes into `complaints`."""
    assert process.stdout and process.stderr
    out, err = process.stdout.fileno(), process.stderr.fileno()
    parts = list[bytes]()
    with selectors.DefaultSelector() as waiting:
        waiting.register(out, selectors.EVENT_READ)
        waiting.register(err, selectors.EVENT_READ)
        until = time.monotonic() + silence
        while out in waiting.get_map():
            ready = waiting.select(max(0.0, until - time.monotonic()))
            if not ready:
                raise Silent(silence)
            for key, _ in ready:
                block = os.read(key.fd, 1 << 18)
                if not block:
                    waiting.unregister(key.fd)
                elif key.fd == err:
                    complaints += block
                    del complaints[:-COMPLAINTS_BYTES]
                else:
                    *whole, rest = block.split(b"\n")
                    for piece in whole:
                        parts.append(piece)
                        yield b"".join(parts)
                        parts.clear()
                    parts.append(rest)
                    # From here, since whoever takes the lines may take long.
                    until = time.monotonic() + silence
    if any(parts):
        yield b"".join(parts)


def attend_rsync(
    process: "subprocess.Popen[bytes]", data: bytes, progress: Progress | None
) -> tuple[int, bytes]:
    """Feed rsync its list, read its progress, and return its exit status and what it complained of."""
    assert process.stdin and process.stdout and process.stderr
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    complaints = bytearray()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), stdin:
            stdin.write(data)

    def listen() -> None:
        while block := os.read(stderr.fileno(), 65536):
            complaints.extend(block)
            del complaints[:-COMPLAINTS_BYTES]

    threads = [threading.Thread(target=feed, daemon=True), threading.Thread(target=listen, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        rest = b""
        while block := os.read(stdout.fileno(), 65536):
            lines = re.split(rb"[\r\n]", rest + block)
            rest = lines.pop()[-4096:]
            for line in reversed(lines):
                found = re.match(rb"\s*(\d+)\s+(\d+)%", line)
                if found and progress:
                    sent, percent = int(found[1]), int(found[2])
                    progress(sent, sent * 100 // percent if percent else None)
                    break
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    for thread in threads:
        thread.join(5)
    stdout.close()
    stderr.close()
    return status, bytes(complaints)
