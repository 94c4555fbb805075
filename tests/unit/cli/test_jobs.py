"""Commands that name a job: which one is meant, jobs that never started, where an archive may go, leaving early."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import json_output
import pytest
from answering_host import AnsweringHost
from ordinary_user import NOBODY, as_ordinary_user

from train_classifier.ansible_bridge import inventory as inventories
from train_classifier.cli import app, job_display
from train_classifier.cli.console import Console
from train_classifier.controller import find_jobs, steps
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import locks
from train_classifier.core.errors import BadInput, ExitCode, NotReady, TrainClassifierError
from train_classifier.core.job import SCHEMA, JobSpec, Repository
from train_classifier.worker.state.store import Job
from train_classifier.worker.training.usage import COLUMNS

OLD, NEW, NEWEST = "20260101-000000-00000001", "20260102-000000-00000002", "20260103-000000-00000003"
GONE = RemoteHost("gone", ["ssh", "-F", "/dev/null", "-p", "1", "127.0.0.1"])


def make_job(state_dir: Path, job: str, state: str = "finished") -> None:
    """Write a job's folder as the worker does."""
    folder = state_dir / "jobs" / job
    folder.mkdir(parents=True)
    spec = JobSpec(id=job, model="mnist", repository=Repository("r", "0" * 16))
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    os.utime(folder / "spec.json", (int(job[6:8]), int(job[6:8])))
    status = {"schema": SCHEMA, "id": job, "model": "mnist", "version": 1, "state": state, "updated": 0.0}
    (folder / "status.json").write_text(json.dumps({**status, "times": {}}))
    (folder / "log.txt").write_bytes(job.encode() + b"\n")
    if state == "finished":
        result = {"outcome": "failed", "exit_code": 4, "reason": "because", "archive": None, "gpus": []}
        (folder / "result.json").write_text(json.dumps({**result, "finished": 1.0}))


def test_last_is_the_newest_that_was_started_on_any_host(tmp_path: Path, command: Any) -> None:
    make_job(tmp_path / "one", OLD)
    make_job(tmp_path / "two", NEW)
    # An interrupted push leaves this.
    make_job(tmp_path / "one", NEWEST, "prepared")
    code, out, err = command("status", "last", "--json", on=("one", "two"))
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["id"], answer["host"]) == (NEW, "two")
    assert command("logs", "last") == (0, OLD + "\n", "")
    make_job(tmp_path / "three", OLD, "pushed")
    assert command("status", "last", on=["three"])[0] == ExitCode.BAD_INPUT


@pytest.mark.parametrize("state", ["prepared", "pushed"])
@pytest.mark.parametrize("words", [("attach",), ("logs",), ("logs", "-f"), ("fetch",)], ids=" ".join)
def test_a_job_that_was_never_started_is_not_waited_for(
    tmp_path: Path, command: Any, state: str, words: tuple[str, ...]
) -> None:
    make_job(tmp_path / "one", OLD, state)
    code, out, err = command(*words, OLD)
    assert (code, out) == (ExitCode.NOT_READY, "")
    assert f"Job {OLD} on one was never started" in err and "Start the training again" in err


