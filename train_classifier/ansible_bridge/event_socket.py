"""Sends events and log bytes from the action plugins to the command line, over a private Unix socket.

Bytes are not changed, and nothing goes through ansible-runner. A frame is a letter, a four-byte length and
the payload: `E` an event as JSON, `L` log bytes, `Q` a question and `A` its answer, both JSON.
"""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_classifier.controller.events import Reporter

#: The variable with the path of the socket, for the plugins.
VARIABLE = "TRAIN_CLASSIFIER_SINK"
HEAD = struct.Struct(">cI")


def _send(connection: socket.socket, kind: bytes, payload: bytes) -> None:
    connection.sendall(HEAD.pack(kind, len(payload)) + payload)


def _receive(connection: socket.socket) -> tuple[bytes, bytes] | None:
    head = _receive_bytes(connection, HEAD.size)
    if head is None:
        return None
    kind, length = HEAD.unpack(head)
    payload = _receive_bytes(connection, length)
    return None if payload is None else (kind, payload)


def _receive_bytes(connection: socket.socket, count: int) -> bytes | None:
    buffer = bytearray(count)
    view, received = memoryview(buffer), 0
    while received < count:
        size = connection.recv_into(view[received:])
        if not size:
            return None
        received += size
    return bytes(buffer)


class SinkReporter:
    """The plugins' end: a Reporter. Raises OSError when the command has ended."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lock = threading.Lock()

    def event(self, event: str, **fields: Any) -> None:
        """Send one event."""
        with self._lock:
            _send(self._socket, b"E", json.dumps({"event": event, **fields}).encode())

    def log(self, data: bytes) -> None:
        """Send log bytes, at most a frame at a time."""
        with self._lock:
            _send(self._socket, b"L", data)

    def ask(self, question: Any) -> Any:
        """Return the command line's answer to a question."""
        with self._lock:
            _send(self._socket, b"Q", json.dumps(question).encode())
            answer = _receive(self._socket)
        if answer is None:
            raise ConnectionError("the train-classifier command has ended")
        return json.loads(answer[1])

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Sink:
    """The command line's end: passes what arrives to `report`, in order, and answers questions."""

    def __init__(self, path: Path, report: Reporter, answer: Callable[[Any], Any]) -> None:
        self.path = path
        self._report = report
        self._answer = answer
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(8)
        threading.Thread(target=self._accept, daemon=True, name="sink").start()

    def close(self, drain: bool = True) -> None:
        """Stop listening; with `drain`, pass on what has already arrived first."""
        for thread in list(self._threads) if drain else ():
            thread.join(5)
        self._closed = True
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError), connection:
            while (frame := _receive(connection)) is not None and not self._closed:
                kind, payload = frame
                if kind == b"L":
                    with self._lock:
                        self._report.log(payload)
                elif kind == b"E":
                    fields = json.loads(payload)
                    with self._lock:
                        self._report.event(fields.pop("event"), **fields)
                elif kind == b"Q":
                    _send(connection, b"A", json.dumps(self._answer(json.loads(payload))).encode())
