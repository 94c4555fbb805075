"""`init`: what it writes, what it keeps, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import json_output
import pytest
import yaml

from train_classifier.cli.app import run
from train_classifier.request import checkout, settings_file
from train_classifier.starter import first_files


def test_new_repository_has_a_model_its_settings_and_a_workflow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, framework in enumerate(first_files.FRAMEWORKS):
        repository = tmp_path / framework
        repository.mkdir()
        assert (
            run(["init", f"model_{number}", "--framework", framework, "--repo", str(repository), "--json"])
            == 0
        )
        answer = json.loads(capfd.readouterr().out)
        json_output.validate("init", answer)
        assert answer["models"] == checkout.models(repository) == [f"model_{number}"]
        assert answer["kept"] == []
        assert sorted(answer["created"]) == sorted(
            str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()
        )
        compile((repository / f"model_{number}/__main__.py").read_text(), framework, "exec")
        # The settings are those that the command line reads.
        settings = settings_file.load(repository).of(f"model_{number}")
        assert settings["timeout"] == 3600
        assert settings["gpus"] == (0 if framework == "scikit-learn" else "auto")


def test_what_is_there_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train-classifier.toml").write_text("[defaults]\n")
    (tmp_path / ".gitignore").symlink_to("elsewhere")
    assert run(["init", "--yes", "--repo", str(tmp_path)]) == 0
    assert "[models.digits]" in capfd.readouterr().out
    assert (tmp_path / "train-classifier.toml").read_text() == "[defaults]\n"
    assert not (tmp_path / "elsewhere").exists()
    assert run(["init", "--yes", "--repo", str(tmp_path)]) == 2
    assert "digits is there already" in capfd.readouterr().err


def test_link_of_a_checkout_is_not_followed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    repository, outside = tmp_path / "repository", tmp_path / "outside"
    repository.mkdir()
    outside.mkdir()
    (repository / ".github").symlink_to(outside)
    assert run(["init", "digits", "--yes", "--repo", str(repository)]) == 2
    assert "cannot be written" in capfd.readouterr().err
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    "name", ["os", "torch", "scipy", "artefacts", "node_modules", "two words", "../up", "", "a-b", "é" * 300]
)
def test_names_that_are_no_model(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["init", name, "--yes", "--repo", str(tmp_path)]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_workflow_alone_names_the_models_that_are_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "--workflow", "--repo", str(tmp_path)]) == 2
    assert "there is no model" in capfd.readouterr().err
    # YAML reads `on` as true where it is not quoted.
    for name in ("mnist", "yolo", "on"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__main__.py").touch()
    assert run(["init", "cifar", "--workflow", "--repo", str(tmp_path)]) == 2
    assert run(["init", "--workflow", "--repo", str(tmp_path)]) == 0
    workflow = yaml.safe_load((tmp_path / first_files.WORKFLOW).read_text())
    assert workflow["jobs"]["train"]["strategy"]["matrix"] == {"model": ["mnist", "on", "yolo"]}
    assert not (tmp_path / "train-classifier.toml").exists()
