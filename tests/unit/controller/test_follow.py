"""Trying again: how long, for what, and what the person is told."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import zlib
from pathlib import Path
from typing import Any

import pytest

from train_classifier.controller import fetch, follow, steps
from train_classifier.controller.events import Silence
from train_classifier.controller.ssh_errors import Unreachable
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import ExitCode, NotReady, OutOfTouch

HOST = RemoteHost("gpu1")


class Told(Silence):
    def __init__(self) -> None:
        self.words: list[str] = []

    def event(self, event: str, **fields: Any) -> None:
        self.words.append(f"{event}: {fields.get('text')}")


def test_a_cut_is_said_once_and_its_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    tries = iter([Unreachable("The connection to gpu1 was cut."), Unreachable("again"), None])

    def act() -> str:
        error = next(tries)
        if error:
            raise error
        return "value"

    told = Told()
    assert follow.patiently(HOST, "id", act, told) == "value"
    assert len(told.words) == 2
    assert "Trying again" in told.words[0] and "In touch with gpu1 again" in told.words[1]


@pytest.mark.parametrize("kind", ["host-key", "key-permissions", "passphrase"])
def test_what_waiting_cannot_mend_ends_at_once(kind: str) -> None:
    def act() -> None:
        raise Unreachable("refused", kind=kind)

    with pytest.raises(OutOfTouch) as caught:
        follow.patiently(HOST, "the-id", act, Silence())
    assert caught.value.code == ExitCode.OUT_OF_TOUCH
    assert "train-classifier attach the-id" in str(caught.value.hint)


def test_a_worker_that_only_ever_crashes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    count = 0

    def act() -> None:
        nonlocal count
        count += 1
        raise Unreachable("no answer", kind="no-answer")

    with pytest.raises(OutOfTouch):
        follow.patiently(HOST, "id", act, Silence())
    assert count == follow.NO_ANSWERS


def test_before_the_start_out_of_touch_means_not_started() -> None:
    class Order:
        patience_s = 0.0
        spec = type("Spec", (), {"id": "id"})()

    def act() -> None:
        raise Unreachable("The connection to gpu1 was cut.", "Check the network.")

    with pytest.raises(NotReady) as caught:
        steps._before_start(HOST, Order(), act, Silence())  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.NOT_READY


def test_bytes_come_as_they_are() -> None:
    data = bytes(range(256)) + b"\r\n\xff"
    assert follow.unpack({"data": base64.b64encode(zlib.compress(data)).decode()}) == data
    assert follow.unpack({"data": ""}) == b""


def test_names_travel_whatever_they_are() -> None:
    names = [b"a b/", b"a b/new\nline", b"\xff\xfe", b"{{ x }}"]
    assert steps.unpack_names(steps.pack_names(names)) == names


class Pulled(RemoteHost):
    """A host whose archive is `content`; counts how often it is asked for it."""

    content = b"archive"
    pulls = 0

    def pull(self, _job: str, target: Path, _progress: Any = None) -> None:
        self.pulls += 1
        target.write_bytes(self.content)


@pytest.mark.parametrize(
    ("came", "pulls"), [(b"archive", 0), (b"arch", 1), (b"ARCHIVE", 1), (None, 1)], ids=str
)
def test_an_archive_that_came_with_the_result_is_not_fetched(
    came: bytes | None, pulls: int, tmp_path: Path
) -> None:
    """Verified like any other: what is damaged or cut short is fetched all the same."""
    host, output, job = Pulled("gpu1"), tmp_path / "artefacts.tar.gz", "20260101-000000-00000000"
    archive = {"bytes": 7, "sha256": hashlib.sha256(b"archive").hexdigest()}
    if came is not None:
        fetch.keep(output, job, came)
    fetch.fetch(host, job, archive, output, Silence())
    assert output.read_bytes() == b"archive" and host.pulls == pulls
    assert list(tmp_path.iterdir()) == [output]


def test_nothing_is_kept_where_nothing_can_be(tmp_path: Path) -> None:
    fetch.keep(tmp_path / "missing" / "artefacts.tar.gz", "20260101-000000-00000000", b"archive")
    # Nor in the way of another fetch of this job.
    output = tmp_path / "artefacts.tar.gz"
    part = tmp_path / fetch.part_name(output, "20260101-000000-00000000")
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fetch.keep(output, "20260101-000000-00000000", b"archive")
    assert part.read_bytes() == b""
