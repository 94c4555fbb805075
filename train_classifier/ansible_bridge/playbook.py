"""Run one of our playbooks. The only module that imports ansible_runner."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_classifier.ansible_bridge import content
from train_classifier.core import options
from train_classifier.core.text import without_escapes

#: The variables of the caller's environment that Ansible gets. All others, above all secrets, are not passed
#: on, because ansible-runner writes the environment to a file.
PASSED = frozenset([
    "HOME", "USER", "LOGNAME", "SHELL", "TZ", "TERM", "TMPDIR", "SSH_AUTH_SOCK", "SSH_AGENT_PID",
    "KRB5CCNAME", "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY", "DOCKER_HOST", "TRAIN_CLASSIFIER_HOST_JSON", options.READER,
])  # fmt: skip
PASSED_PREFIXES = ("XDG_", "ANSIBLE_", "AWX_", "RUNNER_OM", "RUNNER_ON")
#: Runs a script. Each task of Ansible is a fork, whose collector touches all memory: a tenth of the CPU time.
SELDOM_COLLECTING = (
    "import gc, sys; gc.set_threshold(100000, 50, 1000); del sys.argv[0]; "
    "exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))"
)


@dataclass(frozen=True)
class Outcome:
    """How ansible-playbook ended: its exit status and, when it failed, its own reason."""

    status: int
    reason: str | None
    unreachable: bool


class Reasons:
    """Collects Ansible's own message for a failure from the stream of events."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.unreachable = False
        self._verbose: list[str] = []

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Process one event; returns False, so that ansible-runner keeps no file of it."""
        kind = event.get("event")
        if kind in ("runner_on_failed", "runner_on_unreachable") and self.reason is None:
            data = event.get("event_data")
            result = data.get("res") if isinstance(data, dict) else None
            message = result.get("msg") if isinstance(result, dict) else None
            self.reason = without_escapes(str(message or event.get("stdout") or "")).strip() or None
            self.unreachable = kind == "runner_on_unreachable"
        elif kind == "verbose" and str(event.get("stdout") or "").strip():
            self._verbose.append(without_escapes(str(event["stdout"])).rstrip())
            del self._verbose[:-30]
        return False

    def text(self) -> str | None:
        """Return the reason, or the last text that Ansible printed outside of any task."""
        return self.reason or "\n".join(self._verbose) or None


def run(
    playbook: str,
    private: Path,
    *,
    inventory: str | None,
    limit: str | None = None,
    variables: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run playbooks/`playbook` and return how it ended.

    `private` is an empty folder of mode 0700 that the caller removes. Runs in any thread; signals of the
    terminal do not reach the child, which has its own session. The caller kills it; `cancelled` is asked only
    once it has started.
    """
    import ansible_runner
    from ansible_runner.utils import OutputEventFilter

    root = content.root()
    reasons = Reasons()
    config = ansible_runner.RunnerConfig(
        private_data_dir=str(private),
        playbook=str(root / "playbooks" / playbook),
        inventory=inventory,
        limit=limit,
        extravars=dict(variables or {}) or None,
        quiet=True,
        ident="run",
    )
    config.prepare()
    Path(config.artifact_dir, "job_events").mkdir(mode=0o700, parents=True)
    runner = ansible_runner.Runner(config, event_handler=reasons)
    events = OutputEventFilter(None, runner.event_callback, suppress_ansible_output=True)
    try:
        # Not by the runner: its terminal, which is not needed here, makes it sleep for a tenth of a second
        # twice.
        process = subprocess.Popen(
            _command(config.command),
            cwd=private,
            env={**_passed(config.env), **ansible_environment(root), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(127, f"ansible-playbook cannot be started: {error}", unreachable=False)
    with process:
        if cancelled():
            process.kill()
        assert process.stdout
        for line in process.stdout:
            events.write(line)
    events.close()
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Outcome(status, reasons.text(), reasons.unreachable)


def _command(words: list[str]) -> list[str]:
    """Return the command line that runs ansible-playbook with a garbage collector that looks seldom."""
    program = Path(sys.executable).with_name(words[0])
    if not program.is_file():
        return words
    return [sys.executable, "-P", "-c", SELDOM_COLLECTING, str(program), *words[1:]]


def ansible_environment(root: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return Ansible's environment: what passes of the caller's, our locale, and where our content lies."""
    package = str(Path(__file__).resolve().parents[2])
    bin_folder = str(Path(sys.executable).parent)
    return {
        **_passed(environ),
        # Ansible refuses to start in a locale that is not UTF-8 or that this machine lacks.
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
        # If installed as a tool, only this program's own script is on PATH; Ansible's programs are beside it.
        "PATH": os.pathsep.join(part for part in (bin_folder, os.environ.get("PATH", os.defpath)) if part),
        "PYTHONPATH": os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part),
        "ANSIBLE_HOST_KEY_CHECKING": os.environ.get("ANSIBLE_HOST_KEY_CHECKING", "True"),
    }


def _passed(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name in PASSED or name.startswith(PASSED_PREFIXES)
    }
