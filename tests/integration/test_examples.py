"""examples/classifiers keeps the contract with a repository, and its models reach the documented results."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from train_classifier.request import settings_file

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "classifiers"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A fresh copy of the sample repository, as a checkout of its own."""
    copy = tmp_path / "classifiers"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "."], cwd=EXAMPLE, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLE / name, copy / name)
    subprocess.run(["git", "init", "-q", copy], check=True)
    subprocess.run(["git", "add", "."], cwd=copy, check=True)
    return copy


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with TensorFlow and what both models ask for."""
    venv = tmp_path_factory.mktemp("examples") / "venv"
    subprocess.run(["uv", "venv", "-q", "--python", sys.executable, venv], check=True)
    options = [part for model in ("mnist", "yolo") for part in ("-r", EXAMPLE / model / "requirements.txt")]
    subprocess.run(
        ["uv", "pip", "install", "-q", "--python", venv / "bin" / "python", "tensorflow-cpu", *options],
        check=True,
    )
    return venv / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def history(repository: Path) -> list[dict[str, str]]:
    with (repository / "artefacts" / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(repository: Path) -> dict[str, float]:
    return json.loads((repository / "artefacts" / "metrics.json").read_text())


def git_status(repository: Path) -> str:
    return subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("A  ", "")


def test_results_are_ignored_by_git(repository: Path) -> None:
    before = git_status(repository)
    for name in ("artefacts/model.keras", "artefacts.tar.gz", "yolo/checkpoints/model.keras"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"x")
    assert git_status(repository) == before
    assert "artefacts/README.md" in before
    assert "artefacts/.gitignore" in before


def test_workflow_is_short_and_uploads_after_a_failure() -> None:
    text = (EXAMPLE / ".github" / "workflows" / "train.yml").read_text()
    assert len(text.splitlines()) <= 12
    assert f"```yaml\n{text}```" in (EXAMPLE.parents[1] / "README.md").read_text()
    job = yaml.safe_load(text)["jobs"]["train"]
    assert job["runs-on"] == ["self-hosted", "linux", "docker", "X64"]
    checkout, train, upload = job["steps"]
    assert checkout["uses"].startswith("actions/checkout@")
    assert train["uses"].startswith("Incuvers/train-classifier@")
    assert train["env"] == {"MODEL": "mnist"}
    assert upload["if"] == "always()"
    assert upload["with"]["path"] == "artefacts.tar.gz"


def test_settings_are_valid() -> None:
    assert set(settings_file.load(EXAMPLE).models) == {"mnist", "yolo"}


def test_yolo_copies_checkpoints_as_the_original_action_did() -> None:
    text = (EXAMPLE / "yolo" / "__main__.py").read_text()
    assert "from distutils.dir_util import copy_tree" in text
    assert 'copy_tree(str(CHECKPOINTS), "artefacts")' in text


@pytest.mark.full
def test_data_parts_share_no_digit(python: Path, repository: Path) -> None:
    code = """
from mnist import digits
parts = digits.load()
seen = {name: {image.tobytes() for image in images} for name, (images, _) in parts.items()}
print(*(len(images) for images, _ in parts.values()), *(len(s) for s in seen.values()))
names = list(seen)
print(*(len(seen[a] & seen[b]) for a in names for b in names if a < b))
"""
    sizes, shared = run(python, "-c", code, cwd=repository).splitlines()
    assert sizes.split() == ["3500", "500", "1000"] * 2
    assert shared.split() == ["0", "0", "0"]


@pytest.mark.full
def test_average_precision_matches_hand_calculation(python: Path, repository: Path) -> None:
    """Two 3s and a 5 in two scenes; found: a 3 (score 0.9, right), a 3 where there is none (0.8), a 3 (0.7,
    right) and a second box for that one (0.6). All points: AP of 3 is 1/2 * 1 + 1/2 * 2/3; the 5 is missed: 0."""
    code = """
import numpy as np
from yolo import evaluation
from yolo.scenes import Scenes

def cell(output, row, column, digit, score):
    output[row, column] = 0
    output[row, column, 0] = np.log(score / (1 - score))
    output[row, column, 5 + digit] = 30

box = lambda row, column: [column * 8 + 4 - 9, row * 8 + 4 - 9, column * 8 + 4 + 9, row * 8 + 4 + 9]
outputs = np.zeros((2, 8, 8, 15)); outputs[..., 0] = -30
cell(outputs[0], 2, 2, 3, 0.9)
cell(outputs[0], 6, 6, 3, 0.8)
cell(outputs[1], 3, 3, 3, 0.7)
cell(outputs[1], 3, 4, 3, 0.6)
scenes = Scenes(np.zeros((2, 64, 64)), [np.array([box(2, 2)]), np.array([box(3, 3), box(6, 6)])],
                [np.array([3]), np.array([3, 5])])
print(evaluation.average_precision(scenes, outputs))
outputs[1, 3, 3, 0] = -30
print(len(evaluation.decode(outputs[1])[0]))
print(evaluation.overlap(np.array([0, 0, 2, 2]), np.array([[1, 1, 3, 3]])))
"""
    precision, *values = run(python, "-c", code, cwd=repository).splitlines()
    assert precision == "{3: 0.8333333333333333, 5: 0.0}"
    assert values == ["1", "[0.14285714]"]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_mnist_learns_and_resumes(python: Path, repository: Path, tmp_path: Path) -> None:
    clean = git_status(repository)
    variables = {"TRAIN_CHECKPOINT_DIR": str(tmp_path / "checkpoints"), "PYTHONDONTWRITEBYTECODE": "1"}
    run(python, "-m", "mnist", "--epochs", "2", cwd=repository, **variables)
    early = history(repository)
    log = run(python, "-m", "mnist", cwd=repository, **variables)
    assert "resumed after epoch 2" in log
    assert "\r" not in log
    rows = history(repository)
    assert rows[:2] == early
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 13)]
    assert metrics(repository)["test_accuracy"] >= 0.95
    assert (repository / "artefacts" / "model.keras").stat().st_size > 100_000
    assert git_status(repository) == clean


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_yolo_finds_digits(python: Path, repository: Path) -> None:
    clean = git_status(repository)
    run(python, "-m", "yolo", cwd=repository, PYTHONDONTWRITEBYTECODE="1")
    final = metrics(repository)
    assert final["test_map50"] >= 0.5
    assert final["test_map50"] == pytest.approx(
        sum(final[f"test_ap50_{digit}"] for digit in range(10)) / 10, abs=1e-3
    )
    assert [row["epoch"] for row in history(repository)] == [str(epoch) for epoch in range(1, 15)]
    assert (repository / "artefacts" / "model.keras").is_file()
    assert git_status(repository) == clean
