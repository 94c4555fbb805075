"""A TCP line that a test can cut, freeze and mend: what happens to connections, without touching the network."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Line:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`.

    `cut()` closes every connection and refuses new ones, `freeze()` swallows bytes in silence as a half-open
    connection does, `mend()` lets new connections through.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = threading.Event()
        self._whole.set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        #: Connections that went through.
        self.opened = 0
        #: Bytes that went through, both ways.
        self.bytes = 0
        #: Cut by itself once this many bytes went through.
        self.cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Close every connection; new ones are closed as soon as they come."""
        self._whole.clear()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def freeze(self) -> None:
        """Deliver nothing any more and close nothing."""
        self._flowing.clear()

    def mend(self) -> None:
        """Let everything through again. Frozen connections are gone for good."""
        if not self._flowing.is_set():
            self.cut()
            self._flowing.set()
        self._whole.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if not self._whole.is_set():
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self.opened += 1
            with self._lock:
                self._sockets |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                self.bytes += len(data)
                if self.cut_after is not None and self.bytes >= self.cut_after:
                    self.cut_after = None
                    self.cut()
                    return
                sink.sendall(data)
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
