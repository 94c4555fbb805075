"""The files of a new model, and of a workflow that trains it; what is there already is never changed."""

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from train_classifier.core import job
from train_classifier.core.errors import BadInput
from train_classifier.core.options import SETTINGS_FILE
from train_classifier.core.text import quoted

#: Frameworks, each with its packages and how many GPUs its model asks for.
FRAMEWORKS = {
    "pytorch": (("torch", "scikit-learn"), '"auto"'),
    "tensorflow": (("tensorflow", "scikit-learn"), '"auto"'),
    "scikit-learn": (("scikit-learn",), "0"),
}
WORKFLOW = ".github/workflows/train.yml"
_TEMPLATES = Path(__file__).parent / "templates"
#: Modules that a model of the same name would hide from itself.
_TAKEN = frozenset(sys.stdlib_module_names) | {
    "PIL", "h5py", "jinja2", "joblib", "keras", "matplotlib", "networkx", "numpy", "pandas", "requests",
    "scipy", "sklearn", "sympy", "tensorflow", "threadpoolctl", "torch", "torchvision", "yaml",
}  # fmt: skip
#: Folders of results and of generated content.
_NO_MODELS = ("artefacts", "checkpoints", "__pycache__", "node_modules", "venv")


def check_name(model: str) -> None:
    """Raise BadInput unless a folder of this name can be a model."""
    if not job.MODEL.match(model):
        raise BadInput(f"{quoted(model)} is not the name of a model: letters, digits and _, as digits_small")
    if model in _NO_MODELS:
        raise BadInput(f"{quoted(model)} is a folder of results or of generated files; take another name")
    if model in _TAKEN:
        raise BadInput(
            f"{quoted(model)} is the name of a Python module that the model would hide; take another"
        )


def model_files(model: str, framework: str) -> dict[str, str]:
    """Return the files of a new model and of the repository around it: path to text."""
    packages, gpus = FRAMEWORKS[framework]
    code = (_TEMPLATES / f"{framework}.py").read_text(encoding="utf-8")
    return {
        f"{model}/__init__.py": "",
        f"{model}/__main__.py": code.replace("MODEL", model),
        f"{model}/requirements.txt": "".join(f"{package}\n" for package in packages),
        SETTINGS_FILE: (
            "# Settings of each model; a flag of the command line wins.\n\n"
            f'[models.{model}]\n# "auto" takes a GPU if the host has one.\ngpus = {gpus}\ntimeout = "1h"\n'
        ),
        ".gitignore": "__pycache__/\nartefacts*.tar.gz\n",
    }


def workflow_files(models: Iterable[str]) -> dict[str, str]:
    """Return the workflow that trains these models after each push: path to text."""
    text = (_TEMPLATES / "train.yml").read_text(encoding="utf-8")
    # Quoted: a model may be called `on` or `null`.
    return {WORKFLOW: text.replace("MODELS", ", ".join(f'"{model}"' for model in models))}


def write(repository: Path, files: dict[str, str]) -> tuple[list[str], list[str]]:
    """Write those that are not there; return the paths that were written, and those that were kept.

    A checkout may be anybody's: no link in it is followed. Raises BadInput when a file cannot be written.
    """
    created: list[str] = []
    kept: list[str] = []
    for name, text in files.items():
        try:
            (created if _write_new(repository, PurePosixPath(name), text) else kept).append(name)
        except OSError as error:
            done = f"; written so far: {', '.join(created)}" if created else ""
            raise BadInput(f"{repository / name} cannot be written: {error.strerror}{done}") from error
    return created, kept


def _write_new(repository: Path, path: PurePosixPath, text: str) -> bool:
    """Write a file unless something of its name is there; return whether it was written."""
    with contextlib.ExitStack() as opened:
        folder = os.open(repository, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, folder)
        for name in path.parent.parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            folder = os.open(name, flags, dir_fd=folder)
            opened.callback(os.close, folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path.name, flags, 0o666, dir_fd=folder)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return True
