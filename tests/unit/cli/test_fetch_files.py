"""`fetch JOB PATH`: single files of an archive, which holds what a stranger wrote, and where they land."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answering_host import LyingHost

from train_classifier.cli.console import Console
from train_classifier.controller import fetch
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import ExitCode, NothingDelivered
from train_classifier.core.job import SCHEMA, JobSpec, Repository

OLD = "20260101-000000-00000001"


@pytest.fixture
def hosts() -> Iterator[Path]:
    """The folder of the hosts' states; the account of root's jobs must reach it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def pack(state_dir: Path, job: str, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    """Give a finished job an archive with these members, by name."""
    folder = state_dir / "jobs" / job
    folder.mkdir(parents=True)
    state_dir.chmod(0o755)
    spec = JobSpec(id=job, model="mnist", repository=Repository("r", "0" * 16))
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    status = {"schema": SCHEMA, "id": job, "model": "mnist", "version": 1, "state": "finished"}
    (folder / "status.json").write_text(json.dumps({**status, "updated": 0.0, "times": {}}))
    path = folder / "artefacts.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o6777
                tar.addfile(member, io.BytesIO(content))
    archive = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    result = {"outcome": "trained", "exit_code": 0, "reason": None, "archive": archive, "gpus": []}
    (folder / "result.json").write_text(json.dumps({**result, "finished": 1.0}))


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_single_files_come_without_the_archive(
    tmp_path: Path, hosts: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = os.urandom(3 << 20)
    files: dict[str, bytes | tarfile.TarInfo] = {
        "artefacts/model.keras": large, "artefacts/logs/a/events": b"a", "artefacts/logs/b": b"",
        "artefacts/logsx": b"no", "artefacts/\udcff\x1b": b"odd", "job/manifest.json": b"{}",
        "artefacts/last": link("artefacts/last", "model.keras"),
        "artefacts/shadow": link("artefacts/shadow", "/etc/shadow", tarfile.LNKTYPE),
    }  # fmt: skip
    pack(hosts / "one", OLD, files)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    code, out, err = command("fetch", OLD, "./artefacts/model.keras/", "artefacts/logs", "--json")
    assert code == 0, err
    shown = {file["path"]: file["bytes"] for file in json.loads(out)["files"]}
    assert shown == {"artefacts/model.keras": len(large), "artefacts/logs/a/events": 1, "artefacts/logs/b": 0}
    assert (here / "artefacts/model.keras").read_bytes() == large
    files = (path for path in here.rglob("*") if path.is_file())
    assert {str(path.relative_to(here)) for path in files} == set(shown)
    assert not (here / "artefacts/model.keras").stat().st_mode & 0o7111
    # Once more: what is here stays, and is named; what is new comes.
    (here / "artefacts/logs/b").write_text("mine")
    code, _, err = command("fetch", OLD, "artefacts/logs", "artefacts/\udcff\x1b")
    assert code == ExitCode.NOTHING_DELIVERED and "artefacts/logs/b" in err and "\x1b" not in err
    assert (here / "artefacts/logs/b").read_text() == "mine"
    assert (here / "artefacts/\udcff\x1b").read_bytes() == b"odd"
    assert command("fetch", OLD, "artefacts/logs", "--force")[0] == 0
    assert (here / "artefacts/logs/b").read_bytes() == b""
    # Links are named; what is missing is said, with files of the same name.
    code, _, err = command("fetch", OLD, "artefacts/last", "artefacts/shadow", "manifest.json", "-o", "new")
    assert code == ExitCode.BAD_INPUT and "artefacts/last -> model.keras is a link" in err
    assert "left no 'manifest.json'" in err and "job/manifest.json" in err
    assert not any((here / "new").rglob("*"))
    assert list(here.rglob("*.part")) == []


def test_longest_names_are_fetched_and_what_cannot_be_written_is_said(
    tmp_path: Path, hosts: Path, command: Any
) -> None:
    """A file that is not complete yet has a longer name, which must not be too long."""
    longest = "x" * 255
    pack(hosts / "one", OLD, {f"artefacts/{longest}": b"x", "artefacts/a": b"a"})
    where = ("-o", str(tmp_path / "new"))
    assert command("fetch", OLD, "artefacts", *where)[0] == 0
    assert sorted(path.name for path in (tmp_path / "new/artefacts").iterdir()) == ["a", longest]
    (tmp_path / "file").mkdir()
    (tmp_path / "file/artefacts").write_text("")
    code, _, err = command("fetch", OLD, "artefacts/a", "-o", str(tmp_path / "file"))
    assert code == ExitCode.NOTHING_DELIVERED and "Not a directory" in err


def test_answer_without_what_belongs_to_it_is_no_bug(
    tmp_path: Path, hosts: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(hosts / "one", OLD, {"artefacts/a": b"a"})
    monkeypatch.chdir(tmp_path)

    class Forgetful(LyingHost):
        def call(self, request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
            return RemoteHost("one", state_dir=str(hosts / "one")).call(request, timeout)

    for lines in ([{"missing": None}], [{"missing": {}, "left_out": 3}]):
        code, _, err = command("fetch", OLD, "artefacts/a", on=[Forgetful(*lines)])
        assert code == ExitCode.NOTHING_DELIVERED, err
    # The job is said to have ended: it is not to be followed again.
    monkeypatch.setenv("TRAIN_CLASSIFIER_PATIENCE", "0.1s")
    code, _, err = command("fetch", OLD, "artefacts/a", on=[Forgetful({"file": "artefacts/a"})])
    assert (
        code == ExitCode.OUT_OF_TOUCH and f"is still on liar: train-classifier fetch {OLD} artefacts/a" in err
    )


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "artefacts/../../x", "", "."])
def test_paths_outside_of_the_archive_are_refused(hosts: Path, command: Any, path: str) -> None:
    pack(hosts / "one", OLD, {"artefacts/x": b"x"})
    code, _, err = command("fetch", OLD, path)
    assert code == ExitCode.BAD_INPUT and "is no path in the archive" in err


def test_no_link_here_is_followed(
    tmp_path: Path, hosts: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder may be somebody's checkout."""
    pack(hosts / "one", OLD, {"artefacts/x": b"x", "artefacts/y/z": b"z"})
    here, outside = tmp_path / "here", tmp_path / "outside"
    (here / "artefacts").mkdir(parents=True)
    outside.mkdir()
    (here / "artefacts/x").symlink_to(outside / "x")
    (here / "artefacts/y").symlink_to(outside)
    monkeypatch.chdir(here)
    assert command("fetch", OLD, "artefacts/y")[0] == ExitCode.NOTHING_DELIVERED
    assert command("fetch", OLD, "artefacts/x")[0] == ExitCode.NOTHING_DELIVERED
    assert command("fetch", OLD, "artefacts/x", "--force")[0] == 0
    assert (here / "artefacts/x").read_bytes() == b"x" and not (here / "artefacts/x").is_symlink()
    assert list(outside.iterdir()) == []


def test_link_that_comes_in_place_of_a_part_is_not_followed(
    tmp_path: Path, hosts: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may write to the folder while a file is fetched."""
    pack(hosts / "one", OLD, {"artefacts/x": b"x"})
    victim, here = tmp_path / "victim", tmp_path / "here"
    victim.write_text("mine")
    lock = fetch.locks.try_lock

    def swap(descriptor: int) -> bool:
        for part in here.rglob("*.part"):
            part.unlink()
            part.symlink_to(victim)
        return lock(descriptor)

    monkeypatch.setattr(fetch.locks, "try_lock", swap)
    command("fetch", OLD, "artefacts/x", "-o", str(here))
    assert victim.read_text() == "mine"


def test_single_files_are_bounded_and_a_damaged_archive_is_said(
    tmp_path: Path, hosts: Path, command: Any
) -> None:
    pack(hosts / "one", OLD, {"artefacts/a": b"a" * 100, "artefacts/b": os.urandom(1 << 20)})
    where = ("-o", str(tmp_path / "new"))
    code, _, err = command("fetch", OLD, "artefacts", "--max-size", "1000", *where)
    assert (
        code == ExitCode.BAD_INPUT and "artefacts/b and what comes before it have more than 1000 bytes" in err
    )
    archive = hosts / "one" / "jobs" / OLD / "artefacts.tar.gz"
    os.truncate(archive, archive.stat().st_size // 2)
    code, _, err = command("fetch", OLD, "artefacts/b", *where)
    assert code == ExitCode.NOT_READY and "is damaged" in err
    assert not (tmp_path / "new" / "artefacts" / "b").exists()


def test_byte_that_differs_from_what_was_packed_is_found(tmp_path: Path, hosts: Path, command: Any) -> None:
    content = os.urandom(1 << 20)
    pack(hosts / "one", OLD, {"artefacts/a": b"a" * 100, "artefacts/b": content})
    folder, where = hosts / "one" / "jobs" / OLD, ("-o", str(tmp_path / "new"))
    files = [{"path": "artefacts/a", "sha256": None}]
    files.append({"path": "artefacts/b", "sha256": hashlib.sha256(content).hexdigest()})
    (folder / "manifest.json").write_text(json.dumps({"artefacts": files}))
    assert command("fetch", OLD, "artefacts", *where)[0] == 0
    archive = folder / "artefacts.tar.gz"
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    archive.write_bytes(damaged)
    code, _, err = command("fetch", OLD, "artefacts/b", "--force", *where)
    assert code == ExitCode.NOT_READY and "is damaged: the checksum" in err
    assert (tmp_path / "new/artefacts/b").read_bytes() == content
    # A manifest that is no help keeps nothing back.
    for text in ("[]", "{", '{"artefacts": [1]}', '{"artefacts": {}}'):
        (folder / "manifest.json").write_text(text)
        assert command("fetch", OLD, "artefacts/a", "--force", *where)[0] == 0


def test_job_is_named_before_its_paths(command: Any) -> None:
    for path in ("artefacts/b", "b.keras"):
        code, _, err = command("fetch", path)
        assert code == ExitCode.BAD_INPUT and f"fetch last {path}" in err


def test_what_a_job_left_is_named_where_a_path_is_missing(tmp_path: Path, hosts: Path, command: Any) -> None:
    files = {f"artefacts/{number}.csv": b"1" for number in range(100)}
    pack(hosts / "one", OLD, {**files, "artefacts/model.keras": b"m", "job/log.txt": b"l"})
    where = ("-o", str(tmp_path / "new"))
    for path, words in (
        ("artefacts/17.cvs", "A file with a similar name: artefacts/17.csv"),
        ("artefacts/weights", "It left artefacts/0.csv, artefacts/1.csv, artefacts/2.csv"),
    ):
        code, _, err = command("fetch", OLD, path, *where)
        assert code == ExitCode.BAD_INPUT and words in err
    # Where it landed.
    code, _, err = command("fetch", OLD, "artefacts/model.keras", *where)
    assert code == 0 and f"{tmp_path}/new/artefacts/model.keras: 1 byte" in err


@pytest.mark.parametrize(
    ("path", "size", "words"),
    [
        *((path, 2, "nobody asked for") for path in ("artefacts/../x", "/etc/x", "artefactsx", "artefacts//x", "artefacts/\ud800")),
        ("artefacts/x", 11, "more than was asked for"), ("artefacts/x", -1, "damaged"),
    ],
)  # fmt: skip
def test_host_sends_only_what_was_asked_for(tmp_path: Path, path: str, size: int, words: str) -> None:
    content = b"x" * max(size, 0)
    data = base64.b64encode(zlib.compress(content)).decode()
    digest = hashlib.sha256(content).hexdigest()
    host = LyingHost({"file": path, "bytes": size}, {"data": data}, {"sha256": digest})
    fetched = fetch.FetchedFiles(["artefacts"], tmp_path)
    with pytest.raises(NothingDelivered, match=words):
        fetch.fetch_files(host, OLD, fetched, 10, Console(), 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()] and not fetched.files
