"""The page *Writing a model*: its example, its commands, and what it says of the container."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from hosts.fleet import uv_binary
from index_server import Index, serve
from loopback.world import World

from train_classifier.starter import first_files
from train_classifier.worker.containers import image

pytestmark = pytest.mark.engine

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-model.md").read_text()
VARIABLES = re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]+)`)?", PAGE, re.MULTILINE)
PLAIN, PYTORCH = "From the first line to the artefact", "PyTorch, from the first line to the artefact"
EXISTING = "A repository that you already have"
#: A script with flags of its own, which writes beside itself.
SCRIPT = """import argparse, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--epochs")
parser.add_argument("--data", type=pathlib.Path)
arguments = parser.parse_args()
os.makedirs("runs", exist_ok=True)
for name in ("runs/log", "model.pt"):
    pathlib.Path(name).write_text(arguments.data.read_text() if arguments.data else arguments.epochs)
"""
FENCED = r"```\w*\n(.*?)^```$"
PLACES = re.findall(r"^\| `(/[^`]+)` \|", PAGE, re.MULTILINE)


@pytest.fixture
def index(engine: docker.DockerClient) -> Iterator[Index]:
    with serve(engine) as index:
        yield index


def section_of(title: str) -> str:
    """Return a section of the page."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    return section


