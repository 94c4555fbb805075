"""The worker's command line: JSON requests, the two rsync commands, and calls of the worker to itself."""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Iterator, Union

from train_classifier.core.errors import BadInput, ExitCode, TrainClassifierError
from train_classifier.worker.jobs import prepare, query, recover, submit
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import host_faults, program
from train_classifier.worker.system.host import Host, refuse_unsafe
from train_classifier.worker.transfer import rsync

#: One answer, or several of them; each is printed on its own line.
Answer = Union[dict[str, Any], Iterator[dict[str, Any]]]
Verb = Callable[[dict[str, Any], Host, Store], Answer]
REQUEST_BYTES = 1 << 30


def _check(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    from train_classifier.worker.checks import host_check

    return host_check.check(host, request)


def _submit(request: dict[str, Any], host: Host, store: Store) -> Answer:
    answer = submit.submit(request, host, store)
    if not isinstance(request.get("follow"), dict):
        return answer
    # In the same process: starting another one takes longer than a short job.
    following = query.follow({**request["follow"], "id": request["id"]}, host, store)
    return itertools.chain([answer], following)


def _clean(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    from train_classifier.worker.jobs import clean

    return clean.clean(request, host, store)


VERBS: dict[str, Verb] = {
    "check": _check,
    "prepare": prepare.prepare,
    "submit": _submit,
    "read": query.read,
    "follow": query.follow,
    "status": query.status,
    "list": query.list_jobs,
    "cancel": query.cancel,
    "pack": query.pack,
    "clean": _clean,
}


def main(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name; return the exit status."""
    if not arguments:
        return _answer()
    door, rest = arguments[0], arguments[1:]
    if door in ("receive", "send") and len(rest) >= 3 and rest[1] == "--":
        return _rsync(door, rest[0], rest[2:])
    if door == "part" and len(rest) == 2:
        program.die_with(int(rest[1]))
        return _part(rest[0])
    if door == "run" and len(rest) == 1:
        from train_classifier.worker.jobs import run

        run.carry_out(Path(rest[0]))
        return 0
    if door == "finish" and len(rest) == 1:
        return _finish(Path(rest[0]))
    print(f"unknown arguments: {' '.join(arguments)}", file=sys.stderr)
    return int(ExitCode.BAD_INPUT)


def _answer() -> int:
    """Answer the request on standard input; failures are answers too."""
    try:
        answer = respond(sys.stdin.buffer.read(REQUEST_BYTES))
        for each in [answer] if isinstance(answer, dict) else answer:
            print(json.dumps(each), flush=True)
    except BrokenPipeError:
        # The reader is gone. Python would report the broken pipe again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        print(json.dumps({"error": host_faults.describe(error)}), flush=True)
    return 0


def respond(data: bytes) -> Answer:
    """Return the answer to one request, or several of them.

    Raises BadInput when the data is not a valid request, and whatever its verb raises.
    """
    try:
        request = json.loads(data)
    except ValueError as error:
        raise BadInput(f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise BadInput("the request is not a JSON object")
    verb = VERBS.get(str(request.get("verb")))
    if verb is None:
        raise BadInput(f"unknown verb {request.get('verb')!r}, known are: {', '.join(VERBS)}")
    host = Host.load()
    return verb(request, host, Store(host.state_dir(request)))


def _rsync(door: str, wanted: str, arguments: Sequence[str]) -> int:
    """Serve rsync; it owns the standard output, so a failure is one line of JSON on standard error."""
    try:
        host = Host.load()
        job = _job(host, wanted)
        arguments = arguments[1:] if arguments[0] == "rsync" else arguments
        return rsync.receive(job, host, arguments) if door == "receive" else rsync.send(job, host, arguments)
    except Exception as error:
        described = host_faults.describe(error)
        print(json.dumps({"error": described}), file=sys.stderr, flush=True)
        return int(described["code"])


def _job(host: Host, wanted: str) -> Job:
    """Return the job that an rsync command names by its folder or by its id."""
    if wanted.startswith("/"):
        refuse_unsafe(Path(wanted))
        return Store.of(Path(wanted)).job(Path(wanted).name)
    near = Store(program.PROGRAM.parent.parent)
    return (near if (near.jobs / wanted).is_dir() else Store(host.state_dir({}))).job(wanted)


def _part(name: str) -> int:
    """Run a part of this program for `program.call`."""
    try:
        answer = program.find_part(name)(json.load(sys.stdin))
    except Exception as error:
        answer = {"error": host_faults.describe(error)}
    print(json.dumps(answer), flush=True)
    return 0


def _finish(folder: Path) -> int:
    """Finish a job whose unit is over: systemd says how it ended in SERVICE_RESULT and EXIT_STATUS."""
    job = Job(folder)
    result, status = os.environ.get("SERVICE_RESULT"), os.environ.get("EXIT_STATUS")
    why = (
        f"the job's worker ended too early ({result}, {status})" if result not in (None, "success") else None
    )
    try:
        recover.finish(job, Host.load(), why)
    except TrainClassifierError as error:
        print(f"{error.reason}: {error.hint}", file=sys.stderr)
        return int(error.code)
    return 0
