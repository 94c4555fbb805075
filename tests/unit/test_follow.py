"""Trying again: how long, for what, and what the person is told."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import pytest

from train_classifier import follow, training
from train_classifier.errors import ExitCode, NotReady, OutOfTouch
from train_classifier.reporting import Silence
from train_classifier.ssh_errors import Unreachable
from train_classifier.transport import Host

HOST = Host("gpu1")


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
        training._before_start(HOST, Order(), act, Silence())  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.NOT_READY


def test_bytes_come_as_they_are() -> None:
    data = bytes(range(256)) + b"\r\n\xff"
    assert follow.unpack({"data": base64.b64encode(zlib.compress(data)).decode()}) == data
    assert follow.unpack({"data": ""}) == b""


def test_names_travel_whatever_they_are() -> None:
    names = [b"a b/", b"a b/new\nline", b"\xff\xfe", b"{{ x }}"]
    assert training.unpack_names(training.pack_names(names)) == names
