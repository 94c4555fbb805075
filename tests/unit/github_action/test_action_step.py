"""The action's interface, its documentation, and the parts of the step that need no engine."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from train_classifier.ansible_bridge.inventory import Target
from train_classifier.controller.order import Order
from train_classifier.core import job, options
from train_classifier.core.errors import NoGpu
from train_classifier.core.report import curves
from train_classifier.core.report.page import document_of
from train_classifier.github_action import inputs, slack_message, step
from train_classifier.github_action.step_run import StepRun
from train_classifier.github_action.workflow_console import WorkflowConsole
from train_classifier.reports import archive_reader, chart_data
from train_classifier.request import build
from train_classifier.worker.gpus import devices

ROOT = Path(__file__).resolve().parents[3]
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
    assert tuple(name.replace("-", "_") for name in ACTION["inputs"]) == tuple(inputs.INPUTS)
    for name, about in ACTION["outputs"].items():
        assert about["value"] == f"${{{{ steps.{step['id']}.outputs.{name} }}}}"
    assert not [
        name for name, about in ACTION["inputs"].items() if "default" in about or about.get("required")
    ]


def test_docs_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "options", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_docs_hold_valid_workflows() -> None:
    """Every example in the pages about the action is YAML, and names inputs and outputs that there are."""
    for page in ("action.md", "from-the-original-action.md"):
        text = (ROOT / "docs" / page).read_text()
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        assert blocks
        for block in blocks:
            yaml.safe_load(block)
        for name in re.findall(r"steps\.train\.outputs\.([a-z0-9-]+)", text):
            assert name in ACTION["outputs"]
        for mapping in re.findall(r"train-classifier@[0-9a-f]{40}.*\n\s+with: (\{.*\})", text):
            assert set(yaml.safe_load(mapping)) <= set(ACTION["inputs"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_own_workflows_are_pinned(path: Path) -> None:
    """Every action of our own workflows is pinned by commit and says which version that is."""
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    for each in uses:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)


def test_input_wins_over_environment() -> None:
    step_inputs = inputs.read(
        {
            "TRAIN_CLASSIFIER_INPUT_MODEL": "mnist",
            "TRAIN_CLASSIFIER_MODEL": "yolo",
            "TRAIN_CLASSIFIER_INPUT_GPUS": "",
            "TRAIN_CLASSIFIER_GPUS": "auto",
            "MODEL": "other",
        }
    )
    assert step_inputs.environment["TRAIN_CLASSIFIER_MODEL"] == "mnist"
    assert step_inputs.environment["TRAIN_CLASSIFIER_GPUS"] == "auto"
    assert not [name for name in step_inputs.environment if name.startswith(inputs.PREFIX)]


def test_folders_of_results_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "__main__.py").touch()
    step_inputs = inputs.read(
        {
            "TRAIN_CLASSIFIER_INPUT_MODEL": "mnist",
            "TRAIN_CLASSIFIER_INPUT_REPO": str(tmp_path),
            "TRAIN_CLASSIFIER_INPUT_ARTEFACTS": "outputs\n  lightning logs\n",
        }
    )
    plan = build.build(step_inputs.request, step_inputs.environment, resolve=False)
    assert plan.spec.artefacts == ("outputs", "lightning logs")


def test_one_argument_a_line() -> None:
    text = "--name\r\ntwo words; $(id) 'x'\n\n  --indented\n"
    step_inputs = inputs.read({"TRAIN_CLASSIFIER_INPUT_ARGS": text})
    assert step_inputs.request.get("arguments") == ["--name", "two words; $(id) 'x'", "  --indented"]


def test_webhook_stays_with_the_step() -> None:
    environment = {
        "SLACK_IDENTIFIER": "T0/B0/seed",
        "TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK": "T0/B0/input",
        "TRAIN_CLASSIFIER_HOST_JSON": "/x",
        "PATH": "/bin",
    }
    step_inputs = inputs.read(environment)
    assert step_inputs.webhook == "T0/B0/input"
    assert "T0/B0" not in json.dumps(step_inputs.environment)
    assert inputs.step_variables(environment) == {"SLACK_IDENTIFIER", "TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK"}


def test_unknown_event_of_notice() -> None:
    """An unknown word is a problem like any other, and failures are still posted."""
    step_inputs = inputs.read({"TRAIN_CLASSIFIER_INPUT_SLACK_NOTIFY": "sucess", "MODEL": "m"})
    assert "slack-notify: 'sucess'" in step_inputs.problems[0]
    assert step_inputs.slack_events == {slack_message.Event.FAILED, slack_message.Event.IDLE}


def test_bug_in_reporting_does_not_end_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """It becomes one line that names a crash file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    current = step.Step()
    assert current._attempt("the report", lambda: 1 / 0) is None
    current.console.finish()
    (warning,) = [line for line in capfdbinary.readouterr().out.splitlines() if b"::warning" in line]
    (crash,) = tmp_path.glob("train-classifier-crash-*")
    assert b"ZeroDivisionError" in warning
    assert str(crash).encode() in warning


