"""What is shown, and to whom: colours for each stream, slow readers, the width of a terminal, the same JSON for all."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from answering_host import AnsweringHost

from train_classifier.cli import app, jobs, result_text
from train_classifier.cli.commands.doctor import check_hosts
from train_classifier.cli.console import Console
from train_classifier.core import text
from train_classifier.core.errors import BadInput, ExitCode, NotReady

CHECKS = [{"name": "engine", "status": "ok", "message": "Docker 26", "hint": None, "code": None}]
ANSWER = {
    "worker": "w", "python": "3.11", "host": {"name": "h"}, "engine": {}, "gpus": [], "queued": None, "launcher": "user", "state_dir": "/s",
    "checks": CHECKS, "ready": True,
}  # fmt: skip

DOCTOR = f"""
from train_classifier.cli.console import Console
from train_classifier.cli.commands.doctor import _show
from train_classifier.core.errors import NotReady
console = Console()
_show("gpu-1", {ANSWER!r}, console)
console.error(NotReady("no engine"))
"""


@pytest.mark.parametrize("person", ["stdout", "stderr"])
def test_each_stream_has_its_own_colours(person: str) -> None:
    """One stream is a terminal, the other a file."""
    master, slave = pty.openpty()
    other = "stderr" if person == "stdout" else "stdout"
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR], check=False,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", "GITHUB_ACTIONS": ""},
        **{person: slave, other: subprocess.PIPE},
    )  # fmt: skip
    os.close(slave)
    shown = os.read(master, 65536)
    os.close(master)
    filed = getattr(done, other)
    assert b"\x1b[3" in shown
    assert b"\x1b" not in filed
    assert (b"Docker 26" in shown) == (person == "stdout") and (b"no engine" in filed) == (person == "stdout")


FAILURE = """
from train_classifier.cli.console import Console
from train_classifier.core.errors import NotReady
console = Console()
console.event("message", level="warning", text="the note " + "of a host " * 10)
console.say("what we say " + "of it " * 10)
console.say("a table\\n" + "that fits")
console.error(NotReady("no engine " + "a word " * 10, "start it, " + "another " * 10))
"""


def test_long_sentences_are_wrapped_between_words_on_a_terminal_alone() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "GITHUB_ACTIONS": "", "COLUMNS": "60"}
    command = [sys.executable, "-c", FAILURE]
    subprocess.run(command, check=True, env=environment, stderr=slave)
    piped = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stderr
    os.close(slave)
    lines = os.read(master, 65536).decode().splitlines()
    os.close(master)
    *lines, link = lines
    assert lines[:2] == [
        "the note of a host of a host of a host of a host of a host",
        "of a host of a host of a host of a host of a host",
    ]
    assert lines[4:6] == ["a table", "that fits"]
    lines = lines[:4] + lines[6:]
    # An address stays in one piece.
    assert link.strip() == NotReady("").link and piped.splitlines()[-1] == link
    assert max(map(len, lines)) <= 60 and len(lines) == 8
    assert lines[6].startswith("→ start it, another") and lines[7].startswith("  another")
    assert len(piped.splitlines()) == 7


@pytest.mark.parametrize("words", ["hosts list --json", "list --all x --json"])
def test_result_that_a_full_disk_does_not_take_is_a_failure(words: str) -> None:
    command = [sys.executable, "-m", "train_classifier", *words.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == (ExitCode.BAD_INPUT if "x" in words else ExitCode.NOT_READY), done.stderr
    assert "Traceback" not in done.stderr and (
        "x" in words or "Standard output cannot be written" in done.stderr
    )


def test_a_slow_reader_of_a_non_blocking_stream_gets_every_byte() -> None:
    """What shares our standard output may have made it non-blocking: a full pipe is no reader that went away."""
    program = (
        "import os; os.set_blocking(1, False)\n"
        "from train_classifier.cli.console import Console\n"
        "console = Console()\n"
        "for n in range(64): console.log(bytes([n]) * 65536)\n"
        "print(console.log_closed, file=__import__('sys').stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    time.sleep(1)
    digest = hashlib.sha256()
    while block := os.read(process.stdout.fileno(), 5000):
        digest.update(block)
    assert process.stderr.read() == b"False\n"
    assert process.wait() == 0
    assert digest.digest() == hashlib.sha256(b"".join(bytes([n]) * 65536 for n in range(64))).digest()


def test_rich_is_not_imported_without_a_terminal() -> None:
    program = (
        "import sys; from train_classifier.cli.console import Console\n"
        "console = Console()\n"
        "console.event('phase', phase='push', state='start')\n"
        "console.event('progress', phase='push', done=1, total=2)\n"
        "console.event('phase', phase='push', state='end', seconds=1.0); console.finish()\n"
        "print('rich' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Ended:
    """A run that ended well, with long names of all kinds."""

    job = "20260101-000000-00000001"
    model = "mnist"
    host_name = "gpu-1"
    failure = None
    delivered: ClassVar[dict[str, Any] | None] = {
        "path": "/home/somebody/a repository/artefacts.tar.gz",
        "bytes": 12345,
        "sha256": "0" * 64,
    }
    result: ClassVar[dict[str, Any] | None] = {
        "outcome": "trained", "seconds": {"environment": 51.8, "training": 59.9},
        "metrics": {"parameters": 25600001, "loss": 0.1012345678, "steps": 25600001.0, "a" * 90: 1, "tiny": 1.5e-07, "ok": True},
    }  # fmt: skip


def test_the_summary_fits_a_terminal() -> None:
    console = Console(quiet=True)
    shown = result_text.as_text(Ended(), console)
    assert max(len(line) for line in shown.splitlines()) <= 80, shown
    assert "0" * 64 in shown
    rows = {line.split()[0]: line.split()[-1] for line in shown.splitlines() if len(line.split()) == 2}
    assert (rows["parameters"], rows["steps"], rows["loss"]) == ("25600001", "25600001", "0.101235")


@pytest.mark.parametrize(
    "name",
    ["", "train", "list", "status", "logs", "attach", "fetch", "cancel", "clean", "doctor", "provision"],
)
def test_help_fits_a_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert app.run([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage" in shown and max(len(line) for line in shown.splitlines()) <= 80


def test_a_dry_run_shows_values_as_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "__main__.py").touch()
    monkeypatch.chdir(tmp_path)
    words = ["--data", "/srv/a:b", "--memory", "16GiB", "--timeout", "6h", "--", "two words"]
    assert app.run(["train", "mnist", "--dry-run", *words]) == 0
    shown = capfd.readouterr().out
    assert all(word in shown for word in ("/srv/a:b", "16.0 GiB", "6 h 0 min", "'two words'"))
    assert "{" not in shown and "push        1 file, 0 bytes" in shown


def test_a_dry_run_says_where_each_value_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "__main__.py").write_text("12345")
    (tmp_path / "train-classifier.toml").write_text('[defaults]\nimage = "python:3.11"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAIN_CLASSIFIER_TIMEOUT", "6h")
    assert app.run(["train", "mnist", "--dry-run", "--gpus", "0", "-e", "A=hidden", "-o", "a.tgz"]) == 0
    shown = capfd.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}
    assert rows["image"] == ["python:3.11", "train-classifier.toml"]
    assert rows["timeout"] == ["6", "h", "0", "min", "TRAIN_CLASSIFIER_TIMEOUT"]
    assert rows["gpus"] == ["0", "--gpus"] and rows["shm_size"] == ["2.0", "GiB", "default"]
    assert rows["push"][:2] == ["2", "files,"] and rows["output"][-1] == "(--output)"
    assert "hidden" not in shown and "submitter" not in shown and "_bytes" not in shown


@pytest.mark.parametrize("folder", ["/etc", "//etc/ssl/", "/", "/proc/1"])
def test_a_folder_of_the_system_is_refused_before_a_host_is_asked(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "__main__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert app.run(["train", "mnist", "--dry-run", "--data", f"{folder}:x"]) == ExitCode.BAD_INPUT
    assert "no job may read it" in capfd.readouterr().err


def test_numbers() -> None:
    assert [text.number(value) for value in (3, 2.0, 0.5, 1e300, float("nan"))] == [
        "3",
        "2",
        "0.5",
        "1e+300",
        "nan",
    ]


def test_doctor_says_the_same_of_every_host(capfd: pytest.CaptureFixture[str]) -> None:
    hosts = [
        AnsweringHost("good", ANSWER),
        AnsweringHost("gone", NotReady("no route")),
        AnsweringHost("odd", BadInput("a password")),
    ]
    assert check_hosts(hosts, 1, Console(json_mode=True)) == ExitCode.NOT_READY
    answer = json.loads(capfd.readouterr().out)
    assert [host["name"] for host in answer["hosts"]] == ["good", "gone", "odd"]
    good, *bad = answer["hosts"]
    assert good["error"] is None
    for host in bad:
        assert set(host) == set(good)
        assert host["error"]["reason"] and not host["ready"]
        assert host["host"] is None


def test_doctor_tries_what_a_push_needs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnsweringHost, "login_output", lambda self: "Welcome to gpu-1\nand more")
    host = AnsweringHost("noisy", {**ANSWER, "checks": list(CHECKS)})
    assert check_hosts([host], 1, Console(json_mode=True)) == ExitCode.NOT_READY
    check = json.loads(capfd.readouterr().out)["hosts"][0]["checks"][-1]
    assert "Welcome to gpu-1" in check["message"] and ".bashrc" in check["hint"]


def test_unusable_host_does_not_hide_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hosts = {
        "here": {"ansible_connection": "local", "training_job_state_dir": str(tmp_path / "state")},
        "windows": {"ansible_connection": "winrm"},
        "password": {"ansible_password": "hunter2"},
    }
    where = tmp_path / "hosts.yml"
    where.write_text(json.dumps({"all": {"hosts": hosts}}))
    assert app.run(["list", "--all", "--json", "-i", str(where)]) == ExitCode.BAD_INPUT
    out, err = capfd.readouterr()
    assert json.loads(out) == []
    assert "host 'windows' uses connection 'winrm'" in err and "host 'password' is reached with" in err
    assert app.run(["status", "last", "-i", str(where)]) == ExitCode.BAD_INPUT
    assert "You have no job on here, windows, password" in capfd.readouterr().err


def test_what_a_host_says_moves_no_cursor(capfd: pytest.CaptureFixture[str]) -> None:
    """However it comes to the terminal: an outcome, a value of a metric, a digest, a count of `clean`."""
    evil = "\x1b]0;title\x07\x1b[2Jx\r\x9b1A\u202e"

    class Run:
        job, model, host_name, failure = "20260101-000000-00000000", "m", "gpu-1", None
        result: ClassVar = {"outcome": evil, "metrics": {"a": evil}}
        delivered: ClassVar = {"path": "p", "bytes": 1, "sha256": evil}

    console = Console()
    console.colour = True
    result_text.show_ending(Run(), ExitCode.TRAINED, console)
    jobs.clean([AnsweringHost("gpu-1", {"removed": {evil: 2, "bytes": 1}})], None, None, False, console)
    out, err = capfd.readouterr()
    assert "]0;title" in out and "]0;title" in err
    for shown in (out, err.replace("\x1b[32m", "").replace("\x1b[0m", "")):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), repr(shown)
