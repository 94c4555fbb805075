"""Messages between the two halves of a worker, strangers to each other: JSON objects and blocks of bytes.

Both halves read what the other one wrote within limits, whatever it claims.
"""

import json
import struct
from typing import IO, Any, Union

from train_classifier.core.errors import NotReady

#: Kind and length of what follows.
HEADER = struct.Struct(">cI")
OBJECT, BLOCK = b"j", b"d"
MOST_BLOCK = 1 << 20
#: An object may hold the metrics of a model, or the environment of a request.
MOST_OBJECT = 16 << 20

Message = Union[dict[str, Any], bytes]


class Pipe:
    """The way to the other half; only one thread reads, and one at a time writes."""

    def __init__(self, source: IO[bytes], sink: IO[bytes]) -> None:
        self._source = source
        self._sink = sink

    def send(self, message: dict[str, Any]) -> None:
        """Send an object. Raises OSError when the other half is gone."""
        self._write(OBJECT, json.dumps(message).encode())

    def send_block(self, data: bytes) -> None:
        """Send up to MOST_BLOCK bytes. Raises OSError when the other half is gone."""
        self._write(BLOCK, data)

    def _write(self, kind: bytes, data: bytes) -> None:
        self._sink.write(HEADER.pack(kind, len(data)) + data)
        self._sink.flush()

    def receive(self) -> Message:
        """Return the next message. Raises EOFError when the other half is gone, NotReady for a wrong one."""
        kind, size = HEADER.unpack(self._read(HEADER.size))
        if kind == BLOCK and size <= MOST_BLOCK:
            return self._read(size)
        if kind != OBJECT or size > MOST_OBJECT:
            raise Malformed
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Malformed from error
        if not isinstance(message, dict):
            raise Malformed
        return message

    def receive_object(self) -> dict[str, Any]:
        """Return the next message. Raises EOFError, and NotReady when it is no object."""
        message = self.receive()
        if isinstance(message, bytes):
            raise Malformed
        return message

    def _read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except ConnectionError:
            # It left without having read everything.
            data = b""
        if len(data) < size:
            raise EOFError
        return data


class Malformed(NotReady):
    """The other half sent what this version of the program does not send."""

    def __init__(self) -> None:
        super().__init__(
            "the person's and the service account's half of the worker do not understand each other",
            "both should be of one version: run site.yml for this node",
        )
