"""Converts the flags of `train` to a run, or to the output of a dry run."""

import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

from train_classifier.cli.console import Console
from train_classifier.cli.training_run import TrainingRun, finish
from train_classifier.core import text
from train_classifier.core.errors import ExitCode
from train_classifier.request.build import TrainRequest, build
from train_classifier.request.flags import own_settings

#: Flags whose name differs from the request's.
NAMES = {"env": "environment", "secret": "secrets"}


def train(
    model: str | None,
    arguments: Sequence[str] | None,
    repo: str | None,
    given: dict[str, Any],
    *,
    json_mode: bool,
    dry_run: bool,
) -> ExitCode:
    """Check the request, then run it. Raises BadInput with every problem of the request at once."""
    # Flags that are not set are None or empty: then the environment and the settings apply.
    options = {NAMES.get(name, name): value for name, value in given.items() if value not in (None, [], ())}
    plan = build(
        TrainRequest(model=model, arguments=arguments, repo=repo, **options),
        os.environ,
        own_settings=own_settings(os.environ),
    )
    console = Console(json_mode=json_mode)
    for warning in plan.warnings:
        console.event("message", level="warning", text=warning)
    assert plan.look is not None
    if dry_run:
        _describe(plan, console)
        return ExitCode.TRAINED
    run = TrainingRun(plan.order(), plan.look, plan.secrets, console)
    code = run.run(plan.inventory, plan.host)
    finish(run, code, console)
    return code


def _shown(name: str, value: Any) -> str:
    if name == "data":
        return " ".join(f"{folder['path']}:{folder['name']}" for folder in value)
    if name.endswith("_bytes"):
        return text.show_bytes(value)
    if name.endswith("_s"):
        return text.show_seconds(value)
    return shlex.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _describe(plan: Any, console: Console) -> None:
    console.finish()
    spec = plan.spec
    if console.json_mode:
        spoken = {
            "id": None,
            "model": spec.model,
            "host": plan.target.name,
            "outcome": "dry-run",
            "exit_code": 0,
            "spec": {**spec.to_dict(), "id": None},
            "files": [os.fsdecode(path).encode("utf-8", "replace").decode() for path in plan.sources.paths],
            "output": str(plan.output),
            "warnings": plan.warnings,
        }
        console.out(json.dumps(spoken))
        return
    settings = {
        name: value
        for name, value in spec.to_dict().items()
        if value not in (None, (), [], {}, "", False)
        and name not in ("id", "schema", "model", "repository", "source_files", "source_bytes", "environment")
    }
    rows: list[tuple[str, object]] = [
        ("model", spec.model),
        ("repository", f"{plan.repository} ({(spec.repository.commit or 'no commit')[:12]})"),
        ("host", plan.target.name),
        ("push", f"{spec.source_files} files, {text.show_bytes(spec.source_bytes)}"),
        ("output", plan.output),
        *((name, _shown(name, value)) for name, value in settings.items()),
    ]
    if spec.environment:
        rows.append(("environment", " ".join(sorted(spec.environment))))
    console.out(text.table(rows))
    console.say("Dry run: nothing was touched.")
