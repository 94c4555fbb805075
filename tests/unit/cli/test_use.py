"""The use of the command line: its flags, its examples, and how it reports problems."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import json_output
import pytest

from train_classifier.ansible_bridge import content
from train_classifier.cli import app
from train_classifier.core import options
from train_classifier.core.errors import ExitCode

ROOT = Path(__file__).parents[3]
CONTEXT = click.Context(app.app)
COMMANDS = {name: app.app.get_command(CONTEXT, name) for name in app.COMMANDS}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two models, which is the current folder; nothing comes from the environment."""
    for name in list(os.environ):
        if name.startswith("TRAIN_CLASSIFIER_") or name == "MODEL":
            monkeypatch.delenv(name)
    folder = tmp_path / "repo"
    for model in ("mnist", "yolo"):
        (folder / model).mkdir(parents=True)
        for file in ("__init__.py", "__main__.py"):
            (folder / model / file).touch()
    monkeypatch.chdir(folder)
    return folder


def dry(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a dry run of `train` with these words says."""
    capfd.readouterr()
    code = app.run(["train", "--dry-run", "--json", *words])
    out, err = capfd.readouterr()
    assert code == 0, err
    json_output.check(["train", "--json"], out)
    answer: dict[str, Any] = json.loads(out)
    return answer


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    capfd.readouterr()
    assert app.run(words) == ExitCode.BAD_INPUT
    return capfd.readouterr().err


def test_every_command_warns_of_a_misspelt_variable(
    repo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAIN_CLASSIFIER_INVENTRY", "hosts.yml")
    assert app.run(["list", "--host", "nowhere.invalid"]) == ExitCode.BAD_INPUT
    warning = "TRAIN_CLASSIFIER_INVENTRY is not read; did you mean TRAIN_CLASSIFIER_INVENTORY?"
    assert capfd.readouterr().err.splitlines()[0] == warning


def test_every_flag_of_train_means_what_it_says(
    repo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2-hunter2")
    (repo / "more.env").write_text("B=from the file\n")
    flags = {
        "--image": "python:3.11-slim", "--gpus": "2", "--min-vram": "8GiB", "--gpu-check": "device", "--timeout": "1h30m",
        "--wait": "2h", "--grace": "20s", "--lease": "10m", "--memory": "16GiB", "--cpus": "1.5", "--shm-size": "512m",
        "--pids": "100", "--network": "none", "--env": "A=1", "--env-file": "more.env", "--secret": "TOKEN",
        "--data": "/srv/digits:digits", "--resume": "20260101-000000-0123abcd", "--log-max": "1MiB", "--output": "out.tgz",
        "--artefacts-max": "3GiB", "--push-limit": "1GiB", "--patience": "3s", "--repo": str(repo),
    }  # fmt: skip
    words = [word for pair in flags.items() for word in pair]
    answer = dry(capfd, "mnist", *words, "--allow-empty", "--detach", "--", "--epochs", "3", "--json", "")
    spec = answer["spec"]
    expected = {
        "model": "mnist", "image": "python:3.11-slim", "gpus": 2, "min_vram_mib": 8192, "gpu_check": "device",
        "timeout_s": 5400.0, "wait_s": 7200.0, "grace_s": 20.0, "lease_s": 600.0, "memory_bytes": 16 << 30, "cpus": 1.5,
        "shm_bytes": 512 << 20, "pids": 100, "network": "none", "environment": {"A": "1", "B": "from the file"},
        "secrets": ["TOKEN"], "data": [{"path": "/srv/digits", "name": "digits", "from_checkout": False}], "resume": "20260101-000000-0123abcd",
        "log_max_bytes": 1 << 20, "artefacts_max_bytes": 3 << 30, "allow_empty": True,
        "arguments": ["--epochs", "3", "--json", ""],
    }  # fmt: skip
    assert {name: spec[name] for name in expected} == expected
    assert answer["output"] == str(repo / "out.tgz")
    assert "hunter2" not in json.dumps(answer)


def test_every_setting_is_a_flag() -> None:
    flags = {flag for parameter in COMMANDS["train"].params for flag in parameter.opts}
    expected = {option.flag for option in options.OPTIONS if not (option.positional or option.action_only)}
    assert expected <= flags
    table = (ROOT / "docs" / "settings.md").read_text().split("## Keys")[1].split("\n\n**Sizes**")[0]
    assert set(re.findall(r"`(--[a-z-]+)", table)) <= flags
    described = set(
        re.findall(r"`(?:-\w`, `)?(--[a-z-]+)", (ROOT / "docs" / "cli.md").read_text().split("## list")[0])
    )
    assert {flag for flag in flags if flag.startswith("--")} - {"--json", "--help"} <= described


@pytest.mark.parametrize(
    "flag", [option.flag for option in options.OPTIONS if option.metavar and not option.positional]
)
def test_flag_without_its_value_is_refused(repo: Path, capfd: pytest.CaptureFixture[str], flag: str) -> None:
    assert "requires an argument" in refused(capfd, "train", "mnist", "--dry-run", flag)


def test_value_that_looks_like_a_flag_is_a_value(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "--cpus: '-1'" in refused(capfd, "train", "mnist", "--dry-run", "--cpus", "-1")


def test_arguments_after_the_dashes_belong_to_the_model(
    repo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAIN_CLASSIFIER_ARGUMENTS", "--from 'the environment'")
    assert dry(capfd, "mnist")["spec"]["arguments"] == ["--from", "the environment"]
    assert dry(capfd, "mnist", "--")["spec"]["arguments"] == []
    assert dry(capfd, "mnist", "--", "a", "--", "b")["spec"]["arguments"] == ["a", "--", "b"]
    monkeypatch.setenv("MODEL", "yolo")
    spec = dry(capfd, "--", "--epochs", "3")["spec"]
    assert (spec["model"], spec["arguments"]) == ("yolo", ["--epochs", "3"])


def test_the_models_flags_before_the_dashes_are_refused_with_the_way_out(
    repo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    err = refused(capfd, "train", "mnist", "--epochs", "3")
    assert "No such option '--epochs'" in err and "go after --" in err
    err = refused(capfd, "train", "mnist", "yolo", "two words")
    assert "train-classifier train mnist -- yolo 'two words'" in err


def test_misspelt_command_and_flag_get_the_nearest_name(
    repo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "No such command 'staus'. Did you mean 'status'?" in refused(capfd, "staus")
    assert "No such command 'qq'.\n" in refused(capfd, "qq")
    assert "No such option '--josn'. Did you mean '--json'?" in refused(capfd, "status", "--josn")
    assert "No such option '--qq'.\n" in refused(capfd, "status", "--qq")
    assert "JOB is a job's id, a unique beginning of it, or last" in refused(capfd, "cancel")


def test_dry_run_shows_what_has_an_effect(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for gpus, is_shown in (("0", False), ("1", True)):
        assert app.run(["train", "mnist", "--dry-run", "--gpus", gpus]) == 0
        assert ("min_vram" in capfd.readouterr().out) is is_shown
    # Which of several hosts takes the job is known when it starts.
    assert app.run(["train", "mnist", "--dry-run", "--inventory", "127.0.0.1,127.0.0.2"]) == 0
    assert re.search("host +the one of several that is free first", capfd.readouterr().out)
    assert app.run(["train", "mnist", "--dry-run", "--json", "--inventory", "127.0.0.1,127.0.0.2"]) == 0
    assert json.loads(capfd.readouterr().out)["host"] is None
    words = ["train", "mnist", "--dry-run", "--inventory", "127.0.0.1,127.0.0.2", "--host", "all"]
    assert app.run(words) == ExitCode.BAD_INPUT


def test_every_problem_of_a_command_is_reported_at_once(
    repo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    err = refused(capfd, "train", "nothing", "--patience", "soon", "--pids", "1")
    assert all(word in err for word in ("--patience", "--pids", "no model 'nothing'"))
    err = refused(capfd, "clean", "--older", "x", "--keep-environments", "y")
    assert "--older: 'x'" in err and "--keep-environments: 'y'" in err
    assert "--older: '7' has no unit; write 7d for days" in refused(capfd, "clean", "--older", "7")
    monkeypatch.setenv("TRAIN_CLASSIFIER_PATIENCE", "later")
    assert "TRAIN_CLASSIFIER_PATIENCE: 'later'" in refused(capfd, "train", "mnist", "--dry-run")
    assert "TRAIN_CLASSIFIER_PATIENCE: 'later'" in refused(capfd, "attach", "last")


def test_the_host_of_the_environment_holds_for_every_command(
    repo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAIN_CLASSIFIER_HOST", "gpu-9")
    for words in (("list",), ("attach", "last"), ("doctor",), ("clean",)):
        assert "host 'gpu-9' is unknown" in refused(capfd, *words)


# Examples.


def examples(text: str) -> list[list[str]]:
    """The words of every line of a text that is a command of ours, `VARIABLE=value` before it included."""
    commands = []
    for line in text.splitlines():
        if re.match(r" {2,}([A-Z_]+=\S+ )?(train-classifier |export TRAIN_CLASSIFIER_|cd examples)", line):
            # Text after several blanks explains the command.
            words = shlex.split(re.split(r"\s{2,}", line.strip())[0], comments=True)
            commands.append(words[: words.index("|")] if "|" in words else words)
    return commands


TEXTS = {
    **{path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")},
    "README.md": (ROOT / "README.md").read_text(),
    "SKILL.md": (ROOT / ".agents/skills/train-classifier/SKILL.md").read_text(),
    "examples": (ROOT / "examples" / "classifiers" / "README.md").read_text(),
    "--help": str(app.app.help),
    **{f"{name} --help": str(command.help) for name, command in COMMANDS.items()},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as examples see it, with an inventory beside the models."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "examples" / "classifiers", folder / "examples" / "classifiers")
    shutil.copytree(ROOT / "inventory", folder / "inventory")
    # The models that writing-a-model.md and quick-start.md write.
    for model in ("fit", "circle", "digits"):
        models = folder / "examples" / "classifiers"
        shutil.copytree(models / "mnist", models / model)
    # Without its variables, some of which only their owner can decrypt.
    shutil.copy(folder / "inventory" / "example" / "hosts.yml", folder / "examples" / "classifiers")
    return folder


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if examples(text)])
def test_examples_work_as_printed(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout if "cd examples" in TEXTS[name] else checkout / "examples" / "classifiers")
    for words in examples(TEXTS[name]):
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
            continue
        while words and ("=" in words[0] or words[0] == "export"):
            variable, _, value = words.pop(0).partition("=")
            if value:
                monkeypatch.setenv(variable, "a-long-secret" if value == "…" else value)
        if not words:
            continue
        _, command, *arguments = words
        if command == "train" and "--help" not in arguments:
            assert app.run(["train", "--dry-run", *arguments]) == 0, (words, capfd.readouterr().err)
        elif command in COMMANDS:
            # Only parsed: the flags exist and have their values.
            own, _ = app._split([command, *arguments])
            COMMANDS[command].make_context(command, own[1:], resilient_parsing=False)
        else:
            assert command.startswith("-") or command == "COMMAND", words


# provision, with a site.yml that only says where it was.


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What travels with the package, with a site.yml of the test's own."""
    root = tmp_path / "content"
    (root / "inventory" / "local").mkdir(parents=True)
    shutil.copy(ROOT / "ansible.cfg", root)
    shutil.copy(ROOT / "inventory" / "local" / "hosts.yml", root / "inventory" / "local")
    (root / "site.yml").write_text(
        "- hosts: training\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.copy:\n"
        f"        content: '{{{{ inventory_hostname }}}} {{{{ extra | default(0) }}}}'\n        dest: '{tmp_path}/was-{{{{ inventory_hostname }}}}'\n"
        "        mode: '0600'\n"
    )
    monkeypatch.setattr(content, "root", lambda: root)
    monkeypatch.chdir(tmp_path)
    for name in ("TRAIN_CLASSIFIER_INVENTORY", "TRAIN_CLASSIFIER_HOST"):
        monkeypatch.delenv(name, raising=False)
    hosts = {
        name: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable} for name in "ab"
    }
    (tmp_path / "lab.yml").write_text(json.dumps({"all": {"children": {"training": {"hosts": hosts}}}}))
    (tmp_path / "other.yml").write_text("all: {hosts: {a: {ansible_connection: local}}}\n")
    return tmp_path