def follow(world: World, title: str) -> tuple[str, list[str]]:
    """Do what a section of the page says; return the section, and the output of each command."""
    section = section_of(title)
    for name, text in re.findall(rf"^`([\w/.]+)`[^\n]*\n\n{FENCED}", section, re.MULTILINE | re.DOTALL):
        (world.repo / name).parent.mkdir(exist_ok=True)
        (world.repo / name).write_text(text)
    outputs = []
    for command in commands(section):
        words = shlex.split(command)
        if words[0] == "train-classifier":
            variables = {"TRAIN_CLASSIFIER_INVENTORY": str(world.local)}
            done = world.run(*words[1:], cwd=world.repo, timeout=3600, **variables)
        else:
            done = subprocess.run(words, cwd=world.repo, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        outputs.append(done.stdout.decode())
    return section, outputs


def commands(text: str) -> list[str]:
    """The lines of commands in a text."""
    return re.findall(
        r"^    (.+)$", re.sub(f"^{FENCED}", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )


def test_example_trains_and_goes_on(world: World) -> None:
    _, outputs = follow(world, PLAIN)
    assert (world.repo / "artefacts" / "history.csv").read_text().split()[-1].startswith("3,")
    assert outputs[-1].splitlines()[0].startswith("epoch 4: ")
    with tarfile.open(world.repo / "artefacts.tar.gz") as archive:
        assert {"artefacts/model.json", "artefacts/metrics.json"} <= set(archive.getnames())


def serve_wheels(world: World, index: Index, folder: Path, requirements: str) -> None:
    """Let the world's jobs install these from an index with the wheels that this machine's pip finds."""
    (folder / "requirements.txt").write_text(requirements)
    # The image's Python is 3.11.
    pip = [uv_binary(), "tool", "run", "--python", "3.11", "pip", "download", "-q"]
    subprocess.run([*pip, "-d", folder / "wheels", "-r", folder / "requirements.txt"], check=True)
    index.add(*((wheel.name, wheel.read_bytes()) for wheel in (folder / "wheels").iterdir()))
    world.provide_uv()
    settings = json.loads(world.host_json.read_text())
    variables = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
    world.host_json.write_text(json.dumps({**settings, "environment": variables}))


@pytest.mark.full
def test_pytorch_example_trains_and_goes_on(world: World, index: Index, tmp_path: Path) -> None:
    """The wheels may be those without CUDA."""
    requirements = "numpy\ntorch==2.13.0\n"
    assert f"```text\n{requirements}```" in PAGE
    serve_wheels(world, index, tmp_path, requirements)
    section, outputs = follow(world, PYTORCH)
    (printed,) = re.findall(r"^```text\n(epoch .*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert re.sub(r"0\.\d+", "0", outputs[0]) == re.sub(r"0\.\d+", "0", printed)
    assert outputs[-1].startswith("epoch 6: ")
    with tarfile.open(world.repo / "artefacts.tar.gz") as archive:
        assert {"artefacts/model.pt", "artefacts/history.csv"} <= set(archive.getnames())
        metrics = archive.extractfile("artefacts/metrics.json")
        assert metrics is not None and json.load(metrics)["accuracy"] > 0.9


@pytest.mark.full
@pytest.mark.parametrize("framework", first_files.FRAMEWORKS)
def test_model_of_init_trains_and_goes_on(world: World, index: Index, tmp_path: Path, framework: str) -> None:
    """`init`, then `train` with nothing changed; with --resume no epoch is done again."""
    # Isolated environments get setuptools.
    serve_wheels(world, index, tmp_path, "\n".join((*first_files.FRAMEWORKS[framework][0], "setuptools<82")))
    variables = {"TRAIN_CLASSIFIER_INVENTORY": str(world.local)}
    for words in (
        ["init", "digits", "--framework", framework],
        ["train", "digits", "--", "--epochs", "5"],
        ["train", "digits", "--resume", "last", "--", "--epochs", "7"],
    ):
        done = world.run(*words, cwd=world.repo, timeout=3600, **variables)
        assert done.returncode == 0, done.stderr.decode()
    assert b"6/7" in done.stdout and b"5/7" not in done.stdout
    with tarfile.open(world.repo / "artefacts.tar.gz") as archive:
        metrics, history = map(archive.extractfile, ("artefacts/metrics.json", "artefacts/history.csv"))
        assert metrics is not None and json.load(metrics)["val_accuracy"] > 0.8
        assert history is not None and b"val_accuracy" in history.readline()


def test_repository_of_others_trains(world: World) -> None:
    """The page's line for a script at the top, and the commands for its results and data."""
    section = section_of(EXISTING)
    (line,) = re.findall(r"^\| `train\.py` at the top \| `([^`]+)` \|$", section, re.MULTILINE)
    files = {"train.py": SCRIPT, "fit/__init__.py": "", "fit/__main__.py": line}
    for name, text in files.items():
        (world.repo / name).parent.mkdir(exist_ok=True)
        (world.repo / name).write_text(text)
    (world.folder / "digits").mkdir()
    (world.folder / "digits" / "train.csv").write_text("1,2\n")
    by_name, with_data = (shlex.split(command)[1:] for command in commands(section))
    with_data = [word.replace("/srv", str(world.folder)) for word in with_data]
    (setting,) = re.findall(r"`(artefacts = \[[^`]+\])`", section)
    for words, result in ((by_name, b"3"), (with_data, b"1,2\n")):
        # The page's own machine has a GPU.
        variables = {"TRAIN_CLASSIFIER_INVENTORY": str(world.local), "TRAIN_CLASSIFIER_GPUS": "0"}
        done = world.run(*words, cwd=world.repo, **variables)
        assert done.returncode == 0, done.stderr.decode()
        with tarfile.open(world.repo / "artefacts.tar.gz") as archive:
            for name in ("runs/log", "model.pt"):
                file = archive.extractfile(name)
                assert file is not None and file.read() == result
        (world.repo / "train-classifier.toml").write_text(f"[defaults]\n{setting}\n")


def test_every_command_of_the_page_is_run() -> None:
    sections = map(section_of, (PLAIN, PYTORCH, EXISTING))
    assert [command for section in sections for command in commands(section)] == commands(PAGE)


def test_container_has_what_the_page_says(world: World) -> None:
    (world.folder / "digits").mkdir()
    places = [place.replace("/home/NAME", "~").replace("NAME", "digits") for place in PLACES]
    model = world.model(
        "import json, pathlib\n"
        f"found = [os.path.isdir(os.path.expanduser(place)) for place in {places}]\n"
        "facts = {'found': found, 'here': os.getcwd(), 'environment': dict(os.environ)}\n"
        "pathlib.Path('artefacts/facts.json').write_text(json.dumps(facts))\n"
    )
    output = world.work / "out.tar.gz"
    done = world.run(*world.train(model, "--data", f"{world.folder / 'digits'}:digits", "--output", output))
    assert done.returncode == 0, done.stderr.decode()
    with tarfile.open(output) as archive:
        file = archive.extractfile("artefacts/facts.json")
        assert file is not None
        facts = json.load(file)
    assert (facts["here"], facts["found"]) == ("/workspace", [True] * len(places))
    assert len(VARIABLES) == 8
    for name, value in VARIABLES:
        assert facts["environment"][name] == value or (not value and facts["environment"][name])


def test_page_names_the_default_images() -> None:
    assert image.DEFAULT_GPU in PAGE and f"`{image.DEFAULT_CPU}`" in PAGE