@pytest.mark.parametrize(("message", "is_shown"), [("training", False), ("2 jobs are before this one", True)])
def test_status_names_the_phase_once(
    message: str, is_shown: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status = {"state": "running", "phase": "training", "message": message}
    located = find_jobs.LocatedJob(RemoteHost("one"), {"id": OLD, "status": status})
    monkeypatch.setattr(find_jobs, "find", lambda *_, **__: located)
    job_display.show_status([], OLD, Console())
    rows = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert ("message" in rows) is is_shown, rows


def test_status_and_list_say_how_far_a_training_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A job of root is one of another account, whose process reads what the model writes."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        state = Path(folder, "state")
        Path(folder).chmod(0o755)
        make_job(state, OLD, "running")
        job = Job(state / "jobs" / OLD)
        settings = Path(folder, "host.json")
        settings.write_text('{"service_user": "nobody"}')
        settings.chmod(0o644)
        monkeypatch.setenv("TRAIN_CLASSIFIER_HOST_JSON", str(settings))
        remote_host = RemoteHost("one", state_dir=str(state))
        monkeypatch.setattr("train_classifier.cli.hosts.hosts", lambda *_: [remote_host])

        def shown(*words: str) -> str:
            capfd.readouterr()
            assert app.run(words) == 0, capfd.readouterr().err
            out = capfd.readouterr().out
            json_output.check(words, out)
            return out

        # The worker's own lock says that the job lives.
        with locks.hold(job.lock):
            job.write_status(phase="training", times={"training": [time.time() - 100, None]}, gpus=["GPU-1"])
            (job.workspace / "artefacts").mkdir(parents=True)
            (job.workspace / "artefacts/history.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n")
            job.usage.write_text(",".join(COLUMNS) + "\n5.0,80.0,1024,GPU-1,87,5300,,\n")
            job.log.write_bytes(b"x" * 9000 + b"\nepoch 3/12 loss 9.9\n")
            progress = re.search(r"^progress +(.*)$", shown("status"), re.MULTILINE)
            assert progress and re.fullmatch(
                r"epoch 3/12 · about 8 min \d+ s left · GPU 87 % 5\.2 GiB · loss 0\.25", progress[1]
            )
            for width, words in (
                (200, ["epoch 3/12 · GPU 87 % 5.2 GiB · loss 0.25"]),
                (100, ["epoch 3/12 · GPU"]),
                (80, []),
            ):
                monkeypatch.setattr(Console, "width", width)
                lines = shown("list").splitlines()
                assert ("PROGRESS" in lines[0]) is bool(words) and all(one in lines[1] for one in words), (
                    lines
                )
                assert max(map(len, lines)) <= width
            (entry,) = json.loads(shown("list", "--json"))
            answer = json.loads(shown("status", "--json"))
            gpus = [{"uuid": "GPU-1", "percent": 87, "memory_mib": 5300}]
            for figures in (entry["figures"], answer["figures"]):
                assert figures["progress"].startswith("epoch 3/12 · ") and figures["gpus"] == gpus
                assert figures["history"] == {"epoch": 2, "loss": 0.25} and figures["cpu_percent"] == 80
        # Its worker is gone, and the next look says so.
        job.write_status(state="finished")
        job.write_result({"exit_code": 0, "outcome": "trained"})
        assert "figures" not in json.loads(shown("list", "--json"))[0]
        assert "progress" not in shown("status")


def test_beginning_of_an_id_needs_an_answer_of_every_host(tmp_path: Path) -> None:
    make_job(tmp_path / "here", OLD)
    here = RemoteHost("here", state_dir=str(tmp_path / "here"))
    for name in ("last", OLD[:9]):
        with pytest.raises(NotReady) as caught:
            find_jobs.find_job([GONE, here], name)
        assert "--host here" in str(caught.value.hint)
    # A whole id names one job.
    assert find_jobs.find_job([GONE, here], OLD).id == OLD
    assert find_jobs.find_job([here], "last").id == OLD


def test_a_job_that_ended_before_its_training_says_why(tmp_path: Path, command: Any) -> None:
    make_job(tmp_path / "one", OLD)
    folder = tmp_path / "one" / "jobs" / OLD
    (folder / "log.txt").write_bytes(b"")
    ending = {
        "outcome": "no-environment",
        "exit_code": 9,
        "reason": "no such package: nupmy",
        "hint": "write numpy",
    }
    result = {**ending, "archive": None, "gpus": [], "finished": 1.0, "detail": "line of the tool"}
    seconds = {"environment": 2.0, "image": 1.0, "packages": 0.001}
    (folder / "result.json").write_text(json.dumps({**result, "seconds": seconds}))
    # Without a JOB it is the newest one.
    code, out, err = command("fetch")
    assert code == ExitCode.BAD_INPUT
    assert all(part in err for part in ("no such package: nupmy", "write numpy", "line of the tool"))
    assert "logs" not in err
    code, out, err = command("status")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows][4:10] == ["exit", "reason", "hint", "more", "image", "environment"], out
    code, out, err = command("logs")
    assert (code, out) == (0, "") and "no such package: nupmy" in err and "write numpy" in err


