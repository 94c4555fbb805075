"""Retries after a lost connection: how long, for which errors, and with which messages."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train_classifier.controller import fetch, follow, order, steps
from train_classifier.controller.ssh_errors import Unreachable
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import ExitCode, NothingDelivered, NotReady, OutOfTouch
from train_classifier.core.job import JobSpec, Repository

HOST = RemoteHost("gpu1")


class MessageReporter:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def event(self, event: str, **fields: Any) -> None:
        self.messages.append(f"{event}: {fields.get('text')}")

    def log(self, data: bytes) -> None:
        """No test here has a log."""


def test_lost_connection_and_reconnection_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    tries = iter([Unreachable("The connection to gpu1 was cut."), Unreachable("again"), None])

    def action() -> str:
        error = next(tries)
        if error:
            raise error
        return "value"

    reporter = MessageReporter()
    assert follow.retry_while_unreachable(HOST, "id", action, reporter) == "value"
    assert len(reporter.messages) == 2
    assert "Trying again" in reporter.messages[0] and "Connected to gpu1 again" in reporter.messages[1]


def test_each_note_of_a_job_is_reported_once() -> None:
    statuses = [
        {"version": 1, "notes": ["one"], "message": "one"},
        {"version": 2, "message": "two", "notes": ["one", "two"]},
        {"version": 2, "notes": ["one", "two"]},
    ]
    answers: list[dict[str, Any]] = [{"status": status} for status in statuses]
    answers[-1]["result"] = {}
    reporter = MessageReporter()
    follow.follow(HOST, "id", reporter, answers=iter(answers))
    assert [words for words in reporter.messages if words.startswith("message")] == [
        "message: one",
        "message: two",
    ]


def test_figures_are_reported_as_they_come() -> None:
    status = {"version": 1, "state": "running"}
    answers = [
        {"status": status, "figures": {"gpus": []}},
        {"status": status},
        {"status": status, "figures": None},
        {"status": {**status, "version": 2}, "result": {"exit_code": 0}},
    ]
    events = []

    class Recorder(MessageReporter):
        def event(self, event: str, **fields: Any) -> None:
            events.append((event, fields.get("figures")))

    follow.follow(HOST, "id", Recorder(), answers=iter(answers))
    assert [fields for event, fields in events if event == "figures"] == [{"gpus": []}]


@pytest.mark.parametrize("is_watched", [True, False])
def test_host_is_asked_for_figures_where_somebody_watches(is_watched: bool) -> None:
    """Without a live line nothing on the host looks at the model's files."""
    requests = []

    class Host(RemoteHost):
        def stream(self, request: dict[str, Any], answer_timeout: float) -> Iterator[dict[str, Any]]:
            requests.append(request["follow"] if request["verb"] == "submit" else request)
            status = {"version": 1, "state": "finished"}
            yield {"id": "id"} if request["verb"] == "submit" else {"status": status, "result": {}}

    spec = JobSpec("20260101-000000-00000000", "m", Repository("r", "0" * 16))
    one = order.Order(spec, "/r", "", "/r/artefacts.tar.gz", is_watched=is_watched)
    answers = steps.start(Host("gpu1"), one, {}, MessageReporter())
    # The connection was cut: another stream is asked for.
    assert steps.follow(Host("gpu1"), one, answers, MessageReporter()) == {}
    assert [request["figures"] for request in requests] == [is_watched] * 2


@pytest.mark.parametrize("kind", ["host-key", "key-permissions", "passphrase"])
def test_final_error_is_not_retried(kind: str) -> None:
    def action() -> None:
        raise Unreachable("refused", kind=kind)

    with pytest.raises(OutOfTouch) as caught:
        follow.retry_while_unreachable(HOST, "the-id", action, MessageReporter(), lease_s=60)
    assert caught.value.code == ExitCode.OUT_OF_TOUCH
    assert "within 1 min 0 s: train-classifier attach the-id" in str(caught.value.hint)


def test_worker_that_always_crashes_is_not_retried_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    count = 0

    def action() -> None:
        nonlocal count
        count += 1
        raise Unreachable("no answer", kind="no-answer")

    with pytest.raises(OutOfTouch):
        follow.retry_while_unreachable(HOST, "id", action, MessageReporter())
    assert count == follow.NO_ANSWERS


