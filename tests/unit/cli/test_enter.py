"""`exec` and `forward`: how the engine's client is called, and the program that joins connections."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from answering_host import AnsweringHost

from train_classifier.cli.inside import enter
from train_classifier.controller.transport import RemoteHost

JOB = "20260101-000000-00000001"


def test_relay_carries_bytes_both_ways_and_says_why_it_cannot() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    argv = [sys.executable, "-c", enter.RELAY, str(port)]
    ours, theirs = socket.socketpair()
    problems: list[str] = []
    thread = threading.Thread(target=lambda: problems.append(enter._relay(theirs, argv)))
    thread.start()
    accepted, _ = server.accept()
    ours.sendall(b"question")
    ours.shutdown(socket.SHUT_WR)
    with accepted, accepted.makefile("rb") as received:
        assert received.read() == b"question"
        accepted.sendall(b"answer")
    with ours, ours.makefile("rb") as answers:
        assert answers.read() == b"answer"
    thread.join(60)
    server.close()
    # Now nothing listens there.
    for program, problem in (
        (argv, "nothing listens there"),
        (["sh", "-c", "echo '\033[2Jbad' >&2; exit 1"], "\ufffd[2Jbad"),
    ):
        ours, theirs = socket.socketpair()
        with ours:
            problems.append(enter._relay(theirs, program))
        assert problems[-1] == problem
    assert problems[0] == ""


@pytest.mark.parametrize("address", [None, "unix:///run/other.sock"])
def test_exec_asks_the_engine_of_the_jobs(address: str | None, tmp_path: Path) -> None:
    """Not the one that the account's client has as its context."""
    host = RemoteHost("one", state_dir=str(tmp_path / "state"))
    host.install()
    (tmp_path / "state" / "jobs" / JOB).mkdir(parents=True)
    (tmp_path / "docker").write_text('#!/bin/sh\nprintf "%s\\n" "$DOCKER_HOST" "$DOCKER_CONTEXT" "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DOCKER_CONTEXT": "elsewhere"}
    environment.pop("DOCKER_HOST", None)
    if address:
        environment["DOCKER_HOST"] = address
    done = subprocess.run(
        host.exec_command(JOB, ["-x", "a b"], False), env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        address or "unix:///var/run/docker.sock", "", "exec", "--interactive", f"tc-job-{JOB}", "-x", "a b",
    ]  # fmt: skip
    unknown = host.exec_command(JOB.replace("1", "2"), ["true"], False)
    done = subprocess.run(unknown, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no job" in done.stderr and not done.stdout


class SignalledHost(AnsweringHost):
    """A host whose connection is ended by a signal."""

    def exec_command(self, job: str, words: Sequence[str], terminal: bool) -> list[str]:
        return ["sh", "-c", "kill -TERM $$"]


def test_exit_status_of_a_connection_that_a_signal_ended() -> None:
    host = SignalledHost("gpu-1", {"id": JOB, "status": {"state": "running", "phase": "training"}})
    host.ssh = ["ssh", "gpu-1"]
    assert enter.run_inside([host], JOB, ["true"]) == 128 + signal.SIGTERM
