"""The Ansible collection that the repository is: what is in it, and by which names its parts go."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from loopback.installed import build_collection

from train_classifier import __version__

ROOT = Path(__file__).parents[2]
NAME = "incuvers.train_classifier"


def own_filters() -> set[str]:
    names: set[str] = set()
    for path in (ROOT / "plugins/filter").glob("*.py"):
        spec = importlib.util.spec_from_file_location(f"collection_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        names |= set(module.FilterModule().filters())
    return names


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_collection(tmp_path_factory.mktemp("collection"))


def test_collection_has_the_roles_and_the_package_and_no_link(built: Path) -> None:
    """A link would lead out of the collection, or to a second copy of a plugin."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", "train_classifier", "playbooks/*.yml", "roles", "plugins", "meta", "docs", "LICENSE"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    expected = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    with tarfile.open(built) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if not (member.isfile() or member.isdir())]
    names = {member.name for member in members}
    assert expected - names == set()
    tops = {name.split("/")[0] for name in names}
    files = {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "FILES.json",
        "LICENSE",
        "MANIFEST.json",
        "README.md",
        "SECURITY.md",
    }
    assert tops <= files | {"docs", "meta", "playbooks", "plugins", "roles", "train_classifier"}


def test_collection_has_the_version_of_the_package() -> None:
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"] == __version__


def test_playbooks_of_the_collection_are_found_by_name(built: Path, tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if name != "ANSIBLE_CONFIG"}
    environment |= {"ANSIBLE_HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(programs / "ansible-galaxy", "collection", "install", "-p", "collections", built)
    playbooks = [f"{NAME}.{path.stem}" for path in sorted((ROOT / "playbooks").glob("*.yml"))]
    assert f"{NAME}.site" in playbooks
    run(programs / "ansible-playbook", "--syntax-check", "-i", "localhost,", *playbooks)


def test_roles_name_their_own_filters_in_full() -> None:
    """Ansible finds filters of a collection by their full names alone; so, too, the module that has module_defaults."""
    filters = re.compile(
        rf"(?:\|\s*|map\(['\"])(?:{'|'.join(own_filters())})\b|^\s*(?:- )?github_runner_request:",
        re.MULTILINE,
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for path in (ROOT / "roles").rglob("*.*")
        if path.name != "argument_specs.yml"
        for match in filters.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
