"""board: the user's own TensorBoard on copies of the event files of jobs."""

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from train_classifier.cli.console import Console
from train_classifier.controller import fetch, find_jobs
from train_classifier.controller.temp_files import ROOM_HINT, private_folder
from train_classifier.controller.transport import RemoteHost
from train_classifier.core.errors import BadInput, ExitCode, NotReady, TrainClassifierError
from train_classifier.core.text import clean, show_bytes

#: Seconds between two looks at a running job.
COPY_S = 5.0
#: Most bytes of one job's event files.
MOST_BYTES = 2 << 30
#: Most files of one job that are kept here.
MOST_FILES = 10_000
#: Seconds that TensorBoard may take to start: the first start by uvx fetches it.
START_S = 300.0
#: Seconds that it may take to end.
END_S = 10.0
#: TensorBoard's own port, and how many after it are tried.
PORT, MOST_PORTS = 6006, 100
#: Runs TensorBoard for as long as it and this program live: its standard input ends with us, also by SIGKILL.
TOGETHER = '{ "$@" </dev/null; kill -TERM 0; } & cat >/dev/null; kill -TERM 0'
INSTALL = "Install it: pipx install tensorboard, or uv tool install tensorboard. With uv alone, uvx runs it."


class EventCopy:
    """The event files of one job, copied into a folder of ours."""

    def __init__(self, host: RemoteHost, job: str, folder: Path) -> None:
        self.host, self.job = host, job
        self.is_finished = False
        #: Bytes of each file that are here.
        self.known: dict[str, int] = {}
        self._folder = folder

    def update(self) -> dict[str, Any]:
        """Copy what is new, and return the host's last answer; `files` and `left_out` are numbers."""
        request = {"verb": "events", "id": self.job, "known": self.known, "most": MOST_BYTES}
        with contextlib.closing(self.host.stream(request, fetch.FILES_S)) as lines:  # type: ignore[type-var]
            for line in lines:
                if line.get("file"):
                    self._receive(line, lines)
                elif "state" in line:
                    self.is_finished = line["state"] == "finished"
                    return line
        raise NotReady(f"{self.host.name} ended in the middle of an answer.")

    def _receive(self, line: dict[str, Any], lines: Iterator[dict[str, Any]]) -> None:
        path, offset, size = line["file"], line.get("offset") or 0, line.get("bytes") or 0
        parts = fetch.parts_of(path)
        if not parts or "tfevents" not in parts[-1] or not 0 <= offset <= self.known.get(path, 0):
            raise NotReady(f"{self.host.name} sent a file that is no event file: {clean(path)[:200]}.")
        # Files that are gone there are still here, so this may be somewhat more than a host sends at once.
        total = sum(self.known.values()) - self.known.get(path, 0) + offset + size
        if total > 2 * MOST_BYTES or len(self.known) > MOST_FILES:
            raise NotReady(f"{self.host.name} sent more event files than are shown.")
        try:
            self._write(self._folder.joinpath(*parts), offset, size, lines)
        except OSError as error:
            name = f"{clean(path)[:200]} of job {self.job}"
            raise NotReady(f"{name} cannot be written here: {error.strerror}.", ROOM_HINT) from error
        self.known[path] = offset + size

    def _write(self, target: Path, offset: int, size: int, lines: Iterator[dict[str, Any]]) -> None:
        # The folder is ours alone, and nothing in it is a link.
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if not offset:
                file.truncate()
            file.seek(offset)
            fetch.read_content(lines, file, size)


def show(hosts: Sequence[RemoteHost], names: Sequence[str], port: int | None, console: Console) -> ExitCode:
    """Show jobs and groups in TensorBoard until Ctrl-C. Raises BadInput for jobs without event files."""
    program = _program()
    with private_folder() as folder, _ended_by_signals():
        events = folder / "events"
        copies = [copy for name in names for copy in _copies(hosts, name, events)]
        answers = [copy.update() for copy in copies]
        if not any(answer["files"] for answer in answers) and all(copy.is_finished for copy in copies):
            raise BadInput(
                f"{'this job' if len(copies) == 1 else 'these jobs'} left no event files of TensorBoard",
                hint="Keras writes them with callbacks=[keras.callbacks.TensorBoard('artefacts/logs')], "
                "PyTorch with torch.utils.tensorboard.SummaryWriter('artefacts/logs')",
            )
        most = show_bytes(MOST_BYTES)
        for copy, answer in zip(copies, answers, strict=True):
            if answer["left_out"]:
                text = f"{answer['left_out']} event files of job {copy.job} are not shown: there are too many"
                console.event("message", level="warning", text=f"{text}, or more than {most} of them.")
        events.mkdir(exist_ok=True)
        port = _free_port(port)
        # Every account of this machine can connect to the port: only who knows this sees a page.
        path = secrets.token_hex(16)
        with _running(program, events, port, path, folder) as process:
            shown = copies[0].job if len(copies) == 1 else f"{len(copies)} jobs"
            with contextlib.suppress(KeyboardInterrupt):
                address = f"http://127.0.0.1:{port}/{path}/"
                console.say(f"{address} shows {shown} in TensorBoard. Ctrl-C ends this.")
                _keep_up_to_date(copies, process, console)
                raise NotReady("TensorBoard has ended.", detail=_output(folder))
    return ExitCode.TRAINED


