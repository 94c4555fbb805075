"""The job's log: a FIFO that the container writes into, and log.txt that only the worker writes.

log.txt is the output byte for byte, except for declared secrets, which become `***`. It only grows, so that
readers can follow it by offset. After half of the limit the output goes to two alternating segments; at the
end their content is appended after one line that says how much is missing.
"""

import contextlib
import errno
import fcntl
import os
import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

from train_classifier.worker.state.files import write_bytes
from train_classifier.worker.system.host import Account

MASK = b"***"
READ_BYTES = 1 << 20
#: Seconds that `finish` continues to read if a process that could not be stopped still writes.
LAST_S = 10.0
#: Seconds without output after which a held-back beginning of a secret is shown, if it is short: at most
#: 1/SHARE of the secret's bytes.
QUIET_S = 0.25
SHARE = 4
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ exists since Python 3.10.


class Masker:
    """Replaces secrets in a stream, also across the boundaries of its blocks."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        values = {secret for secret in secrets if secret}
        # Programs print a value read from a file without its last newline.
        values |= {secret.strip(b"\r\n") for secret in values} - {b""}
        self.secrets = sorted(values)
        self.held_back = b""
        #: The end of the shown output, while it may be the beginning of a secret that is not complete yet.
        self.shown_end = b""

    def feed(self, data: bytes) -> bytes:
        """Return the output that can be shown; the longest end that may begin a secret is held back."""
        if not self.secrets:
            return data
        before = len(self.shown_end)
        data = self.shown_end + self.held_back + data
        hidden = self._hidden(data)
        cut = len(data) - max(self._beginning(data, secret) for secret in self.secrets)
        for start, end in hidden:
            # A secret that overlaps a possible incomplete one is decided together with it.
            if start < cut < end:
                cut = start
        if cut < before:
            # The shown output may still be the beginning of a secret.
            self.held_back = data[before:]
            return b""
        self.held_back, self.shown_end = data[cut:], b""
        return self._masked(data[:cut], hidden, before)

    def relax(self) -> bytes:
        """Return the held-back output if it reveals little of a secret, and store that it was shown.

        The output of a program that prints the first letter of a secret and waits is shown; that of a program
        that stops in the middle of a secret is not.
        """
        data = self.shown_end + self.held_back
        much = any(self._beginning(data, secret) * SHARE > len(secret) for secret in self.secrets)
        if not self.held_back or much or self._hidden(data):
            return b""
        output, self.held_back, self.shown_end = self.held_back, b"", data
        return output

    def flush(self) -> bytes:
        """Return the held-back output at the end of the stream."""
        before, data = len(self.shown_end), self.shown_end + self.held_back
        self.held_back = self.shown_end = b""
        return self._masked(data, self._hidden(data), before)

    def _hidden(self, data: bytes) -> list[tuple[int, int]]:
        spans = []
        for secret in self.secrets:
            at = data.find(secret)
            while at >= 0:
                spans.append((at, at + len(secret)))
                at = data.find(secret, at + 1)
        merged: list[tuple[int, int]] = []
        for start, end in sorted(spans):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    @staticmethod
    def _beginning(data: bytes, secret: bytes) -> int:
        """Return the length of the longest end of `data` that is a proper beginning of `secret`."""
        tail = data[-(len(secret) - 1) :] if len(secret) > 1 else b""
        at = tail.find(secret[:1])
        while at >= 0:
            if secret.startswith(tail[at:]):
                return len(tail) - at
            at = tail.find(secret[:1], at + 1)
        return 0

    @staticmethod
    def _masked(data: bytes, hidden: list[tuple[int, int]], shown: int) -> bytes:
        """Return the masked `data` after its first `shown` bytes, which were shown already."""
        pieces, at = [], shown
        for start, end in hidden:
            if shown < end <= len(data):
                pieces += [data[at : max(start, at)], MASK]
                at = end
        return b"".join([*pieces, data[at:]])


class LogFile:
    """log.txt with its limit; also used to complete the log of a job whose worker died."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.head = limit // 2
        self.segment = max(limit // 4, 1)
        self._old, self._new = path.with_name("log.tail.0"), path.with_name("log.tail.1")
        self._dropped = path.with_name("log.dropped")
        self.lost = 0
        self.error: Optional[OSError] = None
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._room = self.head - os.fstat(self._file.fileno()).st_size
        self._tail = open(self._new, "ab", buffering=0) if self._new.exists() else None  # noqa: SIM115
        os.fchmod(self._file.fileno(), 0o600)

    def write(self, data: bytes) -> None:
        """Append output. On a full disk, output is lost and counted in `lost`, but the model continues."""
        view = memoryview(data)
        try:
            if self._room > 0:
                written = self._file.write(view[: self._room]) or 0
                self._room -= written
                view = view[written:]
            while view:
                view = view[self._write_tail(view) :]
        except OSError as error:
            self.error = error
            self.lost += len(view)

    def _write_tail(self, view: memoryview) -> int:
        if self._tail is None:
            self._tail = open(self._new, "ab", buffering=0)  # noqa: SIM115
        room = self.segment - self._tail.tell()
        if room <= 0:
            self._tail.close()
            self._tail = None
            if self._old.exists():
                write_bytes(self._dropped, str(self._count() + self._old.stat().st_size).encode(), sync=False)
            os.replace(self._new, self._old)
            return 0
        return self._tail.write(view[:room]) or 0

    def _count(self) -> int:
        """Return the recorded number of bytes left out so far; 0 if a full disk left the record empty."""
        try:
            text = self._dropped.read_bytes().strip()
        except FileNotFoundError:
            return 0
        return int(text) if text.isdigit() else 0

    def close(self) -> None:
        """Append the end of a log that exceeded its limit, and how much is missing. Idempotent."""
        if self._file.closed:
            return
        if self._tail is not None:
            self._tail.close()
        try:
            missing = self._count() + self.lost
            if missing:
                text = f"\n[train-classifier: {missing} bytes of the log are missing here]\n"
                self._file.write(text.encode())
            for path in (self._old, self._new):
                if path.exists():
                    with open(path, "rb") as source:
                        while block := source.read(READ_BYTES):
                            self._file.write(block)
        except OSError as error:
            self.error = error
        finally:
            self._file.close()
            for path in (self._old, self._new, self._dropped):
                path.unlink(missing_ok=True)


def make_fifo(path: Path, account: Optional[Account] = None, mode: int = 0o600) -> None:
    """Create a FIFO in the caller's folder, for the job's account; `mode` is the access of that account.

    The caller opens the other end, which root can always do.
    """
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    if account is not None and account.uid != os.geteuid():
        os.chown(path, account.uid, account.gid)
        os.chmod(path, mode)


class Pump(threading.Thread):
    """Copies bytes from the FIFO into the log until `finish` is called."""

    def __init__(self, fifo: Path, log: LogFile, secrets: Sequence[bytes]) -> None:
        super().__init__(name="log", daemon=True)
        self.log = log
        self.masker = Masker(secrets)
        self.received = 0
        #: Called with the error when the disk is full or broken, once.
        self.on_error: Optional[Callable[[OSError], None]] = None
        #: Why the thread ended too early; None if it did not.
        self.failure: Optional[Exception] = None
        self._ended = threading.Event()
        # `finish` closes the second end, so that the first is readable and wakes the thread at once.
        self._wake_reader, self._wake_writer = os.pipe()
        self._reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # An own writer: without it the end of each writing process would look like the end of the log.
        self._writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._reader, _F_SETPIPE_SZ, READ_BYTES)
        except OSError as error:
            # An unprivileged user may have reached pipe-user-pages-soft: the default size is only slower.
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise

    def run(self) -> None:
        """Copy the model's output into the log, until the model has closed its end."""
        try:
            self._run()
        except Exception as error:
            self.failure = error

    def _run(self) -> None:
        last_output = time.monotonic()
        until: Optional[float] = None
        while until is None or time.monotonic() < until:
            ended = self._ended.is_set()
            if ended and until is None:
                until = time.monotonic() + LAST_S
            ready, _, _ = select.select(
                [self._reader, *([] if ended else [self._wake_reader])], [], [], 0 if ended else 0.1
            )
            data = self._read() if self._reader in ready else b""
            if data:
                last_output = time.monotonic()
                self.received += len(data)
                self._write(self.masker.feed(data))
            elif ended:
                break
            elif self.masker.held_back and time.monotonic() - last_output > QUIET_S:
                self._write(self.masker.relax())
        self._write(self.masker.flush())

    def _read(self) -> bytes:
        try:
            return os.read(self._reader, READ_BYTES)
        except BlockingIOError:
            return b""

    def _write(self, data: bytes) -> None:
        if not data:
            return
        self.log.write(data)
        if self.log.error is not None and self.on_error is not None:
            on_error, self.on_error = self.on_error, None
            # The message may fail on the same disk: continue to read, or the model would block.
            with contextlib.suppress(OSError):
                on_error(self.log.error)

    def finish(self) -> None:
        """Read the rest of the FIFO, after all writers have ended, and stop the thread. Idempotent."""
        if self._ended.is_set():
            return
        self._ended.set()
        os.close(self._wake_writer)
        if self.is_alive():
            self.join()
        os.close(self._wake_reader)
        os.close(self._reader)
        os.close(self._writer)
