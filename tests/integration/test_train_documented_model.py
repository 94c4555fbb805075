"""The page *Writing a model*: its example, its commands, and what it says of the container."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest
from loopback.world import World

from train_classifier.worker.containers import image

pytestmark = pytest.mark.engine

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-model.md").read_text()
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^    ((?:train-classifier|tar) .+)$", PAGE, re.MULTILINE)
VARIABLES = re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]+)`)?", PAGE, re.MULTILINE)
PLACES = re.findall(r"^\| `(/[^`]+)` \|", PAGE, re.MULTILINE)


def test_example_trains_and_goes_on(world: World) -> None:
    (program,) = FILES.values()
    (world.repo / "fit").mkdir()
    (world.repo / "fit" / "__main__.py").write_text(program)
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "train-classifier":
            done = world.run(*words[1:], cwd=world.repo, TRAIN_CLASSIFIER_INVENTORY=str(world.local))
        else:
            done = subprocess.run(words, cwd=world.repo, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    assert (world.repo / "artefacts" / "history.csv").read_text().split()[-1].startswith("3,")
    assert done.stdout.decode().splitlines()[0].startswith("epoch 4: ")
    with tarfile.open(world.repo / "artefacts.tar.gz") as archive:
        assert {"artefacts/model.json", "artefacts/metrics.json"} <= set(archive.getnames())


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
