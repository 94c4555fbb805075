"""This program itself: its location, and calls of its parts in a child process as the job's user."""

import contextlib
import importlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union, cast

from train_classifier.core import errors, options
from train_classifier.core.errors import BadInput, TrainClassifierError
from train_classifier.worker.system import host_faults
from train_classifier.worker.system.host import Account

Part = Callable[[dict[str, Any]], dict[str, Any]]
CheckedPart = Callable[[dict[str, Any], Callable[[], None]], dict[str, Any]]

#: The folder that is passed to `python3 -I`.
PROGRAM = Path(__file__).resolve().parents[3]
_WORKER = "train_classifier.worker"
#: The interpreter that runs this program.
PYTHON = sys.executable
#: Seconds between two checks whether a part must end early.
CHECK_S = 0.1
#: The largest answers hold the metrics of a model.
ANSWER_BYTES = 16 << 20


def command(*arguments: str) -> list[str]:
    """Return the command line of this program with arguments."""
    return [PYTHON, "-I", str(PROGRAM), *arguments]


def open_to_all() -> None:
    """Let the job's user read this program, which root installed."""
    for folder, _, names in os.walk(PROGRAM):
        os.chmod(folder, 0o755)
        for name in names:
            # Another process of this program may be writing bytecode: its temporary file is renamed.
            with contextlib.suppress(FileNotFoundError):
                os.chmod(os.path.join(folder, name), 0o644)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its caller dies: another process repeats the caller's work.

    PR_SET_PDEATHSIG is 1 (prctl(2)); it is lost at a change of user, so it is set after that, by the child.
    """
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def part(function: Part) -> Part:
    """Mark a function that `call` may run in a child: it takes the request and returns the answer."""
    function.is_part = True  # type: ignore[attr-defined]
    return function


def checked_part(function: CheckedPart) -> CheckedPart:
    """Mark a part that takes long: within the caller's own process it gets `check` as its second argument."""
    function.is_part = function.takes_check = True  # type: ignore[attr-defined]
    return function


def find_part(name: str) -> Part:
    """Return the part that a child was told to run, `module:function` below the worker. Raises BadInput."""
    module, _, function_name = name.partition(":")
    function = None
    # Programs that run inside a container lie deeper, and run as they are imported.
    if re.fullmatch(r"[a-z_]+\.[a-z_]+", module):
        with contextlib.suppress(ModuleNotFoundError):
            function = getattr(importlib.import_module(f"{_WORKER}.{module}"), function_name, None)
    if not getattr(function, "is_part", False):
        raise BadInput(f"{name} is not a part of the worker")
    return cast(Part, function)


def answer_call(name: str, parent: int) -> int:
    """Run a part for `call` in the process `parent`: the request comes on standard input."""
    die_with_parent(parent)
    try:
        answer = find_part(name)(json.load(sys.stdin))
    except Exception as error:
        answer = {"error": host_faults.describe(error)}
    print(json.dumps(answer), flush=True)
    return 0


def call(
    account: Account,
    function: Union[Part, CheckedPart],
    request: dict[str, Any],
    keep_open: Sequence[int] = (),
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run a part as `account` and return its answer; it inherits the descriptors `keep_open`.

    A child is started only for another account, because the start of Python takes longer than most parts.
    `check` is called repeatedly and may raise, which ends the part. Raises the part's own error;
    TrainClassifierError when the child died or its answer is too large.
    """
    if not account.options():
        return _call_in_process(function, request, check)
    name = f"{function.__module__[len(_WORKER) + 1 :]}:{function.__name__}"
    process = subprocess.Popen(
        command("part", name, str(os.getpid())),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**account.environment(), options.READER: os.environ.get(options.READER, "")},
        cwd="/",
        pass_fds=keep_open,
        # What the part starts ends with it.
        start_new_session=True,
        **account.options(),
    )
    with process:
        try:
            output, error_output = _communicate(process, json.dumps(request).encode(), check)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        tail = error_output.decode("utf-8", "replace")[-2000:]
        raise TrainClassifierError(
            f"{function.__name__} ended with exit status {process.returncode}", detail=tail
        ) from None
    if "error" in answer:
        raise errors.from_dict(answer["error"])
    return answer


def _communicate(
    process: "subprocess.Popen[bytes]", request: bytes, check: Callable[[], None]
) -> tuple[bytes, bytes]:
    """Send a child its request; return its answer and the end of its standard error."""
    assert process.stdin and process.stdout and process.stderr
    # A part reads its whole request before it answers.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(request)
    stdout, stderr = process.stdout.fileno(), process.stderr.fileno()
    output = {stdout: b"", stderr: b""}
    with selectors.DefaultSelector() as selector:
        for descriptor in output:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            check()
            for key, _ in selector.select(CHECK_S):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                output[key.fd] += data
            if len(output[stdout]) > ANSWER_BYTES:
                raise TrainClassifierError(f"a part of the worker answered more than {ANSWER_BYTES} bytes")
            output[stderr] = output[stderr][-2000:]
    return output[stdout], output[stderr]


def _call_in_process(
    function: Union[Part, CheckedPart], request: dict[str, Any], check: Callable[[], None]
) -> dict[str, Any]:
    try:
        arguments = (request, check) if getattr(function, "takes_check", False) else (request,)
        return function(*arguments)
    except TrainClassifierError:
        raise
    except Exception as error:
        raise errors.from_dict(host_faults.describe(error)) from error