def _copies(hosts: Sequence[RemoteHost], name: str, folder: Path) -> list[EventCopy]:
    located = find_jobs.find(hosts, name)
    jobs = [str(job["id"]) for job in located.jobs] if located.jobs else [located.require_started().id]
    if ((located.answer.get("status") or {}).get("slurm_job")) and not located.answer.get("result"):
        raise NotReady(
            f"Job {located.id} runs on a node of a cluster, where its files are until it ends.",
            f"Wait for it (train-classifier attach {located.id}{located.host.flags}), or start a TensorBoard "
            "in its container by exec, and see that by forward.",
        )
    return [EventCopy(located.host, job, folder / job) for job in jobs]


def _keep_up_to_date(
    copies: Sequence[EventCopy], process: "subprocess.Popen[bytes]", console: Console
) -> None:
    """Copy what running jobs write, until TensorBoard ends."""
    was_lost = False
    while process.poll() is None:
        for copy in copies:
            if copy.is_finished:
                continue
            try:
                copy.update()
                was_lost = False
            except TrainClassifierError as error:
                if not was_lost:
                    text = f"{error.reason} What is here is shown; trying again."
                    console.event("message", level="warning", text=text)
                was_lost = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(COPY_S)


def _program() -> list[str]:
    """Return the command line of the user's TensorBoard. Raises NotReady."""
    if program := shutil.which("tensorboard"):
        return [program]
    if program := shutil.which("uvx"):
        return [program, "tensorboard"]
    raise NotReady("There is no tensorboard on this machine.", INSTALL)


def _free_port(wanted: int | None) -> int:
    """Return the port of this machine that is asked for, else the first that is free. Raises BadInput."""
    for port in [wanted] if wanted else range(PORT, PORT + MOST_PORTS):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError as error:
            reason = os.strerror(error.errno or 0)
    raise BadInput(f"port {port} of this machine cannot be used: {reason}")


@contextlib.contextmanager
def _running(
    program: Sequence[str], events: Path, port: int, path: str, folder: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield TensorBoard once it answers; it is ended afterwards. Raises NotReady when it does not start.

    Its pages are below `path`, which no other account sees: neither in its arguments nor in what it writes.
    """
    (folder / "flags").write_text(f"--path_prefix=/{path}\n")
    flags = ["--logdir", str(events), "--host", "127.0.0.1", "--port", str(port), "--reload_interval", "5"]
    # Its faster reader of files is a server of its own, on a port that answers everybody.
    flags += ["--load_fast", "false", "--flagfile", str(folder / "flags")]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", TOGETHER, "board", *program, *flags],
            # uvx reads settings in the current folder, which may be a checkout, and in those above it.
            cwd=Path.home() if Path.home().is_dir() else "/",
            # It writes there what it shows and where, for all to read.
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_S
        while not _answers(port, path):
            if process.poll() is not None or time.monotonic() > end:
                raise NotReady("TensorBoard did not start.", INSTALL, _output(folder))
            time.sleep(0.1)
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        assert process.stdin is not None
        process.stdin.close()


def _answers(port: int, path: str) -> bool:
    """Tell whether our TensorBoard answers: something else may have taken the port meanwhile."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", f"/{path}/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _output(folder: Path) -> str | None:
    lines = (folder / "output").read_bytes().decode("utf-8", "replace").splitlines()
    return "\n".join(map(clean, lines[-20:])) or None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have a hang-up and SIGTERM end this as Ctrl-C does, so that TensorBoard does not stay behind."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