@pytest.mark.parametrize(
    ("local", "lease_input", "detach", "lease"),
    [
        (True, None, False, 600.0),
        (False, None, False, 3600.0),
        (True, 42.0, False, 42.0),
        (False, 42.0, False, 42.0),
        (True, None, True, None),
    ],
)
def test_default_lease(local: bool, lease_input: float | None, detach: bool, lease: float | None) -> None:
    """The default is ten minutes here and an hour over ssh; a detached job has no lease."""
    spec = job.JobSpec("x", "m", job.Repository("r", "0" * 16), lease_s=lease_input)
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


def test_files_of_an_archive_are_read(tmp_path: Path) -> None:
    files = archive_reader.read(
        archive(
            tmp_path / "a.tar.gz",
            **{
                "artefacts/history.csv": b"epoch,loss\n",
                "job/manifest.json": b'{"model": "m"}',
                "job/usage.csv": b"x",
            },
        )
    )
    assert files.manifest_data == {"model": "m"}
    assert files.history == "epoch,loss\n"
    assert files.usage == "x"


@pytest.mark.parametrize("damage", ["cut", "no archive", "missing", "no object"])
def test_damaged_archive_is_read_up_to_the_damage(tmp_path: Path, damage: str) -> None:
    path = archive(
        tmp_path / "a.tar.gz", **{"job/manifest.json": b"[1]", "job/usage.csv": os.urandom(100_000)}
    )
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50_000])
    elif damage == "no archive":
        path.write_bytes(b"\x1f\x8bnothing of the kind")
    elif damage == "missing":
        path.unlink()
    files = archive_reader.read(path)
    assert files.manifest_data == {}
    assert files.history == ""


def usage(seconds: int, gpus: int) -> bytes:
    """A usage.csv as the worker writes it: every five seconds a row for each GPU."""
    rows = [
        f"{at:.1f},150.0,{1 << 30},GPU-{'0' * 30}-{gpu},{gpu},8000\n"
        for at in range(0, seconds, 5)
        for gpu in range(gpus)
    ]
    return (
        b"time_s,cpu_percent,memory_bytes,gpu_uuid,gpu_util_percent,gpu_memory_mib\n" + "".join(rows).encode()
    )


def test_usage_of_a_long_job_is_thinned(tmp_path: Path) -> None:
    """Five days on eight GPUs, past any limit on the file: the chart still reaches the end, with all cards on it."""
    table = usage(5 * 86400, 8)
    assert len(table) > 16 << 20
    path = archive(tmp_path / "a.tar.gz", **{"job/manifest.json": b"{}", "job/usage.csv": table})
    files = archive_reader.read(path)
    assert 0.4 * curves.MAX_TABLE < len(files.usage) < 1.1 * curves.MAX_TABLE
    gpu = next(chart for chart in chart_data.usage(files.usage) if chart.title == "GPU use")
    assert gpu.domain() == pytest.approx((0, 7200), abs=0.1)
    names = [line.name for line in gpu.series]
    assert names == [f"GPU {n}" for n in range(chart_data.MAX_SERIES)]
    for number, line in enumerate(gpu.series):
        assert {round(y, 6) for _, y in line.points} == {number}


