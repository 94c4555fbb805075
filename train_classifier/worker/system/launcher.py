"""Launchers: start the worker so that it outlives its caller: a system unit, a user unit, or setsid."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

from train_classifier.core import options
from train_classifier.core.errors import NotReady
from train_classifier.core.job import JobSpec
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Account

#: Seconds that packing and cleanup may take after systemd asked a unit to stop.
CLEANUP_S = 300
#: In the job's folder: the error output of an interpreter that crashed, or the traceback of a bug.
CRASH_FILE = "crash.txt"
PASSED_VARIABLES = ("TRAIN_CLASSIFIER_HOST_JSON", "DOCKER_HOST", options.READER)


def find_launcher(caller: Account) -> str:
    """Return what would start a worker for this account: `system`, `user` or `setsid`."""
    if not os.path.isdir("/run/systemd/system") or shutil.which("systemd-run") is None:
        return "setsid"
    if caller.uid == 0:
        return "system"
    # Without lingering a user's units die with the last session.
    lingers = os.path.exists(f"/var/lib/systemd/linger/{caller.name}")
    if not lingers or not os.path.isdir(f"/run/user/{caller.uid}/systemd"):
        return "setsid"
    if not _manager_has_current_groups():
        # The manager keeps the groups of its start, perhaps before this account was added to docker.
        return "setsid"
    with socket.socket(socket.AF_UNIX) as manager:
        manager.settimeout(10)
        try:
            # As systemctl reaches it, whose start takes longer.
            manager.connect(f"/run/user/{caller.uid}/systemd/private")
        except OSError:
            return "setsid"
    return "user"


def launch(folder: Path, spec: JobSpec, caller: Account, kind: str) -> dict[str, Any]:
    """Start the worker of the submitted job in `folder`; return `launcher`, and `unit` or `pid`.

    `kind` is the answer of `find_launcher`. Raises NotReady.
    """
    if kind == "setsid":
        return {"launcher": kind, "pid": _setsid(folder, caller)}
    unit = f"tc-job-{spec.id}"
    argv = [
        "systemd-run", *(["--user"] if kind == "user" else []), "--quiet", "--unit", unit, "--collect",
        "--service-type=exec", "--description", f"train-classifier: {spec.model}",
        # At a shutdown this unit is stopped before the engine, which the worker needs to end the job.
        *(["-p", "After=docker.service"] if kind == "system" else []),
        "-p", "KillMode=mixed", "-p", f"TimeoutStopSec={int(spec.grace_s) + CLEANUP_S}",
        "-p", "ExecStopPost=" + " ".join(map(_quote_for_unit, program.command("finish", str(folder)))),
        # From this environment the worker needs only the host's settings and another engine's address.
        *(f"--property=Environment={_quote_for_unit(f'{key}={value}')}"
          for key, value in _passed_variables().items()),
        *program.command("run", str(folder)),
    ]  # fmt: skip
    process = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(caller),
        cwd="/",
        timeout=60,
        check=False,
    )
    if process.returncode:
        raise NotReady(
            "systemd did not start the worker",
            f"see its log: journalctl -u {unit}",
            process.stdout.decode("utf-8", "replace").strip(),
        )
    return {"launcher": kind, "unit": f"{unit}.service"}


def _manager_has_current_groups(root: Path = Path("/")) -> bool:
    """Tell whether this account's own systemd has the groups of this process; True when it is unknown."""
    groups = set(os.getgroups())
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            if os.stat(folder).st_uid != os.geteuid() or (folder / "comm").read_text() != "systemd\n":
                continue
            lines = (folder / "status").read_text().splitlines()
        except OSError:
            continue
        manager_groups = next((line.split()[1:] for line in lines if line.startswith("Groups:")), [])
        return groups <= {int(word) for word in manager_groups} | {os.getgid()}
    return True


def _passed_variables() -> dict[str, str]:
    """Return the variables that a worker gets from this process's environment."""
    return {key: os.environ[key] for key in PASSED_VARIABLES if os.environ.get(key)}


def _environment(caller: Account) -> dict[str, str]:
    environment = {**caller.environment(), **_passed_variables()}
    if os.path.isdir(f"/run/user/{caller.uid}"):
        environment["XDG_RUNTIME_DIR"] = f"/run/user/{caller.uid}"
    return environment


def _quote_for_unit(word: str) -> str:
    """Quote a word for a unit file: systemd.syntax(7), and `$` and `%` that mean something in a command."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    return f'"{escaped}"'


def _setsid(folder: Path, caller: Account) -> int:
    """Start the worker in its own session, with a clean environment, as a child of init."""
    reader, writer = os.pipe()
    # The error output of an interpreter that crashes goes where users look for it.
    crash = os.open(folder / CRASH_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.close(reader)
            if os.fork() == 0:
                os.write(writer, str(os.getpid()).encode())
                null = os.open("/dev/null", os.O_RDWR)
                for source, target in ((null, 0), (null, 1), (crash, 2)):
                    os.dup2(source, target)
                os.closerange(3, 65536)
                os.chdir("/")
                os.execve(sys.executable, program.command("run", str(folder)), _environment(caller))
        finally:
            os._exit(0)
    os.close(writer)
    os.close(crash)
    os.waitpid(child, 0)
    with open(reader, "rb") as pipe:
        pid = int(pipe.read() or b"0")
    if not pid:
        raise NotReady("the worker could not be started: fork failed")
    return pid


def start_time(pid: int) -> Optional[int]:
    """Return when a process started, in clock ticks since boot (proc(5), stat), None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, also parentheses.
    return int(text.rpartition(")")[2].split()[19])
