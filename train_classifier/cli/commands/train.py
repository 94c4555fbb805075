"""`train-classifier train`: converts its flags to a run, or to the output of a dry run."""

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core import options, text
from train_classifier.core.errors import BadInput, ExitCode, SeveralHosts
from train_classifier.core.job import MODEL, JobSpec
from train_classifier.core.options import Kind
from train_classifier.core.text import quoted
from train_classifier.request import precedence
from train_classifier.request.flags import show_own_settings

if TYPE_CHECKING:
    from train_classifier.cli.console import Console
    from train_classifier.cli.runs.group_request import GroupRequest
    from train_classifier.request.build import Plan


@click.command()
@parameters.train_options
@parameters.json_mode
@click.option(
    "--sweep", "sweeps", metavar="NAME=V,V", multiple=True, help="One job for each value, as lr=0.1,0.01."
)
@click.option("--max-parallel", metavar="N", help="Most jobs of a sweep that run at the same time.")
@click.option("--dry-run", is_flag=True, help="Say what would be pushed and run; touch nothing.")
@click.pass_obj
def train(
    after_dashes: Sequence[str] | None,
    /,
    *,
    model: str | None,
    arguments: Sequence[str],
    json_mode: bool,
    sweeps: Sequence[str],
    max_parallel: str | None,
    dry_run: bool,
    **values: Any,
) -> int:
    """Push the repository, train MODEL on a host, show its log, and bring artefacts.tar.gz.

    MODEL is a folder of the repository with a __main__.py; it runs as
    python -m MODEL, and what it writes into artefacts/ comes back.

    \b
    Standard output is the job's log, byte for byte; everything of ours is on
    standard error. Ctrl-C stops the job and fetches its artefacts; a second one
    ends the command at once. A hang-up does not stop the job.

    \b
    Examples:
      train-classifier train mnist
      train-classifier train mnist --gpus auto -- --epochs 3
      train-classifier train yolo -i hosts.yml --host gpu-1 --timeout 6h --detach
      HF_TOKEN=… train-classifier train mnist --secret HF_TOKEN --data /mnt/a:b
      train-classifier train mnist --sweep lr=0.1,0.01 --sweep seed=1,2,3
      train-classifier train mnist yolo

    \b
    Several models and every combination of the sweeps are jobs of one group:
    each has a log, an archive (artefacts-JOB.tar.gz) and an end of its own. A
    sweep's value goes to the model as --NAME VALUE, after what follows --.
    """
    wrong = [word for word in arguments if not MODEL.match(word.rstrip("/"))]
    if wrong:
        words = shlex.join(arguments)
        raise BadInput(
            f"unexpected {quoted(shlex.join(wrong))}: the model's own arguments go after --",
            hint=f"train-classifier train {shlex.quote(str(model))} -- {words}",
        )
    # Flags that are not given are None, False or empty: then the environment and the settings apply.
    set_flags = {name: value for name, value in values.items() if value not in (None, False, ())}
    request = {**set_flags, "model": model, "arguments": after_dashes}
    from train_classifier.cli.runs import group_request

    group = group_request.resolve(request, [word.rstrip("/") for word in arguments], sweeps, max_parallel)
    return run_request(group, json_mode=json_mode, dry_run=dry_run)


def run_request(group: "GroupRequest", *, json_mode: bool, dry_run: bool) -> ExitCode:
    """Run what was asked for: one job by the playbook, several as a group."""
    from train_classifier.cli.console import Console

    console = Console(json_mode=json_mode)
    for warning in group.warnings:
        console.event("message", level="warning", text=warning)
    if dry_run:
        _describe(group, console)
        return ExitCode.TRAINED
    from train_classifier.ansible_bridge import inventory

    plan = group.plans[0]
    # Of a list it is known before Ansible has read it that there are several.
    host = plan.host
    if host is None and len(inventory.listed_hosts(plan.inventory)) > 1:
        host = _choose_host(plan, console)
    run, code, show = _run(group, host, console)
    if host is None and isinstance(run.failure, SeveralHosts):
        run, code, show = _run(group, _choose_host(plan, console), console)
    show(run, code, console)
    return code


def _run(group: "GroupRequest", host: str | None, console: "Console") -> tuple[Any, ExitCode, Any]:
    """Run the jobs on the inventory's host of this name, None: its only one; return the run and its end."""
    from train_classifier.ansible_bridge import inventory
    from train_classifier.cli.runs.training_run import TrainingRun, show_end

    plan = group.plans[0]
    look = plan.look if host == plan.host else lambda: inventory.single_host(plan.inventory, host)
    assert look is not None
    if len(group.jobs) > 1:
        from train_classifier.cli.runs.group_run import GroupRun, show_group_end

        group_run = GroupRun(group.orders(), look, group.secrets(), console)
        return group_run, group_run.run(), show_group_end
    # A flag or a variable names the file of this run; the usual file keeps the last good archive.
    keeps_good = plan.origin.get("output") not in (precedence.FROM_FLAG, precedence.FROM_VARIABLE)
    order = dataclasses.replace(group.orders()[0], keeps_good_archive=keeps_good)
    run = TrainingRun(order, look, plan.secrets, console)
    return run, run.run(plan.inventory, host), show_end


