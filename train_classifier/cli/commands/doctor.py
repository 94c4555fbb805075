"""`train-classifier doctor`: each check of each host, its result, and what to do about it."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core import options, text
from train_classifier.core.errors import DOCS, ExitCode, TrainClassifierError
from train_classifier.request import flags

if TYPE_CHECKING:
    from train_classifier.cli.console import Console
    from train_classifier.controller.transport import RemoteHost

#: Each check, and what to do when it fails.
CHECKS_PAGE = f"{DOCS}/hosts/#checks"
MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red"), "skip": ("skip", "dim")}


@click.command()
@click.option("--gpus", metavar="N|auto", help="GPUs that a job would need. [default: 1]")
@parameters.inventory
@parameters.host
@parameters.json_mode
def doctor(gpus: str | None, inventory: str | None, host: str | None, json_mode: bool) -> int:
    """Check whether hosts are ready: each check, its result, and what to do about it.

    \b
    Exit code 0 when all are ready, else that of the first failed check.

    \b
    Example:
      train-classifier doctor --inventory hosts.yml
    """
    from train_classifier.cli.console import Console
    from train_classifier.cli.hosts import hosts

    (parsed_gpus,) = parameters.parse_values(("--gpus", flags.gpus, gpus))
    gpu_count = options.default("gpus") if parsed_gpus is None else parsed_gpus
    return check_hosts(hosts(inventory, host), gpu_count, Console(json_mode=json_mode))


def check_hosts(hosts: Sequence["RemoteHost"], gpus: int | str, console: "Console") -> ExitCode:
    """Check every host and return 0, or the code of the first failed check (3 or 8 as a rule)."""
    from train_classifier.controller import find_jobs
    from train_classifier.controller.transport import QUIET_LOGIN

    request = {"verb": "check", "gpus": gpus, "min_vram_mib": None, "image": None, "deep": True}

    def ask(host: "RemoteHost") -> dict[str, Any]:
        answer = host.call(request, timeout=300)
        output = host.login_output()
        if output:
            message = f"the login shell prints text of its own: {text.short(output.splitlines()[0], 60)}"
            fields = {"name": "login-shell", "status": "fail", "message": message, "hint": QUIET_LOGIN}
            answer.setdefault("checks", []).append({**fields, "code": int(ExitCode.NOT_READY)})
            answer["ready"] = False
        return answer

    answers = find_jobs.ask_hosts(hosts, ask)
    code = ExitCode.TRAINED
    report: list[dict[str, Any]] = []
    for host, answer in answers:
        if isinstance(answer, TrainClassifierError):
            code = code or answer.code
            # The same keys as those of a host that answers.
            blank = dict.fromkeys(("worker", "python", "host", "engine", "queued", "launcher", "state_dir"))
            failure = {"name": host.name, "ready": False, "error": answer.to_dict()}
            report.append({**blank, "gpus": [], "checks": [], **failure})
            continue
        failed = [check for check in answer.get("checks", []) if check.get("status") == "fail"]
        if failed and not code:
            code = ExitCode(failed[0].get("code") or ExitCode.NOT_READY)
        report.append({**answer, "name": host.name, "error": None})
    console.finish()
    if console.json_mode:
        ready = code == ExitCode.TRAINED
        console.out(json.dumps({"ready": ready, "exit_code": int(code), "hosts": report}))
        return code
    for (host, answer), _ in zip(answers, report, strict=True):
        if isinstance(answer, TrainClassifierError):
            console.out(console.paint_out(host.name, "bold"))
            console.error(answer)
        else:
            _show(host.name, answer, console)
    if code and any(each["checks"] for each in report):
        console.out(console.paint_out(f"  {CHECKS_PAGE}", "dim"))
    return code


def _show(name: str, answer: dict[str, Any], console: "Console") -> None:
    checks = answer.get("checks", [])
    console.out(console.paint_out(name, "bold"))
    width = max((len(text.clean(check["name"])) for check in checks), default=0)
    for check in checks:
        mark, colour = MARKS.get(check["status"], (check["status"], None))
        start = f"  {mark.ljust(4)}  {text.clean(check['name']).ljust(width)}  "
        line = text.hanging(start, check["message"], console.width)
        console.out(line.replace(mark, console.paint_out(mark, colour), 1))
        if check.get("hint") and check["status"] in ("warn", "fail"):
            console.out(text.hanging(f"        {' ' * width}  → ", check["hint"], console.width))
    state, colour = ("ready", "green") if answer.get("ready") else ("not ready", "red")
    console.out(f"  {console.paint_out(state, colour)}")
