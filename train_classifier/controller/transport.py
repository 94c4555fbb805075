"""Connects to a host: one call, push or pull each. The controller's only subprocesses besides Ansible.

Every command is one shell command line, over ssh or on this machine, so that local and remote jobs use
the same code.
"""

import base64
import contextlib
import json
import re
import shlex
import subprocess
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from train_classifier.controller import processes, ssh_errors
from train_classifier.controller.processes import Progress
from train_classifier.controller.ssh_errors import Unreachable
from train_classifier.controller.temp_files import private_folder
from train_classifier.controller.worker_bundle import INSTALLER, bundle
from train_classifier.core import options
from train_classifier.core.errors import BadInput, ExitCode, NotReady, from_dict
from train_classifier.core.report.metrics import number

#: Exit statuses of the shell command line; they differ from those of shells, ssh and Python.
NO_WORKER = 97
NO_PYTHON = 98

#: No prompts (the run may be unattended), no long waits, and half-open connections are detected.
#: A RemoteCommand or a terminal of the user's configuration would take the place of our command.
SSH_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "2",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}


#: Those that an inventory does not override.
FORCED = ("BatchMode", "RemoteCommand", "RequestTTY")
#: What to do about a login shell that prints.
QUIET_LOGIN = "Remove the output from its start-up files (.bashrc), or make it conditional on a terminal."

#: Deepest nesting of an answer, and the bound of its counts and times.
MOST_DEPTH, MOST_NUMBER = 30, 1e15
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z")
_NUMBERS = (int, (int, float))
#: The type of what has this name in an answer and in what it says of jobs; None stands for any of them.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(
        (
            "status",
            "result",
            "spec",
            "seconds",
            "times",
            "metrics",
            "sweep",
            "unpacked",
            "removed",
            "missing",
        ),
        dict,
    ),
    **dict.fromkeys(("jobs", "failures", "runs", "checks", "notes", "arguments", "gone", "names"), list),
    **dict.fromkeys(
        ("id", "model", "state", "phase", "outcome", "reason", "message", "submitter", "group", "commit"), str
    ),
    **dict.fromkeys(("page", "content", "file", "sha256", "fingerprint"), str),
    **dict.fromkeys(("exit_code", "log_size", "bytes", "offset"), int),
    # What Slurm says of a job that waits makes a fraction of a version.
    **dict.fromkeys(("version", "started", "finished", "submitted", "lease_s"), (int, float)),
    "archive": (str, dict),
    # Bytes of the log, and the data folders of a job.
    "data": (str, list),
    # Of single files: a list, and names; of event files: numbers.
    "files": (str, int),
    "left_out": (int, list),
}
#: Parts of an answer in which these names mean the same.
_NESTED = ("status", "result", "spec", "jobs", "failures", "runs")

#: Processes of the running calls; see `kill_running_calls`.
_RUNNING: "set[subprocess.Popen[bytes]]" = set()


