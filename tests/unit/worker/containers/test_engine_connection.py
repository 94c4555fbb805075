"""How the engine is reached quickly: the SDK without what it seldom uses, and questions without the SDK."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from train_classifier.core.errors import NotReady
from train_classifier.worker.containers import engine

IMPORT = """
import sys
from train_classifier.worker.containers import engine
engine._import_sdk()
assert "docker" in sys.modules
print([name for name in engine.RARELY_USED if name in sys.modules])
import requests
answer = requests.models.Response()
answer._content = "größer als zuvor, und schöner".encode()
# No encoding is known: only now the text is looked at.
print("gr" in answer.text, answer.apparent_encoding is not None)
print([name for name in ("chardet", "charset_normalizer") if name in sys.modules] != [])
"""


def test_sdk_is_imported_without_what_it_seldom_uses() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (["[]", "True True", "True"], "")


def answering(path: Path, answer: bytes) -> threading.Thread:
    """An engine that answers one question."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)

    def serve() -> None:
        connection, _ = server.accept()
        with connection, server:
            connection.recv(1000)
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_question_without_the_sdk(tmp_path: Path) -> None:
    thread = answering(tmp_path / "s", b"HTTP/1.0 200 OK\r\nApi-Version: 1.41\r\nServer: Docker/1\r\n\r\nOK")
    assert engine.ask(str(tmp_path / "s"), "/_ping", 20) == (
        {"api-version": "1.41", "server": "Docker/1"},
        b"OK",
    )
    thread.join(10)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 500 no\r\n\r\nbroken", b"\xff\xfe"])
def test_engine_that_answers_nonsense_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    thread = answering(tmp_path / "s", answer)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")
    with pytest.raises(NotReady, match="does not answer"):
        engine.connect()
    thread.join(10)
