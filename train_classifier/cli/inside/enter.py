"""exec, shell and forward: into the container of a running job."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from train_classifier.cli.console import Console, is_terminal
from train_classifier.controller import find_jobs
from train_classifier.controller.find_jobs import LocatedJob
from train_classifier.controller.temp_files import private_folder
from train_classifier.controller.transport import RemoteHost
from train_classifier.core import text
from train_classifier.core.errors import BadInput, ExitCode, NotReady

#: The best shell of the container.
SHELL = ("sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")
#: Runs in the container and joins its standard streams with a port there: the port may listen on the
#: container's loopback alone, and the container needs no network.
RELAY = """
import os, socket, sys, threading
try:
    port = socket.create_connection(("localhost", int(sys.argv[1])))
except OSError:
    # The error is that of the last address of several.
    sys.exit("nothing listens there")
def send():
    while data := os.read(0, 65536):
        port.sendall(data)
    port.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := port.recv(65536):
    while data:
        data = data[os.write(1, data):]
"""


def running_job(hosts: Sequence[RemoteHost], job: str) -> LocatedJob:
    """Return a job that trains now. Raises NotReady when it does not, or where it cannot be entered."""
    located = find_jobs.find_job(hosts, job).require_started()
    status = located.answer.get("status") or {}
    if located.answer.get("result"):
        raise NotReady(f"Job {located.id} has ended; there is nothing to enter.")
    if status.get("phase") != "training":
        raise NotReady(
            f"Job {located.id} does not train yet; it is in the phase {status.get('phase') or 'submitted'}.",
            f"Follow it: train-classifier attach {located.id}{located.host.flags}",
        )
    return located


def run_inside(hosts: Sequence[RemoteHost], job: str, words: Sequence[str]) -> int:
    """Run a command in the job's container, with this terminal; return the command's own exit status."""
    located = running_job(hosts, job)
    terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    argv = located.host.exec_command(located.id, words, terminal)
    if located.host.ssh is None:
        # The command gets the terminal's signals itself.
        os.execvp(argv[0], argv)
    with _ignored(signal.SIGINT):
        status = subprocess.run(argv, check=False).returncode
    # As a shell says it, where a signal ended ssh.
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Leave a signal of the terminal to the child."""
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


def forward(hosts: Sequence[RemoteHost], job: str, port: int, local_port: int, console: Console) -> ExitCode:
    """Make a port of the job's container one of this machine's loopback, until Ctrl-C."""
    located = running_job(hosts, job)
    try:
        listener = socket.create_server(("127.0.0.1", local_port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise BadInput(f"port {local_port} of this machine cannot be used: {reason}") from error
    with listener, private_folder() as folder:
        argv = located.host.exec_command(located.id, ["python3", "-c", RELAY, str(port)], False)
        if located.host.ssh is not None:
            # One connection for all.
            shared = ("ControlMaster=auto", f"ControlPath={folder}/ssh", "ControlPersist=5")
            argv = [argv[0], *(word for each in shared for word in ("-o", each)), *argv[1:]]
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        problems: set[str] = set()

        def relay(connection: socket.socket) -> None:
            problem = _relay(connection, argv)
            # A browser tries again and again.
            if problem and problem not in problems:
                problems.add(problem)
                console.say(f"Port {port} of the job cannot be reached: {problem}", "yellow")

        with contextlib.suppress(KeyboardInterrupt):
            console.say(f"{address} is port {port} of job {located.id}. Ctrl-C ends this.")
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=relay, args=(connection,), daemon=True).start()
    return ExitCode.TRAINED


def _relay(connection: socket.socket, argv: Sequence[str]) -> str:
    """Join a connection with the streams of the relay in the container; return why that failed, or ""."""
    with connection:
        streams = connection.fileno()
        with subprocess.Popen(argv, stdin=streams, stdout=streams, stderr=subprocess.PIPE) as process:
            assert process.stderr
            status = process.wait()
            # Not until its end: the master process of the shared connection keeps it open.
            os.set_blocking(process.stderr.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                lines = os.read(process.stderr.fileno(), 4096).decode("utf-8", "replace").split("\n")
                return text.clean(next(filter(None, map(str.strip, lines)), "")) if status else ""
    return ""