class RemoteHost:
    """One machine that runs jobs, and how to reach it.

    `ssh` is the whole ssh command line up to and with the destination; None means this machine.
    With `own_session` the terminal's Ctrl-C does not reach the child processes.
    """

    def __init__(
        self,
        name: str,
        ssh: Sequence[str] | None = None,
        *,
        python: str | None = None,
        state_dir: str | None = None,
        own_session: bool = False,
        flags: str = "",
        problem: str | None = None,
    ) -> None:
        self.name = name
        self.ssh = _with_options(ssh) if ssh else None
        #: None: the distribution's Python, which has the distribution's Docker SDK.
        self.python = python
        self.state_dir = state_dir
        self.own_session = own_session
        #: The flags that another command needs to find the host again, with a space before each; for hints.
        self.flags = flags
        #: Why the host cannot be used at all; every call fails with it.
        self.problem = problem

    def call(self, request: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
        """Send one request to the worker and return its answer; `timeout` in seconds. Installs it if needed.

        Raises Unreachable when the host cannot be reached, NotReady when it cannot run the worker, and
        the worker's own failure as the exception of its class.
        """
        data = self._request(request)
        for attempt in (1, 2):
            status, out, err = self._run(self._shell(self._worker()), data, timeout)
            if status != NO_WORKER or attempt == 2:
                break
            self.install(timeout)
        self._check(status, err)
        answer = _parsed(_last_line(out))
        if answer is None:
            raise Unreachable(
                f"The worker on {self.name} did not answer '{request.get('verb')}' (exit status {status}).",
                detail=_tail(err or out),
                kind="no-answer",
            )
        return self._checked(answer)

    def login_output(self) -> str:
        """Return what the login shell prints before a command, which a push would take for its own data."""
        status, out, err = self._run(self._shell(":"), b"", 60.0)
        self._check(status, err)
        return out.decode("utf-8", "replace").strip()

    def stream(self, request: dict[str, Any], answer_timeout: float) -> Iterator[dict[str, Any]]:
        """Send one request to the worker and yield its answers as they arrive, until the last one.

        Fails after `answer_timeout` seconds without an answer. Raises as `call` does; an answer
        that is a failure is raised. Close the iterator to end it early.
        """
        data = self._request(request)
        for attempt in (1, 2):
            answered = False
            lines = self._lines(self._shell(self._worker()), data, answer_timeout)
            with contextlib.closing(lines):
                try:
                    while True:
                        line = next(lines)
                        answer = _parsed(line)
                        if answer is None:
                            # Output of a login shell may come before the first answer.
                            if answered:
                                raise Unreachable(
                                    f"The worker on {self.name} ended in the middle of an answer.",
                                    kind="no-answer",
                                )
                            continue
                        answered = True
                        yield self._checked(answer)
                except StopIteration as end:
                    status, err = end.value
            if status != NO_WORKER or attempt == 2:
                break
            self.install()
        if answered and status == 255 and self.ssh is not None:
            # ssh prints nothing when a shared connection ends.
            raise Unreachable(f"The connection to {self.name} was cut.", "Check the network.", _tail(err))
        self._check(status, err)
        if not answered:
            raise Unreachable(
                f"The worker on {self.name} did not answer '{request.get('verb')}' (exit status {status}).",
                detail=_tail(err),
                kind="no-answer",
            )

    def install(self, timeout: float = 60.0) -> None:
        """Put this version's worker on the host, by content hash. Raises as `call` does."""
        name, files = bundle()
        texts = json.dumps({path: content.decode() for path, content in files.items()})
        program = base64.b64encode(INSTALLER.encode()).decode()
        line = (
            f"{self._state()}; {self._find_python()}; "
            f'exec "$P" -I -c \'import base64;exec(base64.b64decode("{program}"))\' '
            f'"$S" {name}'
        )
        status, out, err = self._run(self._shell(line), texts.encode(), timeout)
        self._check(status, err)
        if status:
            raise NotReady(
                f"The worker could not be installed on {self.name}.",
                "Check that the state folder can be written and its disk is not full. Another one: variable "
                "XDG_STATE_HOME on the host, training_job_state_dir in the inventory, or state_dir in "
                "host.json.",
                _tail(err or out),
            )

    def push(self, tree: Path, files: Sequence[bytes], job: str, progress: Progress | None = None) -> None:
        """Send `files` (paths below `tree`) into the job's mirror on the host, by rsync.

        `progress` gets the number of bytes sent.
        Raises Unreachable, NotReady, or the worker's own failure.
        """
        options = ("-lptS", "--dirs", "--chmod=Du+rwx,Fu+rw,ug-s,o-t", "--files-from=-", "--from0")
        self._rsync(
            [*options, "--ignore-missing-args", f"{tree}/", "host:."],
            f"receive {shlex.quote(job)}",
            # Even with --from0 rsync treats a name that starts with # or ; as a comment.
            b"".join(b"./" + name.rstrip(b"/") + b"\0" for name in files),
            progress,
        )

    def pull(self, job: str, destination: Path, progress: Progress | None = None) -> None:
        """Fetch the job's archive into the file `destination`; continue after the bytes of an earlier try."""
        self._rsync(
            ["--partial", "--inplace", "--append", "host:artefacts.tar.gz", str(destination)],
            f"send {shlex.quote(job)}",
            b"",
            progress,
            is_pull=True,
        )

    def exec_command(self, job: str, words: Sequence[str], terminal: bool) -> list[str]:
        """Return the command line that runs `words` in the container of a running job, in this terminal.

        The worker that answered `status` runs it.
        """
        kind = "terminal" if terminal else "pipe"
        argv = self._shell(self._worker(f" exec {shlex.join([job, kind, *words])}"))
        # ssh makes a terminal only where it is told twice that its own input may be none.
        return [argv[0], "-tt", *argv[1:]] if terminal and self.ssh is not None else argv

    def _request(self, request: dict[str, Any]) -> bytes:
        if self.problem:
            raise BadInput(self.problem)
        if self.state_dir:
            request = {**request, "state_dir": self.state_dir}
        return json.dumps(request).encode("ascii")

    def _state(self) -> str:
        if self.state_dir:
            return f"S={shlex.quote(self.state_dir)}"
        return (
            'U=$(id -u); if [ "$U" = 0 ]; then S=/var/lib/train-classifier/state; '
            'else case "${XDG_STATE_HOME:-}" in /*) S=$XDG_STATE_HOME ;; '
            # As the worker: HOME may be unset, or that of another account.
            # The last but one of the fields that colons separate.
            '*) H=$(getent passwd "$U" 2>/dev/null); H=${H%:*}; H=${H##*:}; [ -d "$H" ] || H=${HOME:-$H}; '
            "S=$H/.local/state ;; esac; "
            'S="$S/train-classifier"; fi'
        )

    def _find_python(self) -> str:
        if self.python:
            choose = f"P={shlex.quote(self.python)}"
        else:
            choose = "P=/usr/bin/python3; [ -x $P ] || P=python3"
        return f'{choose}; command -v "$P" >/dev/null 2>&1 || {_end_with(NO_PYTHON)}'

    def _worker(self, arguments: str = "") -> str:
        reader = f"export {options.READER}={options.ACTION}; " if options.is_for_action() else ""
        return (
            f'{reader}{self._state()}; W="$S/workers/{bundle()[0]}"; {self._find_python()}; '
            f'[ -f "$W/__main__.py" ] || {_end_with(NO_WORKER)}; exec "$P" -I "$W"{arguments}'
        )

    def _shell(self, line: str) -> list[str]:
        """Return the argument vector that runs `line` by sh on the host, whatever the login shell is."""
        if self.ssh is None:
            return ["sh", "-c", line]
        return [*self.ssh, shlex.join(["exec", "sh", "-c", line])]

    def _run(self, argv: list[str], data: bytes, timeout: float) -> tuple[int, bytes, bytes]:
        process = processes.start(argv, self.own_session)
        _RUNNING.add(process)
        try:
            with process:
                try:
                    return processes.output(process, data, timeout)
                except BaseException:
                    process.kill()
                    raise
        except processes.NoOutput as error:
            raise self._no_answer(error.seconds) from None
        except processes.TooMuch:
            raise self._not_understood("is longer than any answer of a worker") from None
        finally:
            _RUNNING.discard(process)

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer of the worker. Raises the failure that it holds, and NotReady for another form."""
        if answer.get("error"):
            raise from_dict(answer["error"], self.name)
        if not _is_answer(answer):
            raise self._not_understood("does not have the form of a worker's answer")
        return answer

    def _not_understood(self, problem: str) -> NotReady:
        return NotReady(
            f"What {self.name} answered {problem}.",
            "Another program answers there, or its worker was changed: look at the login shell's start-up "
            "files, and at the folder workers in the state folder.",
        )

    def _no_answer(self, seconds: float) -> Unreachable:
        return Unreachable(
            f"{self.name} did not answer within {seconds:.0f} s.",
            "Check the network and the load of the host, then try again.",
            kind="silent",
        )

    def _lines(
        self, argv: list[str], data: bytes, answer_timeout: float
    ) -> Generator[bytes, None, tuple[int, bytes]]:
        """Run a command and yield its output by lines; the return value is (exit status, standard error)."""
        try:
            return (yield from processes.lines(processes.start(argv, self.own_session), data, answer_timeout))
        except processes.NoOutput as error:
            raise self._no_answer(error.seconds) from None
        except processes.TooMuch:
            raise self._not_understood("is longer than any answer of a worker") from None

    def _check(self, status: int, err: bytes) -> None:
        """Raise the failure that a status other than the worker's own means."""
        if status == 255 and self.ssh is not None:
            raise ssh_errors.explain(self.name, self.ssh, err.decode("utf-8", "replace"))
        if status == NO_PYTHON:
            raise NotReady(
                f"{self.name} has no {self.python or 'python3'}.",
                "Install Python 3.9 or newer there (role training_host does), or set "
                "ansible_python_interpreter in the inventory.",
            )

    def _rsync(
        self,
        arguments: list[str],
        worker_arguments: str,
        data: bytes,
        progress: Progress | None,
        is_pull: bool = False,
    ) -> None:
        status, err = self._rsync_once(arguments, worker_arguments, data, progress)
        if status == NO_WORKER:
            # `call` installed a worker; since then this side was updated, or the worker was removed.
            self.install()
            status, err = self._rsync_once(arguments, worker_arguments, data, progress)
        if status:
            self._rsync_failed(status, err, is_pull)

    def _rsync_once(
        self, arguments: list[str], worker_arguments: str, data: bytes, progress: Progress | None
    ) -> tuple[int, bytes]:
        path = shlex.join(["exec", "sh", "-c", self._worker(f' {worker_arguments} -- "$@"'), "sh", "rsync"])
        with _remote_shell(self.ssh) as shell:
            options = ("--no-h", "--info=progress2", "--outbuf=N", "--timeout=120")
            argv = ["rsync", *options, "-e", shell, "--rsync-path", path, *arguments]
            status, err = processes.run_rsync(processes.start(argv, self.own_session), data, progress)
        # rsync returns the remote shell's status only if that shell has ended when rsync checks; else 12.
        printed = re.search(rb"^train-classifier: exit (\d+)$", err, re.MULTILINE)
        return int(printed[1]) if printed else status, err

    def _rsync_failed(self, status: int, err: bytes, is_pull: bool) -> None:
        text = err.decode("utf-8", "replace")
        for line in text.splitlines():
            if line.startswith('{"error"'):
                with contextlib.suppress(ValueError):
                    raise from_dict(json.loads(line)["error"], self.name)
        self._check(NO_PYTHON if status == NO_PYTHON else 0, err)
        if status == 24:
            return  # Some source files were removed during the transfer; the others arrived.
        if re.search(r"rsync['\"]?: (command )?not found|No such file or directory: '?b?'?rsync", text):
            raise NotReady(
                f"rsync is not installed on {self.name}.", "Install it there: apt-get install rsync"
            )
        if "is your shell clean" in text:
            raise NotReady(
                f"The login shell on {self.name} prints text of its own.",
                QUIET_LOGIN,
                _tail(err),
            )
        if "No space left on device" in text:
            where = "here" if is_pull else f"on {self.name}"
            raise NotReady(f"The disk {where} is full.", "Free some space, then try again.", _tail(err))
        # 10-14, 30, 35: the connection, its protocol or its time; 255: ssh itself.
        if status in (10, 11, 12, 13, 14, 20, 30, 35, 255) and self.ssh is not None:
            raise ssh_errors.explain(self.name, self.ssh, text)
        raise NotReady(f"rsync to or from {self.name} failed (exit status {status}).", detail=_tail(err))


def kill_running_calls() -> None:
    """Kill the processes of all running calls, because the caller ends and its threads must not wait."""
    for process in list(_RUNNING):
        process.kill()


def _with_options(ssh: Sequence[str]) -> list[str]:
    """Add our options after the command, where the first value wins; the inventory's own options remain."""
    command_line = " ".join(ssh).lower()
    options = [
        word
        for name, value in SSH_OPTIONS.items()
        if name in FORCED or name.lower() not in command_line
        for word in ("-o", f"{name}={value}")
    ]
    return [ssh[0], *options, *ssh[1:]]


@contextlib.contextmanager
def _remote_shell(ssh: list[str] | None) -> Iterator[str]:
    """Yield the value of rsync's -e: a script that ignores the host's name and runs the rest on the host."""
    # The next run removes the folder of a killed run.
    with private_folder() as folder:
        script = folder / "rsh"
        run = f'exec {shlex.join(ssh)} "$@"' if ssh else 'exec sh -c "$*"'
        script.write_text(f"shift\n{run}\n")
        yield f"sh '{script}'"


def _end_with(status: int) -> str:
    """Return the shell command that exits with this status and also prints it, since rsync may lose it."""
    return f"{{ echo 'train-classifier: exit {status}' >&2; exit {status}; }}"


def _last_line(out: bytes) -> bytes:
    """Return the last line, which is the answer; output of a login shell may come before it."""
    lines = out.strip().splitlines()
    return lines[-1] if lines else b""


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, None for anything else."""
    try:
        # No number of JSON: what is printed of an answer must be JSON, too.
        answer = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _is_answer(answer: Any, is_typed: bool = True, depth: int = 0) -> bool:
    """Return whether each value has the type of its name in an answer, so that no command needs to ask.

    Where names are somebody's own, as below `metrics`, only the depth counts.
    """
    if depth > MOST_DEPTH:
        return False
    parts = answer.items() if isinstance(answer, dict) else ((None, each) for each in answer)
    return all(
        (not is_typed or key is None or each is None or _has_type(key, each))
        and (
            not isinstance(each, dict | list)
            or _is_answer(each, is_typed and key in (None, *_NESTED), depth + 1)
        )
        for key, each in parts
    )


def _has_type(key: str, value: Any) -> bool:
    kind = _TYPES.get(key, object)
    if not isinstance(value, kind) or (kind in _NUMBERS and not _is_number(value)):
        return False
    if key == "id":
        return bool(_ID.match(value))
    if key in ("jobs", "failures", "runs"):
        return all(isinstance(each, dict) and "id" in each for each in value)
    if key == "missing":
        return all(map(_are_texts, value.values()))
    if isinstance(value, list) and key in ("left_out", "gone", "names"):
        return _are_texts(value)
    if key == "checks":
        return all(map(_is_check, value))
    if key in ("seconds", "removed"):
        return all(map(_is_number, value.values()))
    if key == "times":
        return all(
            isinstance(span, list) and len(span) == 2 and all(at is None or _is_number(at) for at in span)
            for span in value.values()
        )
    if key == "archive" and isinstance(value, dict):
        return _is_number(value.get("bytes")) and isinstance(value.get("sha256"), str)
    return True


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_check(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("code") not in (None, *ExitCode):
        return False
    return all(isinstance(value.get(key), str) for key in ("name", "status", "message"))


def _is_number(value: Any) -> bool:
    return number(value) is not None and abs(value) < MOST_NUMBER


def _tail(data: bytes) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    return "\n".join(text.splitlines()[-20:]) or None


__all__ = ["RemoteHost", "Unreachable", "kill_running_calls"]