@pytest.mark.parametrize("form", ["short", "no end", "one key", "long line", "long head", "empty", "late"])
def test_thinned(form: str) -> None:
    """A table keeps its head, first and last row; one that fits is not touched; nothing makes it long."""
    table = b"epoch,loss\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(10_000))
    limit = 20_000
    if form == "short":
        assert curves.thinned(io.BytesIO(table[:5000])) == table[:5000]
        return
    if form == "no end":
        table = table.removesuffix(b"\n")
    elif form == "one key":
        table = b"name,loss\n" + b"same,1\n" * 50_000
    elif form == "long line":
        table += b"x" * 100_000 + b"\n1,1\n"
    elif form == "long head":
        table = b"x" * 100_000
    elif form == "empty":
        table = b""
    late = iter([False, True])
    table = curves.thinned(
        io.BytesIO(table), (lambda: next(late)) if form == "late" else lambda: False, limit
    )
    rows = table.splitlines()
    assert len(table) < 1.1 * limit
    if form in ("long head", "empty"):
        assert table == b""
    elif form == "one key":
        assert set(rows) == {b"name,loss", b"same,1"}
    else:
        assert rows[:2] == [b"epoch,loss", b"0,0"]
        assert rows[-1] == (b"8190,8190" if form == "late" else b"9999,9999")
        steps = {int(b.split(b",")[0]) - int(a.split(b",")[0]) for a, b in itertools.pairwise(rows[1:-1])}
        assert len(steps) == 1


@pytest.mark.parametrize("must_end_soon", [False, True])
def test_outputs_are_written_before_the_report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    must_end_soon: bool,
) -> None:
    """Outputs are written before the curves are drawn, once; a cancel leaves the curves out."""
    outputs, markdown = tmp_path / "outputs", tmp_path / "summary"
    for name, value in {
        "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": outputs, "GITHUB_STEP_SUMMARY": markdown, "RUNNER_TEMP": tmp_path,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    path = archive(
        tmp_path / "a.tar.gz",
        **{
            "job/manifest.json": b"{}",
            "artefacts/history.csv": b"epoch,loss\n1,2\n2,1\n",
            "job/usage.csv": b"",
        },
    )
    outputs_written: list[bool] = []
    draw = chart_data.history

    def history(text: str) -> list[chart_data.Chart]:
        outputs_written.append("a.tar.gz" in outputs.read_text())
        return draw(text)

    monkeypatch.setattr(chart_data, "history", history)
    current = step.Step()
    current.must_end_soon = must_end_soon
    result = {"model": "m", "outcome": "trained", "exit_code": 0}
    delivered = {"path": str(path), "bytes": 1, "sha256": "0"}
    current.run = types.SimpleNamespace(
        delivered=delivered, result=result, started=True, job="20260101-000000-00000000", host_name="here"
    )
    assert current.close() == 0
    assert outputs_written == [True]
    assert ("mermaid" in markdown.read_text()) == (not must_end_soon)
    (page,) = tmp_path.glob("train-classifier/*/report.html")
    document = document_of(page.read_bytes())
    assert document and bool(document["curves"]) == (not must_end_soon)
    written = outputs.read_text()
    for name, file in (("manifest", "manifest.json"), ("report", "report.html")):
        assert written.rindex(f"{page.with_name(file)}") > written.rindex(f"\n{name}<<")


@pytest.mark.parametrize(
    ("environment", "settings", "grace"),
    [
        ({}, "", 3.0),
        ({"TRAIN_CLASSIFIER_INPUT_CANCEL_GRACE": "10s"}, "", 10.0),
        ({"TRAIN_CLASSIFIER_CANCEL_GRACE": "10s"}, "", 10.0),
        ({"TRAIN_CLASSIFIER_GRACE": "10s"}, "", 10.0),
        ({}, '[defaults]\ngrace = "10s"\n', 10.0),
        ({"TRAIN_CLASSIFIER_INPUT_CANCEL_GRACE": "4s"}, '[defaults]\ngrace = "10s"\n', 4.0),
    ],
)
def test_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], settings: str, grace: float
) -> None:
    """The default is three seconds; ten that an input, a variable or a file asks for stay ten."""
    assert options.default("grace") == 10.0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "__main__.py").touch()
    (tmp_path / "train-classifier.toml").write_text(settings)
    step_inputs = inputs.read({"MODEL": "m", **environment})
    plan = build.build(step_inputs.request, step_inputs.environment, resolve=False)
    assert step.Step()._with_defaults(plan).grace_s == grace


def step_run(lease: float | None = None, detach: bool = False, inventory: str | None = None) -> StepRun:
    """A run whose host is known, over ssh where there is an inventory."""
    spec = job.JobSpec("20260101-000000-00000000", "m", job.Repository("r", "0" * 16), lease_s=lease)
    order = Order(spec, "/tree", "", "/out/artefacts.tar.gz", detach=detach)
    target = Target("trainer", local=not inventory, ssh=["ssh", "trainer"] if inventory else [])
    run = StepRun(order, lambda: target, {}, WorkflowConsole({}), step.Step())
    run._inventory = inventory
    run.order = run._complete(target)
    assert run.host.name == "trainer"
    return run