def was(folder: Path) -> dict[str, str]:
    return {path.name.removeprefix("was-"): path.read_text() for path in folder.glob("was-*")}


def test_provision_goes_where_the_inventory_says(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.run(["provision", "-i", "lab.yml", "--host", "b", "--", "-e", "extra=1"]) == 0
    assert was(site) == {"b": "b 1"}
    monkeypatch.setenv("TRAIN_CLASSIFIER_INVENTORY", "lab.yml")
    assert app.run(["provision"]) == 0
    assert was(site) == {"a": "a 0", "b": "b 0"}


@pytest.mark.parametrize(
    ("words", "variable", "message"),
    [
        ((), "missing.yml", "does not exist"),
        (("-i", "gpu1,"), None, "no host of group training"),
        (("-i", "other.yml"), None, "no host of group training"),
        (("-i", "lab.yml", "--host", "c"), None, "no host of group training 'c'"),
        (("-i", "missing.yml"), None, "does not exist"),
        (("--host", "gpu-1"), None, "provision --host 'gpu-1' needs --inventory FILE"),
    ],
)
def test_provision_never_goes_elsewhere(
    site: Path, words: tuple[str, ...], variable: str | None, message: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if variable:
        monkeypatch.setenv("TRAIN_CLASSIFIER_INVENTORY", variable)
    assert message in refused(capfd, "provision", *words)
    assert was(site) == {}


@pytest.mark.parametrize(
    ("answer", "words", "code", "changed"),
    [
        ("n", (), ExitCode.CANCELLED, False),
        ("y", (), 0, True),
        (None, ("--yes",), 0, True),
        (None, ("--", "--check"), 0, False),
        (None, ("-i", "lab.yml", "--host", "b"), 0, False),
    ],
)
def test_provision_asks_before_it_changes_this_machine(
    site: Path, answer: str | None, words: tuple[str, ...], code: int, changed: bool,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    keyboard, terminal = os.openpty()
    with os.fdopen(terminal) as stdin, os.fdopen(keyboard, "wb", buffering=0) as keys:
        monkeypatch.setattr("sys.stdin", stdin)
        if answer:
            keys.write(f"{answer}\n".encode())
        assert app.run(["provision", *words]) == code
    first = capfd.readouterr().err.splitlines()[0]
    assert first.startswith(f"Hosts to change: {'b' if '-i' in words else 'this machine, '}")
    assert ("localhost" in was(site)) is changed


# What standard streams may be.


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", line.replace("US", f"{sys.executable} -m train_classifier")],
        capture_output=True, env={**os.environ, **environment}, timeout=120, check=False,
    )  # fmt: skip


def test_closed_streams_and_odd_encodings(repo: Path) -> None:
    done = shell("US train mnist --dry-run --json >&-")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert b"Traceback" not in done.stderr
    done = shell("US train mnist --dry-run --json 2>&-")
    assert (done.returncode, json.loads(done.stdout)["model"]) == (0, "mnist")
    assert shell("US train nothing --dry-run 2>&- >&- <&-").returncode == ExitCode.BAD_INPUT
    done = shell("US train --help", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and b"?" in done.stdout, done.stderr


def test_a_user_without_a_name_can_cancel() -> None:
    """The uid of a container's user is often in no passwd file."""
    program = (
        "import os; os.setuid(54321); os.environ.clear()\n"
        "from train_classifier.cli import jobs\nfrom train_classifier.controller import find_jobs as finding; from train_classifier.controller import steps as training\n"
        "from train_classifier.cli.console import Console\n"
        "host = type('Host', (), {'name': 'h'})\n"
        "finding.find = lambda *_: finding.LocatedJob(host, {'id': 'x'})\n"
        "training.cancel = lambda host, job, by: print(by) or {}\n"
        "jobs.cancel([host], 'x', Console())\n"
    )
    if os.getuid():
        pytest.skip("only root becomes a user without a name")
    # The checkout may lie where that user cannot look.
    done = subprocess.run(
        [sys.executable, "-c", "import train_classifier.cli.jobs, train_classifier.cli.console\n" + program],
        capture_output=True, text=True, cwd="/", check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("54321@")