def test_list_fits_its_terminal(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_job(tmp_path / "one", OLD)
    folder = tmp_path / "one" / "jobs" / OLD
    spec = JobSpec(
        id=OLD, model="mnist", repository=Repository("r", "0" * 16, "abcdef0123456789"), arguments=("--epochs", "3 4")
    )  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    result = {"outcome": "trained", "exit_code": 0, "gpus": [], "finished": 1.0, "metrics": {"loss": 0.25}}
    (folder / "result.json").write_text(json.dumps(result))
    listed = json.loads(command("list", "--json")[1])[0]
    assert (listed["arguments"], listed["metrics"]) == (["--epochs", "3 4"], {"loss": 0.25})
    # A model names up to a thousand, and `list` has the jobs of years.
    many = {f"m{number}": 0.5 for number in range(1000)}
    (folder / "result.json").write_text(json.dumps({**result, "metrics": many}))
    assert len(json.dumps(json.loads(command("list", "--json")[1])[0])) < 10_000
    (folder / "result.json").write_text(json.dumps(result))
    shown = {}
    for width in (60, 80, 200):
        monkeypatch.setattr("train_classifier.cli.console.Console.width", width)
        shown[width] = command("list")[1]
        assert max(map(len, shown[width].splitlines())) <= width
    assert "abcdef012345" in shown[80] and "--epochs" not in shown[60]
    assert all(part in shown[200] for part in ("loss=0.25", "--epochs '3 4'", "ARGUMENTS"))


def test_ambiguous_beginnings_of_ids(tmp_path: Path) -> None:
    for host, job in (("one", OLD), ("two", NEW)):
        make_job(tmp_path / host, job)
    both = [RemoteHost(name, state_dir=str(tmp_path / name)) for name in ("one", "two")]
    with pytest.raises(BadInput, match="ambiguous"):
        find_jobs.find_job(both, "2026")
    # Ambiguous on one host: the only match of the other host is not taken.
    make_job(tmp_path / "one", NEWEST)
    with pytest.raises(BadInput, match="ambiguous"):
        find_jobs.find_job(both, "2026")
    with pytest.raises(BadInput, match="ambiguous"):
        find_jobs.find_job(both[:1], "2026")
    assert find_jobs.find_job(both, NEW[:8]).id == NEW


@pytest.mark.parametrize("name", ["attach", "fetch"])
def test_outputs_that_are_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fault row 9, for the commands that fetch later: refused before any host is asked."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    table = {
        "folder": "is a folder", "new/": "is a folder", "file/new/a.tgz": "is not a folder", "file/a.tgz": "is not a folder",
        "pipe": "no regular file", "/dev/null": "no regular file", "a" * 300: "too long", "x" * 230: "longer than 170 bytes",
        "~nobody-of-this-name/x": "home",
    }  # fmt: skip
    if os.getuid():
        table["/usr/a.tgz"] = "may not write"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inventories, "hosts", lambda *_: pytest.fail("a host was looked for"))
    for output, message in table.items():
        capfd.readouterr()
        assert app.run([name, "last", "-o", output]) == ExitCode.BAD_INPUT, output
        assert message in capfd.readouterr().err.lower(), output
    assert Path("/dev/null").is_char_device() and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("words", "code"),
    [(("list",), 6), (("cancel", "last"), 6), (("attach", "last"), 11), (("logs", "-f", "last"), 11)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_ctrl_c_leaves_at_once_while_a_host_does_not_answer(
    tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/pids\nexec sleep 600\n")
    slow.chmod(0o755)
    hosts = {name: {"ansible_ssh_executable": str(slow), "ansible_host": "127.0.0.1"} for name in ("a", "b")}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "train_classifier", *words, "-i", str(tmp_path / "hosts.yml")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    pids: list[str] = []
    until = time.monotonic() + 240
    while len(pids) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
        pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    assert "Traceback" not in err
    for pid in pids:
        until = time.monotonic() + 240
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < until, "a connection is left"
            time.sleep(0.05)


def test_job_of_another_user_is_neither_shown_nor_cancelled() -> None:
    """Fault row 12: without a traceback."""
    if os.getuid():
        pytest.skip("only root has another user at hand")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        top = Path(folder)
        top.chmod(0o755)
        make_job(top / "theirs", OLD)
        (top / "theirs").chmod(0o700)
        (top / "own").mkdir()
        os.chown(top / "own", NOBODY, NOBODY)

        def act() -> list[str]:
            answers = []
            for place in ("own", "theirs"):
                host = RemoteHost("here", state_dir=str(top / place))
                for question in (find_jobs.find_job, lambda hosts, job: steps.cancel(hosts[0], job, "me")):
                    try:
                        question([host], OLD)
                        answers.append("found")
                    except TrainClassifierError as error:
                        answers.append(f"{int(error.code)} {error.reason} {error.hint}")
            return answers

        # Import first what that user may not be able to read.
        find_jobs.find_job([RemoteHost("here", state_dir=str(top / "theirs"))], OLD)
        answers = as_ordinary_user(act)
        assert (top / "theirs" / "jobs" / OLD / "status.json").exists()
        assert not (top / "theirs" / "jobs" / OLD / "cancel").exists()
    assert all(answer.startswith(("2 There is no job", "2 there is no job")) for answer in answers[:2]), (
        answers
    )
    assert all("he jobs of other users are not shown" in answer for answer in answers[:2])
    assert all(answer.startswith("3 ") for answer in answers[2:]), answers


@pytest.mark.parametrize("answer", [{}, {"id": OLD, "jobs": []}, {"id": OLD, "jobs": [{"id": OLD}]}], ids=str)
@pytest.mark.parametrize("words", ["status", "attach", "cancel", "logs", "fetch", "report", "rerun", "board"])
def test_host_that_says_less_than_a_worker_meets_a_sentence(
    command: Any, words: str, answer: dict[str, Any]
) -> None:
    code, _, err = command(words, "last", on=[AnsweringHost("liar", answer)])
    assert code != ExitCode.BUG, err
