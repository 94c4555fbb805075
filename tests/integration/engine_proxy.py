"""A proxy before the engine's socket: it can stop, or cut one connection, while the engine runs on."""

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ENGINE = "/var/run/docker.sock"


class EngineProxy:
    """Forwards connections to the engine until it is stopped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "docker.sock"
        self.address = f"unix://{self.path}"
        self.cuts = 0
        #: Seconds that a request with these words waits before the engine gets it, and how many came.
        self.slow: tuple[bytes, float] = (b"", 0.0)
        self.slowed = 0
        self._cut: tuple[bytes, int] = (b"", 0)
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Listen, also again after `stop`."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        self.path.chmod(0o666)
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse new connections and cut those there are."""
        if self._listener is not None:
            # A close alone does not wake the thread that accepts.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.path.unlink(missing_ok=True)
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def cut_after(self, words: bytes, times: int) -> None:
        """Cut the connection after the engine got a request with these words, so many times."""
        self._cut = (words, times)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(ENGINE)
            with self._lock:
                self._open |= {client, engine}
            threading.Thread(target=self._move, args=(client, engine, True), daemon=True).start()
            threading.Thread(target=self._move, args=(engine, client, False), daemon=True).start()

    def _move(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if asks and self.slow[0] and self.slow[0] in data.partition(b"\r\n")[0]:
                    self.slowed += 1
                    time.sleep(self.slow[1])
                target.sendall(data)
                words, remaining = self._cut
                if asks and remaining and words in data.partition(b"\r\n")[0]:
                    self._cut = (words, remaining - 1)
                    self.cuts += 1
                    source.shutdown(socket.SHUT_RDWR)
                    return
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxied() -> Iterator[EngineProxy]:
    """Yield a proxy that listens."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        proxy = EngineProxy(Path(folder))
        proxy.start()
        try:
            yield proxy
        finally:
            proxy.stop()
