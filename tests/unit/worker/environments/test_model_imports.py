"""Which modules a model imports, as its text says; its text may try to lead out of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train_classifier.worker.environments import model_imports


def test_imports_of_the_model_and_of_the_code_that_it_uses(tmp_path: Path) -> None:
    for name, text in (
        ("mnist/__main__.py", "import os, numpy as np\nfrom shared.data import load\n"),
        ("shared/data.py", "    import torch.nn\n"),
        ("other/__init__.py", "import jax\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert model_imports.top_modules(tmp_path, "mnist") == {"os", "numpy", "shared", "torch"}


@pytest.mark.parametrize("line", ["import /outside", "import ../outside", "import linked"])
def test_nothing_outside_of_the_repository_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    repository, outside = tmp_path / "repository", tmp_path / "outside"
    (repository / "mnist").mkdir(parents=True)
    outside.mkdir()
    (outside / "code.py").write_text("import torch\n")
    (repository / "linked").symlink_to(outside)
    (repository / "mnist" / "__main__.py").write_text(line.replace("/outside", str(outside)) + "\n")
    listed: list[str] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda path: listed.append(os.path.realpath(path)) or walk(path))
    assert "torch" not in model_imports.top_modules(repository, "mnist")
    assert model_imports.top_modules(repository, "linked") == set()
    assert listed == [str(repository / "mnist")]


def test_look_at_many_folders_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_imports, "MOST_ENTRIES", 3)
    (tmp_path / "mnist" / "a" / "b" / "c" / "d").mkdir(parents=True)
    (tmp_path / "mnist" / "a" / "b" / "c" / "d" / "late.py").write_text("import torch\n")
    assert model_imports.top_modules(tmp_path, "mnist") == set()


def test_collecting_of_many_names_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_imports, "MOST_NAMES", 3)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "__main__.py").write_text("import torch, jax, keras, numpy\n")
    assert model_imports.top_modules(tmp_path, "mnist") == set()


def test_name_is_looked_up_once_and_all_files_together_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist").mkdir()
    text = "".join(f"import module{number}\n" for number in range(50))
    for number in range(20):
        (tmp_path / "mnist" / f"part{number}.py").write_text(text)
    looked_up: list[str] = []
    is_code = model_imports._is_code
    monkeypatch.setattr(
        model_imports, "_is_code", lambda root, name: looked_up.append(name) or is_code(root, name)
    )
    assert len(model_imports.top_modules(tmp_path, "mnist")) == 50
    assert len(looked_up) == 51
    monkeypatch.setattr(model_imports, "MOST_BYTES_OF_ALL", len(text) - 1)
    assert model_imports.top_modules(tmp_path, "mnist") == set()
