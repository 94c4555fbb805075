"""This program itself: where it lies, and calling a part of it in a child as the job's user."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_classifier.errors import ExitCode, TrainClassifierError
from train_classifier.worker.host import Account

#: The folder that `python3 -I` is given.
PROGRAM = Path(__file__).resolve().parents[2]
#: What runs it.
PYTHON = sys.executable


def command(*arguments: str) -> list[str]:
    """Return the command line of this program with arguments."""
    return [PYTHON, "-I", str(PROGRAM), *arguments]


def open_to_all() -> None:
    """Let the job's user read this program, which root installed."""
    for folder, _, names in os.walk(PROGRAM):
        os.chmod(folder, 0o755)
        for name in names:
            # Another process that starts from here may be writing bytecode: its temporary file is renamed.
            with contextlib.suppress(FileNotFoundError):
                os.chmod(os.path.join(folder, name), 0o644)


def die_with(parent: int) -> None:
    """Let the kernel end this process when its caller dies: what a dead worker began, others do anew.

    PR_SET_PDEATHSIG is 1 (prctl(2)); it is lost at a change of user, so it is set after that, by the child.
    """
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def call(
    account: Account, part: str, request: dict[str, Any], keep_open: Sequence[int] = ()
) -> dict[str, Any]:
    """Run one of parts.PARTS as `account` and return its answer; `keep_open` goes with its child.

    There is a child only for another account: the start of another Python takes longer than most parts do.
    Raises the part's own error; TrainClassifierError when the child died.
    """
    if not account.options():
        return _here(part, request)
    done = subprocess.run(
        command("part", part, str(os.getpid())),
        input=json.dumps(request).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=account.environment(),
        cwd="/",
        pass_fds=keep_open,
        check=False,
        **account.options(),
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        tail = done.stderr.decode("utf-8", "replace")[-2000:]
        raise TrainClassifierError(f"{part} ended with exit status {done.returncode}", detail=tail) from None
    if "error" in answer:
        raise _as_raised(answer["error"])
    return answer


def _here(part: str, request: dict[str, Any]) -> dict[str, Any]:
    from train_classifier.worker import parts, protocol

    try:
        return parts.PARTS[part](request)
    except TrainClassifierError:
        raise
    except Exception as error:
        raise _as_raised(protocol.describe(error)) from error


def _as_raised(error: dict[str, Any]) -> TrainClassifierError:
    return TrainClassifierError(
        error["reason"], error.get("hint"), error.get("detail"), code=ExitCode(error["code"])
    )
