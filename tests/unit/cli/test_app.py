"""The command line: help, wrong use, one JSON object, what a person sees, and what crosses the sink."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import json_output
import pytest

from train_classifier.ansible_bridge import event_socket
from train_classifier.cli.app import run
from train_classifier.controller import find_jobs
from train_classifier.controller.temp_files import bug_error, private_folder, remove_old_folders
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import text
from train_classifier.core.errors import (
    AmbiguousId,
    BadInput,
    ExitCode,
    JobLocked,
    NotReady,
    TrainClassifierError,
    from_dict,
)

COMMANDS = [
    "train",
    "list",
    "status",
    "logs",
    "attach",
    "fetch",
    "cancel",
    "rerun",
    "board",
    "compare",
    "clean",
    "doctor",
    "provision",
]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train_classifier", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"train-classifier {name}" in capsys.readouterr().out


def test_release_candidate_of_python_is_refused() -> None:
    """Ubuntu 22.04's package python3.11, for which pip installs the package."""
    program = (
        "import sys; sys.version_info = (3, 11, 0, 'candidate', 1); sys.argv[1:] = ['--version']\n"
        "from train_classifier.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("train-classifier needs Python 3.11 or newer")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from train_classifier.cli.app import run; run(['train', '--help']);"
        "print(sorted({'ansible', 'ansible_runner', 'docker'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", [["train", "--no-such-flag"], ["no-such-command"], ["cancel"], ["help"]]
)
def test_wrong_use_is_bad_input_without_a_traceback(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == ExitCode.BAD_INPUT
    assert done.stdout == ""
    assert "--help" in done.stderr and "Traceback" not in done.stderr
    assert ("Did you mean" in done.stderr) == (arguments == ["help"])


def test_command_of_exec_without_dashes_gets_the_hint() -> None:
    assert "after --: train-classifier exec JOB -- COMMAND" in command("exec", "last", "ls").stderr


@pytest.mark.parametrize(
    "arguments", [["train", "--no-such-flag", "--json"], ["status", "x", "--json", "-i", "/no/such/file"]]
)
def test_json_is_one_object_also_on_failure(arguments: list[str]) -> None:
    done = command(*arguments)
    json_output.check(arguments, done.stdout)
    assert done.returncode == json.loads(done.stdout)["exit_code"] == ExitCode.BAD_INPUT


def test_json_after_the_dashes_belongs_to_the_model() -> None:
    done = command("train", "no_such_model", "--", "--json")
    assert (done.returncode, done.stdout) == (ExitCode.BAD_INPUT, "")


def test_completion_of_models(tmp_path: Path) -> None:
    for name in ("mnist", "mobile", "yolo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__main__.py").touch()
    (tmp_path / "mnothing").mkdir()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("train-classifier"))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "_TRAIN_CLASSIFIER_COMPLETE": "bash_complete",
            "COMP_WORDS": "train-classifier train m",
            "COMP_CWORD": "2",
        },
        check=False,
    )
    assert done.stdout.split() == ["plain,mnist", "plain,mobile"], done.stderr


def on_a_terminal(program: str, **environment: str) -> str:
    """What a program of ours shows on a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environment},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    process.wait()
    os.close(master)
    return shown.decode()


SHOW = """
import time
from train_classifier.cli.console import Console
console = Console()
console.event("phase", phase="push", state="start")
console.event("progress", phase="push", done=1 << 20, total=4 << 20)
while console.live and not console._drawn:
    time.sleep(0.05)
console.event("phase", phase="push", state="end", seconds=0.6)
console.event("phase", phase="training", state="start")
console.event("figures", figures={"gpus": [{"percent": 80, "memory_mib": 1024}], "history": {"epoch": 3, "loss": 0.5}})
while console.live and not console._drawn:
    time.sleep(0.05)
