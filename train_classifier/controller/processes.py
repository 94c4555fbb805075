"""The programs that a connection to a host runs: their input, output and error messages."""

import contextlib
import os
import re
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence

from train_classifier.core.errors import NotReady

#: Receives the number of bytes that rsync has transferred.
Progress = Callable[[int], None]
#: Bytes kept from the end of a program's standard error.
ERRORS_BYTES = 65536
#: Most bytes of one answer of a host; the largest lists tens of thousands of jobs.
MOST_BYTES = 64 << 20


class TooMuch(Exception):
    """Raised when an answer has more than `MOST_BYTES`."""


class NoOutput(Exception):
    """Raised when a program printed nothing for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def start(argv: Sequence[str], own_session: bool) -> "subprocess.Popen[bytes]":
    """Start a program with all three streams as pipes. Raises NotReady when it is not installed.

    With `own_session` the terminal's Ctrl-C does not reach it.
    """
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Tools print English, so that their messages can be parsed.
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=own_session,
        )
    except FileNotFoundError as error:
        raise NotReady(f"{argv[0]} is not installed on this machine.", f"Install {argv[0]}.") from error


def output(process: "subprocess.Popen[bytes]", data: bytes, timeout: float) -> tuple[int, bytes, bytes]:
    """Write a program's input; return its exit status, its output and the end of its standard error.

    Raises NoOutput when it has not ended after `timeout` seconds, and TooMuch; the caller kills it then.
    """
    assert process.stdout
    end = time.monotonic() + timeout
    errors = bytearray()
    threads = _exchange(process, data, errors)
    printed = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, end - time.monotonic())):
            block = os.read(process.stdout.fileno(), 1 << 18)
            if not block:
                break
            printed += block
            if len(printed) > MOST_BYTES:
                raise TooMuch
    try:
        status = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise NoOutput(timeout) from None
    for thread in threads:
        thread.join(5)
    return status, bytes(printed), bytes(errors)


def _exchange(
    process: "subprocess.Popen[bytes]", data: bytes, errors: bytearray
) -> tuple[threading.Thread, threading.Thread]:
    """Write a program's input and collect the end of its standard error while the caller reads its output."""
    assert process.stdin and process.stderr
    stdin, stderr = process.stdin, process.stderr

    def write_input() -> None:
        with contextlib.suppress(BrokenPipeError), stdin:
            stdin.write(data)

    def read_errors() -> None:
        while block := os.read(stderr.fileno(), 65536):
            errors.extend(block)
            del errors[:-ERRORS_BYTES]

    threads = (
        threading.Thread(target=write_input, daemon=True),
        threading.Thread(target=read_errors, daemon=True),
    )
    for thread in threads:
        thread.start()
    return threads


def lines(
    process: "subprocess.Popen[bytes]", data: bytes, timeout: float
) -> Generator[bytes, None, tuple[int, bytes]]:
    """Write a program's input and yield its output by lines; the return value is (status, standard error).

    Raises NoOutput after `timeout` seconds without output, and TooMuch for a line that is too long.
    """
    assert process.stdin and process.stdout and process.stderr
    errors = bytearray()
    try:
        # A request is small and fits into the pipe, so this does not block even if the program reads it late.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(data)
        yield from _printed(process, errors, timeout)
        try:
            status = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise NoOutput(30) from None
        # Do not read until its end: the master process of a shared connection may keep it open.
        os.set_blocking(process.stderr.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while block := os.read(process.stderr.fileno(), 1 << 16):
                errors += block
        return status, bytes(errors[-ERRORS_BYTES:])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _printed(
    process: "subprocess.Popen[bytes]", errors: bytearray, timeout: float
) -> Generator[bytes, None, None]:
    """Yield the lines of standard output until its end; standard error goes into `errors`."""
    assert process.stdout and process.stderr
    out, err = process.stdout.fileno(), process.stderr.fileno()
    parts: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        selector.register(err, selectors.EVENT_READ)
        end = time.monotonic() + timeout
        while out in selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                raise NoOutput(timeout)
            for key, _ in ready:
                block = os.read(key.fd, 1 << 18)
                if not block:
                    selector.unregister(key.fd)
                elif key.fd == err:
                    errors += block
                    del errors[:-ERRORS_BYTES]
                else:
                    *complete, line_start = block.split(b"\n")
                    for piece in complete:
                        parts.append(piece)
                        yield b"".join(parts)
                        parts.clear()
                        size = 0
                    parts.append(line_start)
                    size += len(line_start)
                    if size > MOST_BYTES:
                        raise TooMuch
                    # Restart the time here, because the caller may take long for each line.
                    end = time.monotonic() + timeout
    if any(parts):
        yield b"".join(parts)


def run_rsync(
    process: "subprocess.Popen[bytes]", data: bytes, progress: Progress | None
) -> tuple[int, bytes]:
    """Write rsync's file list, read its progress, and return its exit status and standard error."""
    assert process.stdout and process.stderr
    stdout, stderr = process.stdout, process.stderr
    errors = bytearray()
    threads = _exchange(process, data, errors)
    try:
        line_start = b""
        while block := os.read(stdout.fileno(), 65536):
            lines = re.split(rb"[\r\n]", line_start + block)
            line_start = lines.pop()[-4096:]
            for line in reversed(lines):
                match = re.match(rb"\s*(\d+)\s+\d+%", line)
                if match and progress:
                    progress(int(match[1]))
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
    return status, bytes(errors)
