"""`train-classifier init`: the first model of a repository, its settings and its workflow."""

import json
import sys
from pathlib import Path

import rich_click as click

from train_classifier.cli import parameters
from train_classifier.core.errors import BadInput, ExitCode
from train_classifier.core.options import SETTINGS_FILE
from train_classifier.core.text import quoted
from train_classifier.starter import first_files

DEFAULT_MODEL = "digits"


@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option(
    "--framework",
    type=click.Choice(sorted(first_files.FRAMEWORKS)),
    help="What the model is written with. [default: pytorch]",
)
@click.option("--workflow", is_flag=True, help="Only the workflow, for models that are there.")
@click.option("--repo", metavar="DIR", default=".", help="The repository. Default: the current folder.")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing.")
@parameters.json_mode
def init(
    model: str | None, framework: str | None, workflow: bool, repo: str, yes: bool, json_mode: bool
) -> int:
    """Write a model that trains at once, its settings, and a workflow that trains it after each push.

    \b
    The model learns to read handwritten digits; put your own in its place. What
    is there already is never changed.

    \b
    Examples:
      train-classifier init
      train-classifier init digits --framework tensorflow --yes
      train-classifier init --workflow
    """
    from train_classifier.cli.console import Console
    from train_classifier.request import checkout

    repository = checkout.resolve(Path(repo))
    asks = not (yes or json_mode) and sys.stdin.isatty() and sys.stderr.isatty()
    if workflow:
        if framework:
            raise BadInput("--framework belongs to a new model; --workflow writes none")
        models = _models(repository, model)
        written = first_files.workflow_files(models)
    else:
        if model is None:
            model = click.prompt("Name of the model", DEFAULT_MODEL, err=True) if asks else DEFAULT_MODEL
        first_files.check_name(model)
        if (repository / model).exists():
            raise BadInput(
                f"{model} is there already",
                hint="name another model, or write the workflow alone: train-classifier init --workflow",
            )
        if framework is None:
            choice = click.Choice(sorted(first_files.FRAMEWORKS))
            framework = click.prompt("Framework", "pytorch", type=choice, err=True) if asks else "pytorch"
        written = {**first_files.model_files(model, framework), **first_files.workflow_files([model])}
        models = [model]
    created, kept = first_files.write(repository, written)
    console = Console(json_mode=json_mode)
    if json_mode:
        console.out(json.dumps({"models": models, "created": created, "kept": kept}))
        return ExitCode.TRAINED
    notes = {
        SETTINGS_FILE: f"; settings of the model go below [models.{models[0]}]",
        first_files.WORKFLOW: f"; it trains {', '.join(models)} once its list of models says so",
    }
    for name in created:
        console.out(f"wrote  {name}")
    for name in kept:
        console.out(f"kept   {name}, which was there{notes.get(name, '')}")
    console.out(f"\nTrain it:\n  train-classifier train {models[0]}")
    return ExitCode.TRAINED


def _models(repository: Path, model: str | None) -> list[str]:
    """Return the models of a workflow: those of the repository, or the one that is named."""
    from train_classifier.request import checkout

    there = sorted(checkout.models(repository))
    if model in there:
        return [model]
    if model or not there:
        what = f"{quoted(model)} is no model" if model else "there is no model"
        raise BadInput(
            f"{what} in {repository}: a model is a folder with a __main__.py", hint="train-classifier init"
        )
    return there