console.event("phase", phase="training", state="end", seconds=0.6)
console.event("status", state="running", phase="queue", message="waits for GPU 0: job X", times={})
time.sleep(0.6)
console.log(b"one\\ntwo")
time.sleep(0.5)
console.log(b" more\\n")
console.finish()
"""


def test_live_line_on_a_terminal() -> None:
    shown = on_a_terminal(SHOW)
    assert "1.0 MiB of 4.0 MiB" in shown
    assert "epoch 3 · GPU 80 % 1.0 GiB · loss 0.5" in shown
    assert "waits for GPU 0: job X" in shown
    # A line of the log that is not finished is never drawn over.
    assert "two more\r\n" in shown
    assert shown.rstrip().endswith("two more")


@pytest.mark.parametrize("environment", [{"GITHUB_ACTIONS": "true"}, {"TERM": "dumb"}])
def test_no_escape_sequences_without_a_terminal(environment: dict[str, str]) -> None:
    shown = on_a_terminal(SHOW, **environment)
    assert "\x1b" not in shown
    assert "queue: waits for GPU 0: job X" in shown


def test_no_colour_when_asked() -> None:
    assert "\x1b[3" not in on_a_terminal(SHOW, NO_COLOR="1")
    # no-color.org: an empty value counts as none.
    assert "\x1b[3" in on_a_terminal(SHOW, NO_COLOR="")


FAILED_RUN = """
from train_classifier.cli.console import Console
console = Console()
times = {"training": [3.0, 5.0], "environment": [1.0, 1.0], "image": [0.0, 1.0]}
console.event("status", state="running", phase="training", message="training", times={})
console.event("status", state="running", phase="artefacts", message="", times=times, failed="training")
console.event("status", state="finished", phase=None, message="the model ended badly", times=times, failed="training")
console.event("result", result={"seconds": {"artefacts": 0.2, "image": 1.0, "training": 2.0, "environment": 0.0}})
console.finish()
"""


def test_phases_are_shown_in_order_and_once() -> None:
    lines = on_a_terminal(FAILED_RUN).replace("\r", "\n").replace("\x1b[K", "").splitlines()
    ended = [line for line in lines if line.endswith(" s") and line.startswith("\x1b[3") and "m " in line]
    assert ended == [
        "\x1b[32m✓\x1b[0m image: 1.0 s",
        "\x1b[31m✗\x1b[0m training: failed after 2.0 s",
        "\x1b[32m✓\x1b[0m artefacts: 0.2 s",
    ]
    piped = on_a_terminal(FAILED_RUN, TERM="dumb").splitlines()
    assert piped == ["image: 1.0 s", "training: failed after 2.0 s", "artefacts: 0.2 s"]


def test_control_characters_of_others_reach_no_terminal() -> None:
    assert text.clean("a\x1b[2Jb\rc\nd\te") == "a�[2Jb�c\nd\te"


def test_table_is_aligned() -> None:
    assert text.table([("a", "1.0 s"), ("long", "10.0 s")], right=(1,)) == "a      1.0 s\nlong  10.0 s"
    # A name of somebody's makes no row of its own.
    assert text.table([("a\nb", "c\td\x1b")], ("x\ny", None)) == "x y\na b  c d�"


def test_table_and_text_hold_a_width() -> None:
    rows = [("20260101-000000-00000001", "m" * 90, "trained", "3 min 20 s", "somebody@" + "x" * 60)]
    lines = text.table(rows, ("JOB", "MODEL", "STATUS", "TIME", "BY"), width=80).splitlines()
    assert max(map(len, lines)) == 80 and rows[0][0] in lines[1] and "…" in lines[1]
    assert text.hanging("reason  ", "word " * 30, 80).splitlines()[1].startswith("        word")
    assert text.hanging("reason  ", "word " * 30, None) == "reason  " + "word " * 30


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes(count: int, words: str) -> None:
    assert text.show_bytes(count) == words


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        *((code, None) for code in ExitCode if code),
        *((kind.code, kind.cause) for kind in (AmbiguousId, JobLocked)),
    ],
)
def test_failures_survive_the_way(code: ExitCode, cause: str | None) -> None:
    there = from_dict({"code": int(code), "cause": cause, "reason": "why", "hint": "how", "detail": "what"})
    assert (there.code, there.cause) == (code, cause)
    back = from_dict(json.loads(json.dumps(there.to_dict())))
    assert (type(back), back.reason, back.hint) == (type(there), there.reason, there.hint)


class Collected:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.bytes = b""

    def event(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def log(self, data: bytes) -> None:
        self.bytes += data


def test_sink_carries_events_and_bytes_in_order() -> None:
    collected = Collected()
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        listener = event_socket.Sink(folder / "sink", collected, lambda question: {"asked": question})
        sender = event_socket.SinkReporter(str(folder / "sink"))
        payload = bytes(range(256)) * 10_000
        sender.event("phase", phase="push", state="start")
        sender.log(payload)
        assert sender.ask("secrets") == {"asked": "secrets"}
        sender.event("delivered", path="x\u2028\n")
        sender.close()
        listener.close()
    assert collected.bytes == payload
    assert [event["event"] for event in collected.events] == ["phase", "delivered"]
    assert not folder.exists()


def test_folders_of_killed_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # pytest's own folders may be too long for a socket: the run would go to /tmp.
    monkeypatch.setattr("train_classifier.controller.temp_files.MAX_PATH", 4096)
    dead = tmp_path / "train-classifier-run-dead"
    dead.mkdir()
    (dead / "lock").touch()
    foreign = tmp_path / "something-else"
    foreign.mkdir()
    with private_folder() as own:
        remove_old_folders(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {own.name, foreign.name}


def test_machine_without_room_for_temporary_files_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "__main__.py").write_text("")
    # As a disk that is full: no file can get a byte.
    command = 'ulimit -f 0; exec "$@"'
    argv = [
        "/bin/sh",
        "-c",
        command,
        "sh",
        sys.executable,
        "-m",
        "train_classifier",
        "train",
        "mnist",
        "--gpus",
        "0",
    ]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.NOT_READY, done.stderr
    assert "cannot hold temporary files" in done.stderr and "TMPDIR" in done.stderr


def test_bug_is_told_also_where_no_file_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as bug:
        error = bug_error(bug)
    assert "ZeroDivisionError" in error.reason and "Traceback" in str(error.detail)
    error = bug_error(OSError(errno.ENOSPC, "No space left on device", "/tmp/\x1b[2J"))
    assert (error.code, error.reason) == (3, "/tmp/\\x1b[2J cannot be used: No space left on device.")


def test_all_hosts_are_asked_and_one_failure_hides_no_other(tmp_path: Path) -> None:
    hosts = [
        RemoteHost("gone", ["ssh", "-F", "/dev/null", "-p", "1", "127.0.0.1"]),
        RemoteHost("here", state_dir=str(tmp_path / "state")),
    ]
    answers = find_jobs.ask_hosts(hosts, lambda host: host.call({"verb": "list", "all": True}))
    assert isinstance(answers[0][1], NotReady)
    assert answers[1][1] == {"jobs": []}
    # The job may be on the host that could not be asked: not finding it is not "unknown".
    with pytest.raises(NotReady):
        find_jobs.find_job(hosts, "20260101-000000-00000000")
    with pytest.raises(BadInput):
        find_jobs.find_job(hosts[1:], "20260101-000000-00000000")


def test_bug_is_one_line_and_a_crash_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("train_classifier.cli.hosts.hosts", broken)
    assert run(["list", "--json"]) == ExitCode.BUG
    out, err = capfd.readouterr()
    place = Path(json.loads(out)["error"]["hint"].split()[-1])
    assert "Traceback" not in err and "ZeroDivisionError" in place.read_text()
    assert place.stat().st_mode & 0o777 == 0o600
    place.unlink()


def test_an_error_says_reason_detail_and_hint(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise TrainClassifierError("It broke.", "Mend it.", "tool: line 1\ntool: line 2", ExitCode.NOT_READY)

    monkeypatch.setattr("train_classifier.cli.hosts.hosts", failing)
    assert run(["list"]) == ExitCode.NOT_READY
    assert capfd.readouterr().err.splitlines()[:3] == ["It broke.", "    tool: line 1", "    tool: line 2"]
