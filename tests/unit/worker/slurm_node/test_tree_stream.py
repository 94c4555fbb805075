"""Trees between two accounts: what arrives is what was sent, or nothing outside of its folder."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.errors import Cancelled, NotReady
from train_classifier.worker.slurm_node import pipe as messages
from train_classifier.worker.slurm_node import tree_stream
from train_classifier.worker.slurm_node.pipe import Malformed, Pipe
from train_classifier.worker.slurm_node.tree_stream import Room


def travel(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> None:
    """Send a tree from one end of a socket to the other."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = Pipe(ours.makefile("rb"), ours.makefile("wb"))
        thread = threading.Thread(target=tree_stream.send_tree, args=(sender, source, check))
        thread.start()
        try:
            receiver = Pipe(theirs.makefile("rb"), theirs.makefile("wb"))
            tree_stream.receive_tree(receiver, target, Room(target, 0))
        finally:
            theirs.shutdown(socket.SHUT_RDWR)
            thread.join()


def receive(target: Path, *sent: dict[str, Any] | bytes, floor: int = 0) -> None:
    """Receive what a stranger wrote."""
    data = io.BytesIO()
    writer = Pipe(io.BytesIO(), data)
    for message in sent:
        writer.send_block(message) if isinstance(message, bytes) else writer.send(message)
    data.seek(0)
    tree_stream.receive_tree(Pipe(data, io.BytesIO()), target, Room(target, floor))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_tree_arrives_as_it_was(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "large").write_bytes(os.urandom(messages.MOST_BLOCK + 5))
    (source / "a" / "empty").touch()
    (source / os.fsdecode(b"\xff name")).write_text("latin")
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o6755)
    os.utime(source / "run", ns=(1, 2_000_000_003))
    (source / "latest").symlink_to("a/b/large")
    (source / "away").symlink_to("/etc/passwd")
    with (source / "sparse").open("wb") as file:
        file.seek(1 << 40)
        file.write(b"end")
        file.truncate((1 << 40) + (1 << 20))
    os.mkfifo(source / "fifo")
    (source / "closed").mkdir()
    (source / "closed" / "file").write_text("1")
    (source / "closed").chmod(0)
    travel(source, target)
    names = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    assert names == {
        "a", "a/b", "a/b/large", "a/empty", os.fsdecode(b"\xff name"), "run", "latest", "away", "sparse",
        "closed", "closed/file",
    }  # fmt: skip
    assert (target / "latest").read_bytes() == (source / "a" / "b" / "large").read_bytes()
    assert os.readlink(target / "away") == "/etc/passwd"
    run = (target / "run").stat()
    assert (run.st_mode & 0o7777, run.st_mtime_ns) == (0o755, 2_000_000_003)
    sparse = (target / "sparse").stat()
    assert sparse.st_size == (1 << 40) + (1 << 20) and sparse.st_blocks * 512 < 16 << 20


FILE = {"mode": 0o644}
FOLDER = {"mode": 0o755, "folder": True}


@pytest.mark.parametrize(
    "sent",
    [
        [{"path": "../out", **FILE}],
        [{"path": "/tmp/out", **FILE}],
        [{"path": "a/../../out", **FILE}],
        [{"path": ".", **FOLDER}],
        [{"path": "", **FILE}],
        [{"path": "a//b", **FILE}],
        [{"path": "a\0b", **FILE}],
        [{"path": "\ud800", **FILE}],
        [{"path": 7, **FILE}],
        [{"path": "/".join("a" * 300), **FILE}],
        [{"path": "a" * 300, **FILE}],
        [{"path": "missing/file", **FILE}],
        [{"path": "link", "mode": 0o777, "link": ".."}, {"path": "link/out", **FILE}],
        [{"path": "link", "mode": 0o777, "link": "../out"}, {"path": "link", **FILE}],
        [{"path": "link", "mode": 0o777, "link": "../out"}, {"path": "link", **FOLDER}],
        [{"path": "link", "mode": 0o777, "link": ""}],
        [{"path": "link", "mode": 0o777, "link": "a" * 5000}],
        [{"path": "file", **FILE}, b"1", {"path": "file", **FILE}],
        [{"path": "file", **FILE}, b"1", {"path": "file/below", **FILE}],
        [{"path": "file", "mode": 0o10000}],
        [{"path": "file", "mode": "755"}],
        [{"path": "file"}],
        [b"a block of no file"],
        [{}],
    ],
)
def test_nothing_is_written_outside_of_the_folder(target: Path, sent: list[Any]) -> None:
    with pytest.raises(Malformed):
        receive(target, *sent, {"end": True})
    assert os.listdir(target.parent) == ["target"]


def test_no_entry_gets_a_special_bit_or_is_closed_to_its_owner(target: Path) -> None:
    entries = [{"path": "file", "mode": 0o7077}, b"1", {"path": "folder", "mode": 0o7022, "folder": True}]
    receive(target, *entries, {"path": "folder/file", "mode": 0}, {"end": True})
    modes = {path.name: path.stat().st_mode & 0o7022 for path in target.iterdir()}
    assert modes == {"file": 0, "folder": 0} and os.access(target / "folder" / "file", os.R_OK | os.W_OK)


def test_room_is_left_on_the_disk(target: Path) -> None:
    with pytest.raises(NotReady, match="no room"):
        receive(target, {"end": True}, floor=1 << 60)
    with pytest.raises(NotReady, match="larger than"):
        receive(target, {"path": "file", **FILE}, {"seek": 1 << 60}, {"end": True})
    # Looked at again while it fills: here the floor rises to what is free.
    room = Room(target, 0)
    room._floor = 1 << 60
    with pytest.raises(NotReady, match="no room"):
        for _ in range(tree_stream.LOOK_BYTES // messages.MOST_BLOCK):
            room.use(messages.MOST_BLOCK)
    with pytest.raises(NotReady, match="no room"):
        for _ in range(tree_stream.LOOK_ENTRIES):
            room.use(entries=1)


def test_sender_says_why_it_stops(tmp_path: Path, target: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("1")

    def check() -> None:
        raise Cancelled("enough")

    with pytest.raises(tree_stream.Stopped, match="enough"):
        travel(tmp_path / "source", target, check)


def test_tree_that_cannot_be_written_is_read_to_its_end(target: Path) -> None:
    data = io.BytesIO()
    writer = Pipe(io.BytesIO(), data)
    for message in ({"path": "file", **FILE}, {"seek": 7}, {"end": True}, {"done": True}):
        writer.send(message)
    data.seek(0)
    reader = Pipe(data, io.BytesIO())
    tree_stream.skip_rest(reader)
    assert reader.receive() == {"done": True}


def frame(kind: bytes, size: int, data: bytes) -> bytes:
    return messages.HEADER.pack(kind, size) + data


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EOFError),
        (frame(b"j", 10, b"{}"), EOFError),
        (frame(b"j", messages.MOST_OBJECT + 1, b"{}"), Malformed),
        (frame(b"d", messages.MOST_BLOCK + 1, b"1"), Malformed),
        (frame(b"x", 2, b"{}"), Malformed),
        (frame(b"j", 2, b"[]"), Malformed),
        (frame(b"j", 2, b"{:"), Malformed),
        (frame(b"j", 1, b"\xff"), Malformed),
        (frame(b"j", 200_000, b"[" * 200_000), Malformed),
        (frame(b"j", 20_005, json.dumps({"a": 0}).encode() + b" " * 19_996 + b"}"), Malformed),
    ],
)
def test_message_of_a_stranger_is_bounded(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Pipe(io.BytesIO(data), io.BytesIO()).receive()