def _choose_host(plan: "Plan", console: "Console") -> str:
    """Return the name of the host that takes the job soonest, and say which and why."""
    from train_classifier.ansible_bridge import inventory
    from train_classifier.cli.hosts import choose

    hosts = [target.connect(own_session=True) for target in inventory.hosts(plan.inventory)]
    host, reason, failures = choose(hosts, plan.spec.gpus, plan.spec.min_vram_mib)
    for failure in failures:
        console.event("message", level="warning", text=f"passed over: {failure.reason}")
    console.say(f"Host {host.name}: {reason}. --host names another one.")
    return host.name


def _show_value(option: options.Option, value: Any) -> str:
    if value in (None, ()):
        return option.default_text
    if option.kind is Kind.FOLDERS:
        return " ".join(f"{folder.path}:{folder.name}" for folder in value)
    if option.kind is Kind.ENVIRONMENT:
        # The names alone: a value may be private.
        return " ".join(sorted(value))
    if option.kind in (Kind.SIZE, Kind.VRAM):
        return text.show_bytes(value if option.kind is Kind.SIZE else value << 20)
    if option.kind is Kind.DURATION:
        return text.show_seconds(value)
    if option.kind is Kind.BOOLEAN:
        return "yes" if value else "no"
    return shlex.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _origin(option: options.Option, origin: str | None) -> str:
    """Return where the value of an option comes from, by the name that its author wrote."""
    names = {
        precedence.FROM_FLAG: option.flag,
        precedence.FROM_VARIABLE: option.environment_variable,
        precedence.FROM_OWN: show_own_settings(os.environ),
        precedence.FROM_FILE: options.SETTINGS_FILE,
    }
    return names.get(origin or "", "default")


def _describe(group: "GroupRequest", console: "Console") -> None:
    console.finish()
    if console.json_mode:
        described = [_as_json(plan, spec) for plan, spec in group.jobs]
        jobs = [{**one, "output": str(path)} for one, path in zip(described, group.outputs(), strict=True)]
        several = {"id": None, "outcome": "dry-run", "exit_code": 0, "jobs": jobs}
        console.out(json.dumps(described[0] if len(described) == 1 else several))
        return
    for number, plan in enumerate(group.plans):
        if number:
            console.out("")
        _describe_plan(plan, console)
    if len(group.jobs) > 1:
        rows = [
            (number, spec.model, shlex.join(spec.arguments)) for number, (_, spec) in enumerate(group.jobs, 1)
        ]
        console.out("\n" + text.table(rows, ("#", "MODEL", "ARGUMENTS"), right=(0,), width=console.width))
        path = str(group.outputs()[0]).replace(group.jobs[0][1].id, "JOB")
        console.out(text.hanging("archives    ", path, console.width))
    console.say("Dry run: nothing was touched.")


def _host_name(plan: "Plan") -> str | None:
    """Return the name of the host, None where it is chosen among several when the job starts."""
    try:
        return plan.target.name if plan.target else None
    except SeveralHosts:
        if plan.host is not None:
            raise
        return None


def _as_json(plan: "Plan", spec: JobSpec) -> dict[str, Any]:
    return {
        "id": None,
        "model": spec.model,
        "host": _host_name(plan),
        "outcome": "dry-run",
        "exit_code": 0,
        "spec": {**spec.to_dict(), "id": None, "group": None},
        "files": [os.fsdecode(path).encode("utf-8", "replace").decode() for path in plan.sources.paths],
        "output": str(plan.output),
        "warnings": plan.warnings,
    }


def _describe_plan(plan: "Plan", console: "Console") -> None:
    spec = plan.spec
    commit = f"commit {spec.repository.commit[:12]}" if spec.repository.commit else "no commit"
    files = "1 file" if spec.source_files == 1 else f"{spec.source_files} files"
    for name, value in (
        ("model", shlex.join([spec.model, *spec.arguments])),
        ("repository", f"{plan.repository} ({commit})"),
        ("push", f"{files}, {text.show_bytes(spec.source_bytes)}"),
        ("host", _host_name(plan) or "the one of several that is free first; train asks them"),
        ("output", plan.output),
    ):
        if name in plan.origin:
            value = f"{value} ({_origin(options.BY_NAME[name], plan.origin[name])})"
        console.out(text.hanging(name.ljust(12), value, console.width))
    fields = spec.to_dict()
    rows = []
    for option in options.SETTINGS.values():
        value = _show_value(option, getattr(spec, option.spec_field, None))
        has_effect = spec.gpus != 0 or option.name not in ("min_vram", "gpu_check")
        if value and has_effect and option.spec_field in fields:
            rows.append((option.name, value, _origin(option, plan.origin.get(option.name))))
    console.out("\n" + text.table(rows, ("SETTING", "VALUE", "FROM"), width=console.width))
