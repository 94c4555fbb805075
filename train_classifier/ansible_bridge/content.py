"""Finds the content beside the package (playbooks, roles, plugins, ansible.cfg) in a checkout or wheel."""

from pathlib import Path

from train_classifier.core.errors import TrainClassifierError


def root() -> Path:
    """Return the folder that holds site.yml, playbooks/, roles/, plugins/ and ansible.cfg.

    Raises TrainClassifierError when the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_content", package.parent):
        if (folder / "site.yml").is_file() and (folder / "ansible.cfg").is_file():
            return folder
    raise TrainClassifierError(
        f"The playbooks of train-classifier are missing beside {package}.",
        "Install the package again.",
    )
