"""The worker's command line: JSON requests, the two rsync commands, and the run and the end of a job."""

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


def _cards(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    from train_classifier.worker.gpus import cards

    return cards.look(request, host)


def _rerun(request: dict[str, Any], host: Host, store: Store) -> dict[str, Any]:
    from train_classifier.worker.checks import repeat

    return repeat.look(request, host, store)


def _files(request: dict[str, Any], host: Host, store: Store) -> Answer:
    from train_classifier.worker.transfer import archive_files

    return archive_files.send(request, host, store)


def _events(request: dict[str, Any], host: Host, store: Store) -> Iterator[dict[str, Any]]:
    from train_classifier.worker.transfer import event_copies

    job = store.find(request.get("id"))
    recover.finish_if_dead(job, host)
    known, state = request.get("known"), job.status()["state"]
    most = int(query.number(request, "most", 0, 1 << 60))
    answer: dict[str, Any] = {"files": 0, "left_out": 0}
    # In a folder of the last release, the job's account can put anything in the place of the archive.
    if not job.is_foreign:
        answer = event_copies.send(job, host.job_user(), known if isinstance(known, dict) else {}, most)
    yield {"id": job.id, "state": state, **answer}


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
    "cards": _cards,
    "prepare": prepare.prepare,
    "submit": _submit,
    "read": query.read,
    "follow": query.follow,
    "follow_group": query.follow_group,
    "status": query.status,
    "list": query.list_jobs,
    "report": query.report,
    "runs": query.list_runs,
    "rerun": _rerun,
    "cancel": query.cancel,
    "pack": query.pack,
    "files": _files,
    "events": _events,
    "clean": _clean,
}


def main(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name; return the exit status."""
    if not arguments:
        return _answer()
    command, parameters = arguments[0], arguments[1:]
    if command in ("receive", "send") and len(parameters) >= 3 and parameters[1] == "--":
        return _rsync(command, parameters[0], parameters[2:])
    if command == "exec" and len(parameters) >= 3:
        return _exec(parameters[0], parameters[1] == "terminal", parameters[2:])
    if command == "exec-on-node" and len(parameters) >= 3:
        return _exec(parameters[0], parameters[1] == "terminal", parameters[2:], is_on_node=True)
    if command == "run" and (len(parameters) == 1 or (len(parameters) == 2 and parameters[1].isdigit())):
        return _run(Path(parameters[0]), int(parameters[1]) if parameters[1:] else 0)
    if command == "person" and len(parameters) == 1:
        from train_classifier.worker.slurm_node import service_half

        return service_half.main(parameters[0])
    if command == "finish" and len(parameters) == 1:
        return _finish(Path(parameters[0]))
    print(f"unknown arguments: {' '.join(arguments)}", file=sys.stderr)
    return int(ExitCode.BAD_INPUT)


def _run(folder: Path, rank: int) -> int:
    """Run a job, which on a node of a cluster Slurm asks for; `rank` is the place of a further node."""
    if "SLURM_JOB_ID" in os.environ:
        from train_classifier.worker.slurm_node import person_half

        host = person_half.host_of(folder) if person_half.is_needed() else Host.load()
        if host.slurm_shared_dir is not None and host.slurm_shared_dir in folder.parents:
            from train_classifier.worker.slurm_node import member_job, node_job

            return member_job.run(folder, rank, host) if rank else node_job.run(folder, host)
    from train_classifier.worker.jobs import run

    run.run_job(Job(folder))
    return 0


def _host() -> Host:
    """Return the host's settings; on a submit host of Slurm, root becomes the account of its jobs."""
    host = Host.load()
    if host.is_submit_host and os.geteuid() == 0:
        from train_classifier.worker.slurm import shared_folder

        shared_folder.become_service_account(host)
    return host


def _answer() -> int:
    """Answer the request on standard input; failures are answers too."""
    try:
        answers = respond(sys.stdin.buffer.read(REQUEST_BYTES))
        for answer in [answers] if isinstance(answers, dict) else answers:
            print(json.dumps(answer), flush=True)
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
    host = _host()
    return verb(request, host, Store(host.state_dir(request)))


def _rsync(command: str, name: str, arguments: Sequence[str]) -> int:
    """Serve rsync; it owns the standard output, so a failure is one line of JSON on standard error."""
    try:
        host = _host()
        job = _job(host, name)
        arguments = arguments[1:] if arguments[0] == "rsync" else arguments
        return (rsync.receive if command == "receive" else rsync.send)(job, host, arguments)
    except Exception as error:
        description = host_faults.describe(error)
        print(json.dumps({"error": description}), file=sys.stderr, flush=True)
        return int(description["code"])


def _exec(name: str, terminal: bool, words: Sequence[str], is_on_node: bool = False) -> int:
    """Become a command in the container of a running job of this account.

    Where Slurm starts the jobs, the node of the job is asked: `is_on_node`.
    """
    try:
        from train_classifier.worker.containers import engine
        from train_classifier.worker.training import container

        if is_on_node:
            from train_classifier.worker.slurm_node import person_half

            person_half.require_docker_rights()
        host = _host()
        job = _job(host, name)
        if host.is_submit_host and not is_on_node:
            from train_classifier.worker.slurm import job_step

            arguments = ["exec-on-node", job.id, "terminal" if terminal else "pipe", *words]
            job_step.become_step(job, host.caller(), arguments, terminal)
        flags = ["--interactive", *(["--tty"] if terminal else [])]
        # The engine that runs the jobs, also where the account's client has another one as its context.
        os.environ.pop("DOCKER_CONTEXT", None)
        os.environ["DOCKER_HOST"] = os.environ.get("DOCKER_HOST") or f"unix://{engine.SOCKET}"
        # The engine's own client: it knows terminals, their sizes and signals.
        os.execvp("docker", ["docker", "exec", *flags, container.name_of(job), *words])
    except FileNotFoundError:
        print("this host has no docker command; install docker-cli", file=sys.stderr)
        return int(ExitCode.NOT_READY)
    except Exception as error:
        description = host_faults.describe(error)
        print(description["reason"], file=sys.stderr)
        return int(description["code"])


def _job(host: Host, name: str) -> Job:
    """Return the job that an rsync command names by its folder or by its id."""
    if name.startswith("/"):
        folder = Path(name)
        refuse_unsafe(folder)
        return Store.of(folder).job(folder.name)
    store = Store(program.PROGRAM.parent.parent)
    return (store if (store.jobs / name).is_dir() else Store(host.state_dir({}))).job(name)


def _finish(folder: Path) -> int:
    """Finish a job whose unit is over: systemd says how it ended in SERVICE_RESULT and EXIT_STATUS."""
    job = Job(folder)
    result, status = os.environ.get("SERVICE_RESULT"), os.environ.get("EXIT_STATUS")
    failed = result not in (None, "success")
    reason = f"the job's worker ended too early ({result}, {status})" if failed else None
    try:
        recover.finish(job, Host.load(), reason)
    except TrainClassifierError as error:
        print(f"{error.reason}: {error.hint}", file=sys.stderr)
        return int(error.code)
    return 0
