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

from train_classifier import inputs, job, papers, step
from train_classifier.cli.step import StepRun
from train_classifier.cli.workflow import WorkflowConsole
from train_classifier.errors import BadInput
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


def test_one_version_of_uv() -> None:
    launcher = re.search(
        r'^UV = "(.*)"$', (ROOT / "scripts" / "action_environment.py").read_text(), re.MULTILINE
    )
    library = re.search(r"^uv_version=(.*)$", (ROOT / "scripts" / "lib.sh").read_text(), re.MULTILINE)
    assert launcher
    assert library
    assert launcher[1] == library[1]


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
    with pytest.raises(BadInput, match="slack-notify"):
        inputs.read({"TRAIN_CLASSIFIER_INPUT_SLACK_NOTIFY": "sometimes"})


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


LAUNCHER = ROOT / "scripts" / "action_environment.py"


def test_two_runners_prepare_once(tmp_path: Path) -> None:
    """Two steps at once on a runner with an empty tool cache make one environment, and a third makes none."""
    action = tmp_path / "an action"
    (action / "scripts").mkdir(parents=True)
    (action / "scripts" / LAUNCHER.name).write_bytes(LAUNCHER.read_bytes())
    (action / "requirements.lock").write_text("")
    (action / "train_classifier").mkdir()
    (action / "train_classifier" / "__init__.py").touch()
    (action / "train_classifier" / "step.py").write_text("import sys; print('step in', sys.prefix)\n")
    command = [sys.executable, "-I", "-S", "-B", str(action / "scripts" / LAUNCHER.name)]
    environment = {**os.environ, "RUNNER_TOOL_CACHE": str(tmp_path / "tool cache")}
    both = [
        subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("Preparing" in words for words in said) == 1
    third = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert third.stdout.startswith("step in ")
    made = [path for path in (tmp_path / "tool cache" / "train-classifier").iterdir() if path.is_dir()]
    assert len(made) == 1
    assert str(made[0]) in third.stdout
    assert list(action.rglob("*.pyc")) == []
    # A moving ref puts other code under the same path and lock, here of the same length and age.
    code = action / "train_classifier" / "step.py"
    before = code.stat()
    code.write_text(code.read_text().replace("step in", "STEP IN"))
    os.utime(code, ns=(before.st_atime_ns, before.st_mtime_ns))
    fourth = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert fourth.stdout == third.stdout.replace("step in", "STEP IN")


def test_no_python(tmp_path: Path) -> None:
    """A runner without a Python that is new enough is told what to install."""
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", ROOT / "scripts" / "action"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stdout.startswith("::error title=train-classifier::This runner has no Python 3.11 or newer.")


def test_release_check(tmp_path: Path) -> None:
    """A tag is released only if it is the package's version and the changelog speaks of it."""
    for name in ("scripts", "train_classifier"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "release").write_bytes((ROOT / "scripts" / "release").read_bytes())
    (tmp_path / "train_classifier" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# C\n\n## [1.2.4]\n\nlater\n\n## [1.2.3] - 2026\n\n- new\n\n## [1.2.2]\nold\n"
    )

    def release(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(tmp_path / "scripts" / "release"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert release("check", "v1.2.3").returncode == 0
    assert release("notes", "v1.2.3").stdout.strip() == "- new"
    assert "not the package's version" in release("check", "v1.2.4").stderr
    (tmp_path / "CHANGELOG.md").write_text("# C\n\n## [1.2.3]\n\n## [1.2.2]\nold\n")
    assert "says nothing" in release("check", "v1.2.3").stderr


def test_strange_tool_cache_is_not_trusted(tmp_path: Path) -> None:
    """A tool cache that others may write to could hold their code: it is passed over."""
    cache = tmp_path / "tool cache" / "train-classifier"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    sys.path.insert(0, str(LAUNCHER.parent))
    try:
        import action_environment
    finally:
        sys.path.pop(0)
    assert not action_environment.ours(cache)
    cache.chmod(0o755)
    assert action_environment.ours(cache)
