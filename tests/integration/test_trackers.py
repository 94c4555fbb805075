"""The recipes of docs/trackers.md, run with the real clients of MLflow and W&B, and with MLflow's real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from hosts.fleet import uv_binary
from hosts.machine import free_port
from index_server import Index, serve
from loopback.world import World
from test_train_documented_model import serve_wheels

pytestmark = pytest.mark.full

PAGE = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text()
JOB = "20260131-120000-0123abcd"
LOSSES = [0.5, 0.25, 0.125, 0.0625, 0.03125]
#: Prints the run that a database or a server has; the client's own reading.
READ_MLFLOW = """
import json, sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("fit").experiment_id])
losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")]
files = [file.path for file in client.list_artifacts(run.info.run_id)] if "http" in sys.argv[1] else []
print(json.dumps([run.info.run_name, run.info.status, run.data.params, losses, files]))
"""
#: Prints each loss of a run's file: records in blocks of 32 KiB, whole (1) or in parts (2, 3, 4).
READ_WANDB = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2
data, place, whole, losses = open(sys.argv[1], "rb").read(), 7, b"", []
while place + 7 <= len(data):
    left = 32768 - place % 32768
    if left < 7:
        place += left
        continue
    _, size, kind = struct.unpack("<IHB", data[place : place + 7])
    part = data[place + 7 : place + 7 + size]
    place += 7 + size
    whole = whole + part if kind in (3, 4) else part
    record = wandb_internal_pb2.Record()
    if kind in (1, 4) and record.ParseFromString(whole) and record.WhichOneof("record_type") == "history":
        losses += [float(item.value_json) for item in record.history.item if "loss" in (item.key, *item.nested_key)]
print(json.dumps(losses))
"""


def recipe(tracker: str) -> dict[str, str]:
    """The files of a tracker's section."""
    (section,) = re.findall(rf"^## {tracker}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    blocks = r"^`(fit/[\w.]+)`[^\n]*\n\n```\w+\n(.*?)^```$"
    return dict(re.findall(blocks, section, re.MULTILINE | re.DOTALL))


class Recipe:
    """A repository with the model of a section, and an environment with what it requires."""

    def __init__(self, folder: Path, tracker: str) -> None:
        self.folder = folder
        (folder / "fit").mkdir()
        (folder / "home").mkdir()
        for name, text in recipe(tracker).items():
            (folder / name).write_text(text)
        self.bin = environment(folder / "environment", "-r", str(folder / "fit/requirements.txt"))

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment; without a server no address is reached."""
        nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        environment = {
            "PATH": os.defpath, "HOME": str(self.folder / "home"), "MODEL": "fit", "TRAIN_CLASSIFIER_JOB": JOB,
            "no_proxy": "127.0.0.1", **nowhere, **variables,
        }  # fmt: skip
        command = [self.bin / words[0], *words[1:]]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


def environment(folder: Path, *packages: str) -> Path:
    """Make a virtual environment with packages; return the folder of its programs."""
    uv = uv_binary()
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", folder / "bin/python", *packages], check=True)
    return folder / "bin"


def test_mlflow_writes_the_run_into_the_archive(tmp_path: Path) -> None:
    model = Recipe(tmp_path, "MLflow")
    assert "epoch 5/5 loss 0.0312" in model.run("python", "-m", "fit").stdout
    read = json.loads(model.run("python", "-c", READ_MLFLOW, "sqlite:///artefacts/mlflow.db").stdout)
    assert read == [JOB, "FINISHED", {"epochs": "5", "factor": "0.5"}, LOSSES, []]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("environment", "home")) == [
        "artefacts", "fit",
    ]  # fmt: skip


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """The address of MLflow's own server, of the version that the recipe names."""
    (version,) = re.findall(r"^mlflow-skinny(==\S+)$", recipe("MLflow")["fit/requirements.txt"], re.MULTILINE)
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    command = [environment(folder / "environment", f"mlflow{version}") / "mlflow", "server", "--port", str(port),
               "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", folder / "files"]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as server,
    ):
        try:
            while server.poll() is None and not answers(f"{address}/health"):
                time.sleep(0.2)
            assert server.poll() is None, (folder / "log").read_text()
            yield address
        finally:
            server.terminate()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_mlflow_sends_the_run_to_a_server(tmp_path: Path, mlflow_server: str) -> None:
    model = Recipe(tmp_path, "MLflow")
    model.run("python", "-m", "fit", MLFLOW_TRACKING_URI=mlflow_server)
    read = json.loads(model.run("python", "-c", READ_MLFLOW, mlflow_server).stdout)
    assert read == [JOB, "FINISHED", {"epochs": "5", "factor": "0.5"}, LOSSES, ["weights.txt"]]
    assert [path.name for path in (tmp_path / "artefacts").iterdir()] == ["weights.txt"]


def test_wandb_writes_the_run_into_the_archive(tmp_path: Path) -> None:
    model = Recipe(tmp_path, "W&B")
    assert "epoch 5/5 loss 0.0312" in model.run("python", "-m", "fit").stdout
    (run,) = (tmp_path / "artefacts/wandb").glob("offline-run-*")
    read = model.run("python", "-c", READ_WANDB, str(run / f"run-{JOB}.wandb"))
    assert json.loads(read.stdout) == LOSSES
    # What the page sends later: the client knows it as a run.
    assert run.name in model.run("wandb", "sync", "--dry-run", str(run)).stderr
    assert {path.name for path in tmp_path.iterdir()} == {"artefacts", "environment", "fit", "home"}


@pytest.fixture
def index(engine: docker.DockerClient) -> Iterator[Index]:
    with serve(engine) as index:
        yield index


@pytest.mark.engine
@pytest.mark.parametrize(("tracker", "result"), [("MLflow", "mlflow.db"), ("W&B", "wandb/offline-run-")])
def test_recipe_trains_in_a_container_without_network(
    world: World, index: Index, tmp_path: Path, tracker: str, result: str
) -> None:
    files = recipe(tracker)
    # Isolated environments get setuptools.
    serve_wheels(world, index, tmp_path, files["fit/requirements.txt"] + "setuptools<82\n")
    (world.repo / "fit").mkdir()
    for name, text in files.items():
        (world.repo / name).write_text(text)
    done = world.run(
        "train", "fit", "--gpus", "0", "--network", "none", cwd=world.repo, timeout=3600,
        TRAIN_CLASSIFIER_INVENTORY=str(world.local),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    with tarfile.open(world.repo / "artefacts.tar.gz") as archive:
        names = set(archive.getnames())
    assert "artefacts/weights.txt" in names
    assert any(name.startswith(f"artefacts/{result}") for name in names), names
