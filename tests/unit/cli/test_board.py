"""`board`: copies of event files that a stranger's model writes, and the TensorBoard that shows them."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from answering_host import LyingHost
from hosts.machine import free_port

from train_classifier.cli.console import Console
from train_classifier.cli.inside import tensorboard
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import locks
from train_classifier.core.errors import BadInput, ExitCode, NotReady
from train_classifier.core.job import SCHEMA, JobSpec, Repository

JOB = "20260101-000000-00000001"
#: Shows the files of --logdir below the path of --flagfile, as TensorBoard its curves.
SERVER = f"""#!{sys.executable}
import functools, http.server, os, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("words of tensorboard", flush=True)
if os.environ.get("BROKEN"):
    sys.exit(1)
name, _, prefix = pathlib.Path(options["--flagfile"]).read_text().strip().partition("=")
class Handler(http.server.SimpleHTTPRequestHandler):
    def translate_path(self, path):
        known, below = path.startswith(prefix + "/"), path.removeprefix(prefix)
        return super().translate_path(below if known and name == "--path_prefix" else "/none")
handler = functools.partial(Handler, directory=options["--logdir"])
http.server.ThreadingHTTPServer((options["--host"], int(options["--port"])), handler).serve_forever()
"""


@pytest.fixture
def job() -> Iterator[Path]:
    """The folder of a job that runs: its lock is held. The account of root's jobs must reach it."""
    # The worker of a look that was interrupted may write its program there for a moment.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        Path(state).chmod(0o755)
        folder = Path(state, "jobs", JOB)
        (folder / "workspace").mkdir(parents=True)
        spec = JobSpec(id=JOB, model="mnist", repository=Repository("r", "0" * 16))
        (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
        set_state(folder, "running")
        with locks.hold(folder / "lock"):
            yield folder


def set_state(folder: Path, state: str) -> None:
    status = {"schema": SCHEMA, "id": JOB, "model": "mnist", "version": 1, "state": state}
    (folder / "status.json").write_text(json.dumps({**status, "updated": 0.0, "times": {}}))
    if state == "finished":
        result = {"outcome": "trained", "exit_code": 0, "reason": None, "archive": None, "gpus": []}
        (folder / "result.json").write_text(json.dumps({**result, "finished": 1.0}))


def host_of(job: Path) -> RemoteHost:
    return RemoteHost("one", state_dir=str(job.parents[1]))


def copied(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_event_files_are_copied_while_they_grow_and_after_the_job(job: Path, tmp_path: Path) -> None:
    workspace, here = job / "workspace", tmp_path / "copy"
    logs, runs = workspace / "artefacts/logs", workspace / "runs/a"
    for folder in (logs, runs, workspace / "node_modules"):
        folder.mkdir(parents=True)
    (logs / "events.out.tfevents.1").write_bytes(b"first")
    (runs / "events.out.tfevents.2").write_bytes(b"x" * 700_000)
    (workspace / "node_modules/tfevents").write_bytes(b"no")
    (logs / "model.keras").write_bytes(b"no")
    # What a model may plant.
    (logs / "link.tfevents").symlink_to("/etc/passwd")
    (logs / "folder.tfevents").mkdir()
    os.mkfifo(logs / "pipe.tfevents")
    (workspace / "away").symlink_to("/etc")
    copy = tensorboard.EventCopy(host_of(job), JOB, here)
    assert copy.update()["files"] == 2 and not copy.is_finished
    names = ("artefacts/logs/events.out.tfevents.1", "runs/a/events.out.tfevents.2")
    assert copied(here) == {names[0]: b"first", names[1]: b"x" * 700_000}
    with (logs / "events.out.tfevents.1").open("ab") as file:
        file.write(b", second")
    # Only what is new comes: a change of what was copied is not seen.
    (here / names[0]).write_bytes(b"FIRST")
    copy.update()
    assert copied(here)[names[0]] == b"FIRST, second"
    # A shorter file is another one.
    (logs / "events.out.tfevents.1").write_bytes(b"anew")
    copy.update()
    assert copied(here)[names[0]] == b"anew"
    # The job ends: what was written since the last look is in the archive alone.
    with tarfile.open(job / "artefacts.tar.gz", "w:gz") as tar:
        for name, content in ((names[0], b"anew, last"), (f"workspace/{names[1]}", b"x" * 700_001)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    set_state(job, "finished")
    shutil.rmtree(workspace)
    copy.update()
    assert copy.is_finished
    assert copied(here) == {names[0]: b"anew, last", names[1]: b"x" * 700_001}


def test_damaged_archive_is_named(job: Path, tmp_path: Path) -> None:
    archive = job / "artefacts.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("artefacts/tfevents")
        member.size = 1_000_000
        tar.addfile(member, io.BytesIO(os.urandom(member.size)))
    # In the middle of the content, which is read after the member was found.
    os.truncate(archive, archive.stat().st_size // 2)
    set_state(job, "finished")
    shutil.rmtree(job / "workspace")
    with pytest.raises(NotReady, match="is damaged"):
        tensorboard.EventCopy(host_of(job), JOB, tmp_path / "copy").update()


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("../tfevents", 0),
        ("/tmp/tfevents", 0),
        ("a/../../tfevents", 0),
        (".bashrc", 0),
        ("tfevents", 1 << 40),
        ("tfevents\ud800", 0),
    ],
)
def test_host_cannot_write_elsewhere(tmp_path: Path, path: str, offset: int) -> None:
    host = LyingHost({"file": path, "offset": offset, "bytes": 1}, {"data": ""}, {"sha256": ""})
    copy = tensorboard.EventCopy(host, JOB, tmp_path / "copy")
    with pytest.raises(NotReady, match="no event file"):
        copy.update()
    assert list(tmp_path.iterdir()) == []


def test_job_without_event_files_and_machine_without_tensorboard(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotReady, match="no tensorboard") as error:
        tensorboard.show([host_of(job)], ["last"], free_port(), Console())
    assert "uvx" in str(error.value.hint)
    (tmp_path / "tensorboard").write_text(SERVER)
    (tmp_path / "tensorboard").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    set_state(job, "finished")
    with pytest.raises(BadInput, match="left no event files"):
        tensorboard.show([host_of(job)], ["last"], free_port(), Console())
    set_state(job, "running")
    (job / "workspace").mkdir(exist_ok=True)
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(NotReady, match="did not start") as error:
        tensorboard.show([host_of(job)], ["last"], free_port(), Console())
    assert error.value.detail == "words of tensorboard"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_tensorboard_shows_the_copies_and_ends_with_the_command(
    job: Path, tmp_path: Path, number: signal.Signals
) -> None:
    (job / "workspace" / "tfevents").write_bytes(b"curve")
    (tmp_path / "tensorboard").write_text(SERVER)
    (tmp_path / "tensorboard").chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    program = (
        "import sys\nfrom train_classifier.cli.console import Console\n"
        "from train_classifier.cli.inside import tensorboard\n"
        # pytest's own folders may be too long for a socket: the run would go to /tmp.
        "from train_classifier.controller import temp_files\ntemp_files.MAX_PATH = 4096\n"
        "from train_classifier.controller.transport import RemoteHost\n"
        "host = RemoteHost('one', state_dir=sys.argv[1])\n"
        "sys.exit(tensorboard.show([host], ['last'], int(sys.argv[2]), Console()))\n"
    )
    with subprocess.Popen(
        # Not the default port, which another test may have.
        [sys.executable, "-c", program, str(job.parents[1]), str(free_port())],
        stderr=subprocess.PIPE,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(temporary)},
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("http"), line + process.stderr.read()
            address = line.split()[0]
            with urllib.request.urlopen(f"{address}{JOB}/tfevents", timeout=60) as answer:
                assert answer.read() == b"curve"
            # Other accounts can connect, too; they see command lines, and what is open to all.
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(urllib.parse.urljoin(address, f"/{JOB}/tfevents"), timeout=60)
            secret = urllib.parse.urlsplit(address).path.strip("/")
            arguments = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
            assert len(secret) > 20 and "--flagfile" in arguments and secret not in arguments
            assert [stat.S_IMODE(each.stat().st_mode) for each in temporary.iterdir()] == [0o700]
            process.send_signal(number)
            assert process.wait(60) == (-number if number == signal.SIGKILL else ExitCode.TRAINED)
        finally:
            process.kill()
    end = time.monotonic() + 60
    while is_shown(address):
        assert time.monotonic() < end
        time.sleep(0.05)
    # The next command removes the folder of a killed one.
    assert number == signal.SIGKILL or list(temporary.iterdir()) == []


def test_port_that_something_else_took_meanwhile_is_not_shown(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job / "workspace" / "tfevents").write_bytes(b"curve")
    (tmp_path / "tensorboard").write_text(SERVER)
    (tmp_path / "tensorboard").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setattr(tensorboard, "_free_port", lambda _: other.server_port)
        with pytest.raises(NotReady, match="did not start") as error:
            tensorboard.show([host_of(job)], ["last"], None, Console())
        other.shutdown()
    assert "Address already in use" in str(error.value.detail)


def test_copy_that_cannot_be_written_here_is_said(job: Path, tmp_path: Path) -> None:
    """As on a full disk: a folder is in the place of the file."""
    (job / "workspace" / "tfevents").write_bytes(b"curve")
    copy = tensorboard.EventCopy(host_of(job), JOB, tmp_path)
    (tmp_path / "tfevents").mkdir()
    with pytest.raises(NotReady, match=f"tfevents of job {JOB} cannot be written here") as error:
        copy.update()
    assert "TMPDIR" in str(error.value.hint)


def is_shown(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except OSError:
        return False
    return True
