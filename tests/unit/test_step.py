"""The action's interface, its documentation, and the parts of the step that need no engine."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from train_classifier import inputs, job, notify, papers, step
from train_classifier.cli.step import StepRun
from train_classifier.cli.workflow import WorkflowConsole
from train_classifier.inventory import Target
from train_classifier.training import Order

ROOT = Path(__file__).resolve().parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yaml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_action_is_thin() -> None:
    """One step, no expression in its script, every input by `env:`, every output from that step."""
    (step,) = ACTION["runs"]["steps"]
    assert step["run"].startswith("exec ")
    assert "\n" not in step["run"]
    assert "${{" not in step["run"]
    assert step["env"] == {
        inputs.PREFIX + name.upper().replace("-", "_"): f"${{{{ inputs.{name} }}}}"
        for name in ACTION["inputs"]
    }
    assert tuple(name.replace("-", "_") for name in ACTION["inputs"]) == inputs.INPUTS
    for name, about in ACTION["outputs"].items():
        assert about["value"] == f"${{{{ steps.{step['id']}.outputs.{name} }}}}"
    assert not [
        name for name, about in ACTION["inputs"].items() if "default" in about or about.get("required")
    ]


def test_docs_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "action-docs", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_docs_hold_valid_workflows() -> None:
    """Every example in the pages about the action is YAML, and names inputs and outputs that there are."""
    for page in ("action.md", "from-the-seed.md"):
        text = (ROOT / "docs" / page).read_text()
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        assert blocks
        for block in blocks:
            yaml.safe_load(block)
        for name in re.findall(r"steps\.train\.outputs\.([a-z0-9-]+)", text):
            assert name in ACTION["outputs"]
        for given in re.findall(r"train-classifier@v1\n\s+with: (\{.*\})", text):
            assert set(yaml.safe_load(given)) <= set(ACTION["inputs"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_own_workflows_are_pinned(path: Path) -> None:
    """Every action of our own workflows is pinned by commit and says which version that is."""
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    for each in uses:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)


def test_input_wins_over_environment() -> None:
    found = inputs.read(
        {
            "TRAIN_CLASSIFIER_INPUT_MODEL": "mnist",
            "TRAIN_CLASSIFIER_MODEL": "yolo",
            "TRAIN_CLASSIFIER_INPUT_GPUS": "",
            "TRAIN_CLASSIFIER_GPUS": "auto",
            "MODEL": "other",
        }
    )
    assert found.environment["TRAIN_CLASSIFIER_MODEL"] == "mnist"
    assert found.environment["TRAIN_CLASSIFIER_GPUS"] == "auto"
    assert not [name for name in found.environment if name.startswith(inputs.PREFIX)]


def test_one_argument_a_line() -> None:
    text = "--name\r\ntwo words; $(id) 'x'\n\n  --indented\n"
    found = inputs.read({"TRAIN_CLASSIFIER_INPUT_ARGS": text})
    assert found.request.arguments == ["--name", "two words; $(id) 'x'", "  --indented"]


def test_webhook_stays_with_the_step() -> None:
    environment = {
        "SLACK_IDENTIFIER": "T0/B0/seed",
        "TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK": "T0/B0/input",
        "TRAIN_CLASSIFIER_HOST_JSON": "/x",
        "PATH": "/bin",
    }
    found = inputs.read(environment)
    assert found.webhook == "T0/B0/input"
    assert "T0/B0" not in json.dumps(found.environment)
    assert inputs.withheld(environment) == {"SLACK_IDENTIFIER", "TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK"}


def test_unknown_notice() -> None:
    """A word that is no notice is one problem among the others, and a failure is told all the same."""
    found = inputs.read({"TRAIN_CLASSIFIER_INPUT_SLACK_NOTIFY": "sucess", "MODEL": "m"})
    assert "slack-notify: 'sucess'" in found.problems[0]
    assert found.wanted == {notify.Event.FAILED}


def test_trouble_in_telling_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A bug in what tells of a job is said in one line with a file, and does not end the step."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    telling = step.Step()
    assert telling._safely("the report", lambda: 1 / 0) is None
    telling.console.finish()
    (said,) = [line for line in capfdbinary.readouterr().out.splitlines() if b"::warning" in line]
    (crash,) = tmp_path.glob("train-classifier-crash-*")
    assert b"ZeroDivisionError" in said
    assert str(crash).encode() in said


@pytest.mark.parametrize(
    ("local", "given", "detach", "lease"),
    [
        (True, None, False, 600.0),
        (False, None, False, 3600.0),
        (True, 42.0, False, 42.0),
        (False, 42.0, False, 42.0),
        (True, None, True, None),
    ],
)
def test_lease(local: bool, given: float | None, detach: bool, lease: float | None) -> None:
    """Ten minutes here, an hour over ssh, what is given, and none for a job that shall run on alone."""
    spec = job.JobSpec("x", "m", job.Repository("r", "0" * 16), lease_s=given)
    order = Order(spec, "/tree", "", "/out/artefacts.tar.gz", detach=detach)
    target = Target("host", local=local, ssh=[] if local else ["ssh", "host"])
    console = WorkflowConsole({})
    run = StepRun(order, lambda: target, {}, console, step.Step())
    assert run._complete(target).spec.lease_s == lease


def archive(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_papers(tmp_path: Path) -> None:
    found = papers.read(
        archive(
            tmp_path / "a.tar.gz",
            **{
                "artefacts/history.csv": b"epoch,loss\n",
                "job/manifest.json": b'{"model": "m"}',
                "job/usage.csv": b"x",
            },
        )
    )
    assert found.facts == {"model": "m"}
    assert found.history == "epoch,loss\n"
    assert found.usage == "x"


@pytest.mark.parametrize("damage", ["cut", "no archive", "missing", "no object"])
def test_damaged_papers(tmp_path: Path, damage: str) -> None:
    path = archive(
        tmp_path / "a.tar.gz", **{"job/manifest.json": b"[1]", "job/usage.csv": os.urandom(100_000)}
    )
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50_000])
    elif damage == "no archive":
        path.write_bytes(b"\x1f\x8bnothing of the kind")
    elif damage == "missing":
        path.unlink()
    found = papers.read(path)
    assert found.facts == {}
    assert found.history == ""