def test_lost_connection_before_start_is_not_ready() -> None:
    class Order:
        patience_s = 0.0
        spec = type("Spec", (), {"id": "id"})()

    def action() -> None:
        raise Unreachable("The connection to gpu1 was cut.", "Check the network.")

    with pytest.raises(NotReady) as caught:
        steps._retry_before_start(HOST, Order(), action, MessageReporter())  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.NOT_READY


def test_log_bytes_are_unchanged() -> None:
    data = bytes(range(256)) + b"\r\n\xff"
    assert follow.log_bytes({"data": base64.b64encode(zlib.compress(data)).decode()}) == data
    assert follow.log_bytes({"data": ""}) == b""


def test_all_file_names_are_transferred_unchanged() -> None:
    names = [b"a b/", b"a b/new\nline", b"\xff\xfe", b"{{ x }}"]
    assert order.unpack_names(order.pack_names(names)) == names


class ArchiveHost(RemoteHost):
    """A host whose archive is `content`; counts the pulls."""

    content = b"archive"
    pulls = 0

    def pull(self, _job: str, target: Path, _progress: Any = None) -> None:
        self.pulls += 1
        target.write_bytes(self.content)


@pytest.mark.parametrize(
    ("received", "pulls"), [(b"archive", 0), (b"arch", 1), (b"ARCHIVE", 1), (None, 1)], ids=str
)
def test_archive_in_result_is_not_fetched_again(received: bytes | None, pulls: int, tmp_path: Path) -> None:
    """It is verified like any other: a damaged or incomplete one is fetched."""
    host, output, job = ArchiveHost("gpu1"), tmp_path / "artefacts.tar.gz", "20260101-000000-00000000"
    archive = {"bytes": 7, "sha256": hashlib.sha256(b"archive").hexdigest()}
    if received is not None:
        fetch.write_part_file(output, job, received)
    fetch.fetch(host, job, archive, output, MessageReporter())
    assert output.read_bytes() == b"archive" and host.pulls == pulls
    assert list(tmp_path.iterdir()) == [output]


def test_missing_folder_of_output_is_made_but_no_link_followed(tmp_path: Path) -> None:
    host, job = ArchiveHost("gpu1"), "20260101-000000-00000000"
    archive = {"bytes": 7, "sha256": hashlib.sha256(b"archive").hexdigest()}
    output = tmp_path / "new" / "folder" / "artefacts.tar.gz"
    fetch.fetch(host, job, archive, output, MessageReporter())
    assert output.read_bytes() == b"archive"
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(NothingDelivered, match="cannot be written"):
        fetch.fetch(host, job, archive, tmp_path / "link" / "below" / "a.tgz", MessageReporter())
    assert not (tmp_path / "new" / "below").exists()


@pytest.mark.parametrize(
    ("name", "failed"),
    [("artefacts.tar.gz", "artefacts-JOB.tar.gz"), ("v1.2.tgz", "v1.2-JOB.tgz"), ("plain", "plain-JOB")],
)
def test_archive_of_failed_job_goes_beside_that_of_last_good_one(
    name: str, failed: str, tmp_path: Path
) -> None:
    output, job = tmp_path / name, "20260101-000000-00000000"
    beside = tmp_path / failed.replace("JOB", job)
    assert order.archive_path(output, job, {"exit_code": 4}, keeps_good=True) == beside
    assert order.archive_path(output, job, {"exit_code": 0}, keeps_good=True) == output
    assert order.archive_path(output, job, {"exit_code": 4}, keeps_good=False) == output
    # Those that a killed fetch left are removed by the next one.
    for path in (output, beside):
        fetch.write_part_file(path, job, b"part")
    (tmp_path / f".another-{name}.{job}.part").touch()
    fetch.remove_old_part_files(output)
    assert [path.name for path in tmp_path.iterdir()] == [f".another-{name}.{job}.part"]


def test_part_file_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fetch.write_part_file(tmp_path / "file" / "artefacts.tar.gz", "20260101-000000-00000000", b"archive")
    # Another fetch of this job writes its part file.
    output = tmp_path / "artefacts.tar.gz"
    part = tmp_path / fetch.part_name(output, "20260101-000000-00000000")
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fetch.write_part_file(output, "20260101-000000-00000000", b"archive")
    assert part.read_bytes() == b""