@pytest.mark.parametrize("inventory", [None, "/my hosts.yml"])
@pytest.mark.parametrize("lease", [600.0, None])
def test_hint_of_a_lost_connection(inventory: str | None, lease: float | None) -> None:
    """The hint says how long the job waits for a controller, and the whole command to follow it."""
    run = step_run(lease, detach=lease is None, inventory=inventory)
    where = " --inventory '/my hosts.yml' --host trainer" if inventory else ""
    command = f"train-classifier attach {run.job}{where}"
    limited = f"The job is stopped unless it is followed again within 10 min 0 s: {command}"
    assert run._attach_hint() == (limited if lease else f"The job continues. Follow it again: {command}")


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("image", "input image"),
        ("min_vram", "input min-vram"),
        ("secrets", "input secrets"),
        ("grace", "input cancel-grace"),
        ("allow_empty", "allow_empty in train-classifier.toml"),
        ("artefacts_max", "TRAIN_CLASSIFIER_ARTEFACTS_MAX"),
        ("detach", "TRAIN_CLASSIFIER_DETACH"),
    ],
)
def test_names_of_options(monkeypatch: pytest.MonkeyPatch, option: str, shown: str) -> None:
    """In the action, messages name inputs instead of flags."""
    assert options.show_option(option) == options.BY_NAME[option].flag
    monkeypatch.setenv(options.READER, options.ACTION)
    assert options.show_option(option) == shown


def test_refused_line_is_not_moved_to_a_file_that_the_action_never_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(options.READER, options.ACTION)
    advice = options.advice("defaults", "secrets", ("TOKEN",))
    assert advice == "remove the line 'secrets = [\"TOKEN\"]' and give input secrets TOKEN"
    advice = options.advice("models.mnist", "log_max", 3 << 30)
    assert advice == f"remove the line 'log_max = {3 << 30}' and give TRAIN_CLASSIFIER_LOG_MAX {3 << 30}"


def test_every_hint_is_in_the_words_of_the_action(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """In the annotation, a warning and the summary alike, whoever writes it."""
    markdown = tmp_path / "summary"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(markdown))
    monkeypatch.setenv(options.READER, options.ACTION)
    current = step.Step()
    warning = f"{options.show_option('min_vram')} has no effect"
    current.console.event("message", level="warning", text=warning)
    with pytest.raises(NoGpu) as caught:
        devices.gpu_count(2, devices.Discovery(problem="none here", hint="add one"))
    current.failure = caught.value
    current.run = types.SimpleNamespace(
        delivered=None, started=True, job="j", host_name="h",
        result={"exit_code": 8, "outcome": "no-gpu", "reason": "no GPU", "hint": current.failure.hint},
    )  # fmt: skip
    assert current.close() == 8
    output = capfdbinary.readouterr().out.decode()
    assert "::warning title=train-classifier::input min-vram has no effect" in output
    hint = "add one; or ask for the CPU with input gpus 0, or for whatever there is with input gpus auto"
    assert f"no GPU: none here%0A{hint}" in output
    assert hint in markdown.read_text()


def test_crash_file_holds_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug whose exception quotes secrets leaves a file without them, which only its owner may read."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hook, several = "https://hooks.example/services/T0/B0/pl4nted", "first pl4nted\nsecond pl4nted"
    for name, value in {
        "MODEL": "m",
        "SLACK_IDENTIFIER": hook,
        "TOKEN": several,
        "GITHUB_ACTIONS": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRAIN_CLASSIFIER_INPUT_SECRETS", "TOKEN")
    monkeypatch.setenv("TRAIN_CLASSIFIER_INPUT_SLACK_NOTIFY", "none")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "__main__.py").touch()
    monkeypatch.chdir(tmp_path)

    def broken(_self: object, plan: Any) -> None:
        raise RuntimeError(f"a bug: {plan.secrets} {hook} {hook.partition('//')[2]}\n{several}")

    monkeypatch.setattr(step.Step, "_with_defaults", broken)
    # `main` sets it.
    monkeypatch.setenv(options.READER, "")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert step.main() == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    (crash,) = tmp_path.glob("train-classifier-crash-*")
    assert stat.S_IMODE(crash.stat().st_mode) == 0o600
    assert "a bug" in crash.read_text()
    assert "pl4nted" not in crash.read_text()
