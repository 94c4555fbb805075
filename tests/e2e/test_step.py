"""The step's own command as the runner starts it: cancels, leases, an ordinary user, a read-only action."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts.machine import TestHost
from loopback.sshd import Sshd

from .conftest import Slack, eventually
from .world import GOOD, NOBODY, PLAIN_PATH, Step, World

pytestmark = pytest.mark.engine

#: What the runner waits from SIGINT to SIGTERM, in seconds. Its SIGKILL 2.5 s later is never sent: no test depends on
#: the speed of the machine.
TERM_S = 7.5
#: A limit that suits a busy machine.
PATIENCE_S = 240

RUNS_ON = (
    GOOD
    + """
print("under way", flush=True)
while True:
    time.sleep(0.1)
"""
)
#: Ignores SIGTERM.
IGNORES_SIGTERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.makedirs("artefacts", exist_ok=True)
with open("artefacts/weights.bin", "wb") as file:
    file.write(os.urandom(4 << 20))
print("under way", flush=True)
while True:
    time.sleep(0.1)
"""


def cancel(step: Step, patience: float = TERM_S) -> list[str]:
    """Cancel a step as the runner does and wait for its end. Return the signals that it took.

    `patience` is the time from SIGINT to SIGTERM in seconds.
    """
    sent = []
    for number, wait in ((signal.SIGINT, patience), (signal.SIGTERM, PATIENCE_S)):
        # The entry process alone gets it, no group.
        step.process.send_signal(number)
        sent.append(number.name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.process.wait(wait)
            break
    return sent


@contextlib.contextmanager
def unlimited_fetching(world: World) -> Iterator[None]:
    """Let the step fetch until a second signal comes."""
    path = world.action / "train_classifier/github_action/step_run.py"
    text = path.read_text()
    assert "\nFETCH_S = 6.5\n" in text
    path.write_text(text.replace("\nFETCH_S = 6.5\n", "\nFETCH_S = 6500\n"))
    try:
        yield
    finally:
        path.write_text(text)


def groups(log: str) -> dict[str, list[str]]:
    """Return the lines of each folded group, as the runner folds them; "" has the lines outside of groups.

    No group begins in another one, and none is left open.
    """
    folded: dict[str, list[str]] = {"": []}
    inside, stopped = "", ""
    for line in log.splitlines():
        if stopped:
            if line == f"::{stopped}::":
                stopped = ""
            else:
                folded[inside].append(line)
        elif line.startswith("::stop-commands::"):
            stopped = line.removeprefix("::stop-commands::")
        elif line.startswith("::group::"):
            assert not inside, log
            inside = line.removeprefix("::group::")
            folded.setdefault(inside, [])
        elif line == "::endgroup::":
            assert inside, log
            inside = ""
        else:
            folded[inside].append(line)
    assert (inside, stopped) == ("", ""), log
    return folded


def controller_processes(world: World) -> list[str]:
    """Return the controller's processes for this world; the worker belongs to the host."""
    commands = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            environ = (entry / "environ").read_bytes()
            if str(world.folder).encode() in environ + line and (
                b"ansible-playbook" in line or b"rsync" in line
            ):
                commands.append(line.replace(b"\0", b" ").decode())
    return commands


def is_training(world: World) -> bool:
    """Say whether the training is under way."""
    return any(b"under way" in log.read_bytes() for log in world.state.glob("*/jobs/*/log.txt"))


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    daemon = Sshd(tmp_path / "sshd")
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("connection", ["local", pytest.param("ssh", marks=pytest.mark.full)])
def test_cancel_stops_container_and_delivers_artefacts(
    world: World, slack: Callable[..., Slack], sshd: Sshd, connection: str
) -> None:
    """It is reported to Slack as cancelled, not as failed."""
    hook = slack(200)
    world.model(RUNS_ON)
    options = {}
    if connection == "ssh":
        options["TRAIN_CLASSIFIER_INPUT_INVENTORY"] = str(
            sshd.inventory(training_job_state_dir=str(world.state / "ssh"))
        )
    step = world.step(
        MODEL="mnist", SLACK_IDENTIFIER=hook.url, TRAIN_CLASSIFIER_INPUT_SLACK_NOTIFY="cancelled", **options
    )
    # The log is live: it shows what the model writes while it runs.
    eventually(lambda: "under way" in step.log or step.process.poll() is not None)
    assert step.process.poll() is None, step.log
    assert len(world.containers()) == 1
    cancel(step)
    eventually(lambda: not world.containers())
    assert step.process.returncode == 6, step.log
    assert step.outputs["status"] == "cancelled"
    job = world.jobs()[0]
    assert step.outputs["job-id"] == job.name
    if step.outputs["artefacts"]:
        with tarfile.open(step.outputs["artefacts"]) as archive:
            assert "artefacts/weights.bin" in archive.getnames()
        assert "The files of the failed job are in" in step.log
    else:
        # A busy machine has no time to fetch: then the log names the command.
        assert f"train-classifier fetch {job.name}" in step.log
    result = json.loads(
        eventually(lambda: (job / "result.json").exists() and (job / "result.json").read_text())
    )
    assert result["outcome"] == "cancelled"
    folded = groups(step.log)
    assert {"", "preflight", "push", "start"} <= set(folded)
    assert "under way" in folded[""]
    assert [
        path.name for path in world.repo.iterdir() if path.name.startswith(".") and path.name != ".git"
    ] == []
    assert "was cancelled" in step.summary
    assert len(hook.received) == 1
    assert "was cancelled" in hook.texts()[0]
    eventually(lambda: not controller_processes(world))
    assert [path.name for path in world.temp.iterdir()] == []


@pytest.mark.parametrize("why", ["slow model", "slow line"])
def test_cancel_leaves_slow_artefacts_on_host(world: World, why: str) -> None:
    """What cannot be collected in time stays on the host: the step ends by itself and says how to get it."""
    world.model(IGNORES_SIGTERM)
    if why == "slow line":
        # Four megabytes in a minute: the runner's SIGTERM comes in the middle of fetching.
        (world.folder / "bin").mkdir()
        slow = world.folder / "bin" / "rsync"
        slow.write_text(f'#!/bin/sh\nexec {shutil.which("rsync")} --bwlimit=64 "$@"\n')
        slow.chmod(0o755)
        options = {"TRAIN_CLASSIFIER_CANCEL_GRACE": "1s", "PATH": f"{slow.parent}:{os.environ['PATH']}"}
        limit: contextlib.AbstractContextManager[None] = unlimited_fetching(world)
    else:
        options = {"TRAIN_CLASSIFIER_CANCEL_GRACE": "20s"}
        limit = contextlib.nullcontext()
    with limit:
        step = world.step(MODEL="mnist", **options)
        eventually(lambda: is_training(world) or step.process.poll() is not None)
        assert step.process.poll() is None, step.log
        if why == "slow line":
            step.process.send_signal(signal.SIGINT)
            eventually(lambda: "::group::fetch" in step.log or step.process.poll() is not None)
            step.process.send_signal(signal.SIGTERM)
            step.process.wait(PATIENCE_S)
        else:
            assert cancel(step, PATIENCE_S) == ["SIGINT"]
    assert step.process.returncode == 6, step.log
    job = world.jobs()[0]
    assert f"train-classifier fetch {job.name}" in step.log
    assert ("::group::fetch" in step.log) == (why == "slow line"), step.log
    assert step.outputs["status"] == "cancelled"
    assert step.outputs["artefacts"] == ""
    assert "was cancelled" in step.summary
    eventually(lambda: not controller_processes(world))
    assert not (world.repo / "artefacts.tar.gz").exists()
    assert list(world.repo.glob(".*.part")) == []
    eventually(lambda: (job / "result.json").exists())
    assert (job / "artefacts.tar.gz").exists()
    assert world.containers() == []


def test_cancel_before_submit_starts_no_job(world: World) -> None:
    """A cancel before the push starts no container."""
    world.model(RUNS_ON)
    step = world.step(MODEL="mnist")
    eventually(lambda: step.log)
    assert cancel(step, PATIENCE_S) == ["SIGINT"], step.log
    assert step.process.returncode == 6, step.log
    eventually(lambda: not world.containers())


def test_lease_ends_job_of_killed_runner(world: World) -> None:
    """The lease expires: the worker stops the container and keeps the artefacts."""
    world.model(RUNS_ON)
    # Longer than a busy machine lets a controller wait that is there.
    step = world.step(MODEL="mnist", TRAIN_CLASSIFIER_INPUT_LEASE="10s")
    eventually(lambda: is_training(world) or step.process.poll() is not None)
    assert step.process.poll() is None, step.log
    step.process.kill()
    step.process.wait()
    job = world.jobs()[0]
    eventually(lambda: (job / "result.json").exists())
    result = json.loads((job / "result.json").read_text())
    assert "its controller is gone" in result["reason"]
    assert result["archive"]
    assert world.containers() == []
    eventually(lambda: not controller_processes(world))
    # The next run of this model reports it, once.
    world.model(GOOD)
    world.model(GOOD, "yolo")
    for model, warned in (("yolo", False), ("mnist", True), ("mnist", False)):
        step = world.step(MODEL=model)
        assert step.process.wait(PATIENCE_S) == 0, step.log
        warnings = [line for line in step.log.splitlines() if job.name in line]
        assert bool(warnings) == warned, step.log
        if warned:
            assert warnings[0].startswith("::warning")
            assert f"train-classifier fetch {job.name}" in warnings[0]


def test_ordinary_user_writes_only_the_archive(make_world: Callable[..., World], shared: Path) -> None:
    """An ordinary user without uv, a read-only action, a workspace with spaces: nothing is written but the archive."""
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    world = make_world("my workspace", shared / "tools of nobody")
    world.model(GOOD)
    world.change_owner(NOBODY)
    world.tools.mkdir(exist_ok=True)
    os.chown(world.tools, NOBODY, NOBODY)
    before = {path: path.lstat().st_mtime_ns for path in sorted(world.action.rglob("*"))}
    step = world.step(NOBODY, MODEL="mnist", PATH=PLAIN_PATH)
    step.process.wait(PATIENCE_S)
    assert step.process.returncode == 0, step.log
    assert "hello from mnist" in step.log
    assert {path: path.lstat().st_mtime_ns for path in sorted(world.action.rglob("*"))} == before
    assert step.outputs["artefacts"] == str(world.repo / "artefacts.tar.gz")
    foreign_files = [path for path in world.repo.rglob("*") if path.lstat().st_uid != NOBODY]
    assert foreign_files == []
    status = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(world.repo), "status", "--porcelain", "--ignored"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(status.stdout.split()) == ["??", "??", "artefacts.tar.gz", "mnist/"]
    assert world.containers() == []
    assert [path.name for path in world.temp.iterdir()] == []

    # The next checkout into this workspace is the runner's own, and so is all that it removes.
    git = ["git", "-c", f"safe.directory={world.repo}", "-C", str(world.repo)]
    for command in (
        ["clean", "-ffdxq"],
        ["commit", "-q", "--allow-empty", "-m", "x"],
        ["checkout", "-qf", "HEAD"],
    ):
        subprocess.run(
            [*git, *command], check=True, user=NOBODY, group=NOBODY, extra_groups=[],
            env={"PATH": PLAIN_PATH, "HOME": str(world.home)},
        )  # fmt: skip
    assert [path.name for path in world.repo.iterdir()] == [".git"]
    world.model(GOOD)
    world.change_owner(NOBODY)
    step = world.step(NOBODY, MODEL="mnist", PATH=PLAIN_PATH)
    assert step.process.wait(PATIENCE_S) == 0, step.log
    assert "Preparing" not in step.log

    (world.repo / "artefacts.tar.gz").unlink()
    os.chown(world.repo, 0, 0)
    step = world.step(NOBODY, MODEL="mnist", PATH=PLAIN_PATH)
    assert step.process.wait(PATIENCE_S) == 2, step.log
    assert "may not write" in step.log
    assert "Preparing" not in step.log


RESUMING = (
    GOOD
    + """
print("card", [name for name in sorted(os.listdir("/dev")) if name.startswith("nvidia")])
print("data", open("/data/digits/digit.txt").read())
checkpoint = os.environ["TRAIN_CHECKPOINT_DIR"] + "/epoch"
epoch = int(open(checkpoint).read()) if os.path.exists(checkpoint) else 0
print("epoch", epoch)
open(checkpoint, "w").write(str(epoch + 1))
"""
)


@pytest.mark.host
def test_job_on_gpu_host_gets_one_card_and_resumes(
    world: World, gpu_host: TestHost, slack: Callable[..., Slack]
) -> None:
    """Over ssh on a simulated GPU host: one card of two, a data folder, and a second run that resumes.

    A job that uses none of its cards (the stand-in says so) is reported to Slack.
    """
    gpu_host.write("/srv/digits/digit.txt", "seven")
    world.model(RESUMING)
    inputs = {
        "MODEL": "mnist",
        "TRAIN_CLASSIFIER_INPUT_INVENTORY": str(gpu_host.inventory("trainer")),
        "TRAIN_CLASSIFIER_INPUT_GPUS": "1",
        "TRAIN_CLASSIFIER_INPUT_DATA": "/srv/digits:digits",
    }
    for epoch, resume in enumerate(({}, {"TRAIN_CLASSIFIER_INPUT_RESUME": "last"})):
        step = world.step(**inputs, **resume)
        assert step.process.wait(PATIENCE_S) == 0, step.log
        assert re.search(r"card \['nvidia\d'\]", step.log), step.log
        assert "data seven" in step.log
        assert f"epoch {epoch}" in step.log
        manifest = json.loads(Path(step.outputs["manifest"]).read_text())
        assert manifest["gpu_check"]["mode"] == "device", manifest
    # A cancel frees the cards: the next job wants both, and would not wait for them.
    inputs |= {"TRAIN_CLASSIFIER_INPUT_GPUS": "2", "TRAIN_CLASSIFIER_INPUT_WAIT": "0"}
    world.model(RUNS_ON)
    hook = slack(200)
    idle = {
        "TRAIN_CLASSIFIER_INPUT_IDLE_WARNING": "1s",
        "TRAIN_CLASSIFIER_INPUT_SLACK_WEBHOOK": hook.url,
    }
    step = world.step(**inputs, **idle)
    eventually(lambda: hook.texts() or step.process.poll() is not None, 240)
    assert step.process.poll() is None, step.log
    (text,) = hook.texts()
    assert "Training mnist" in text and "does not use its GPU" in text, text
    assert "the job has not used 2 of its 2 GPUs for" in text, text
    cancel(step)
    assert step.process.returncode == 6, step.log
    eventually(lambda: gpu_host.containers() == [])
    world.model(RESUMING)
    step = world.step(**inputs)
    assert step.process.wait(PATIENCE_S) == 0, step.log
    assert "card ['nvidia0', 'nvidia1']" in step.log
    assert gpu_host.containers() == []
    assert [path.name for path in world.temp.iterdir()] == []


def test_step_trains_without_github_variables(world: World) -> None:
    """Without GitHub's and the runner's variables it prints no workflow command."""
    world.model(GOOD)
    tool_cache = world.tools / "tool_cache" / "train-classifier"
    if tool_cache.exists():
        # The step uses this folder without a tool cache; another test may have prepared the environment.
        (world.folder / "cache" / "train-classifier").mkdir(parents=True)
        subprocess.run(
            ["cp", "-al", tool_cache, world.folder / "cache" / "train-classifier" / "action"], check=True
        )
    step = world.step(outside=True, MODEL="mnist")
    environ = Path("/proc", str(step.process.pid), "environ").read_bytes()
    assert b"GITHUB_" not in environ
    assert b"RUNNER_" not in environ
    step.process.wait(PATIENCE_S)
    assert step.process.returncode == 0, step.log
    assert not [line for line in step.log.splitlines() if line.startswith("::")]
    assert (world.repo / "artefacts.tar.gz").exists()


#: A model that prints its secrets.
PRINTS_SECRETS = (
    GOOD
    + """
for name in ("TOKEN", "KEY"):
    print(name, os.environ[name], flush=True)
    print(os.environ[name].splitlines()[-1], file=sys.stderr, flush=True)
raise ValueError(os.environ["TOKEN"])
"""
)


def test_secrets_are_masked_and_stored_nowhere(world: World, slack: Callable[..., Slack]) -> None:
    """Every secret is masked before the first output, and no file holds one."""
    hook = slack(200)
    token, key = "pl4nted-token", "-----BEGIN pl4nted-----\npl4nted-key-line\n-----END pl4nted-----"
    world.model(PRINTS_SECRETS)
    step = world.step(
        MODEL="mnist",
        TOKEN=token,
        KEY=key,
        SLACK_IDENTIFIER=hook.url,
        TRAIN_CLASSIFIER_INPUT_SECRETS="TOKEN KEY",
        TRAIN_CLASSIFIER_INPUT_SLACK_NOTIFY="all",
    )
    assert step.process.wait(PATIENCE_S) == 4, step.log
    lines = [line for line in step.log.splitlines() if not line.startswith("Preparing the action's")]
    first = next(number for number, line in enumerate(lines) if not line.startswith("::add-mask::"))
    masked = {line.removeprefix("::add-mask::") for line in lines[:first]}
    assert {token, *key.split("\n"), hook.url, hook.url.partition("://")[2].partition("/")[2]} <= masked
    assert "TOKEN ***" in lines
    words = ["pl4nted-token", "pl4nted-key-line", "sl4ckpl4nted"]
    assert world.search(*words) == []
    assert [text for text in hook.texts() for word in words if word in text] == []
    assert len(hook.texts()) == 2
    (job,) = world.jobs()
    # The job's own account passes through, as the folder's group, and reads nothing in it.
    assert stat.S_IMODE(job.stat().st_mode) & 0o067 == 0


def test_failed_run_leaves_a_file_that_is_no_archive(world: World) -> None:
    world.write("precious.txt", "mine")
    step = world.step(MODEL="missing", TRAIN_CLASSIFIER_INPUT_OUTPUT="precious.txt")
    assert step.process.wait(PATIENCE_S) == 2, step.log
    assert "is no archive" in step.log
    # Together with the other problem.
    assert "'missing'" in step.log
    assert (world.repo / "precious.txt").read_text() == "mine"


def test_failed_run_removes_archive_named_in_settings(world: World) -> None:
    """Only the archive that train-classifier.toml names is removed; with unreadable settings none is."""
    settings, unrelated = world.repo / "train-classifier.toml", world.repo / "artefacts.tar.gz"
    results = world.repo / "results.tar.gz"
    unrelated.write_bytes(b"\x1f\x8bunrelated")
    results.write_bytes(b"\x1f\x8bold")
    settings.write_text('[defaults]\noutput = "results.tar.gz"\n')
    step = world.step(MODEL="missing")
    assert step.process.wait(PATIENCE_S) == 2, step.log
    assert not results.exists()
    assert unrelated.exists()
    settings.write_text("[defaults\n")
    step = world.step(MODEL="missing")
    assert step.process.wait(PATIENCE_S) == 2, step.log
    assert unrelated.exists()
    assert "An archive of an earlier run may remain" in step.log


def test_all_wrong_inputs_are_reported(world: World, slack: Callable[..., Slack]) -> None:
    """A misspelt slack-notify hides no other problem, stops no notice, and the archive of an earlier run is removed."""
    hook = slack(200)
    (world.repo / "artefacts.tar.gz").write_bytes(b"\x1f\x8bold")
    step = world.step(
        MODEL="missing",
        SLACK_IDENTIFIER=hook.url,
        TRAIN_CLASSIFIER_INPUT_SLACK_NOTIFY="sucess",
        TRAIN_CLASSIFIER_INPUT_TIMEOUT="soon",
    )
    assert step.process.wait(PATIENCE_S) == 2, step.log
    errors = [line for line in step.log.splitlines() if line.startswith("::error")]
    for words in ("sucess", "'missing'", "soon"):
        assert [line for line in errors if words in line], step.log
    assert (step.outputs["status"], step.outputs["exit-code"]) == ("bad-input", "2")
    assert "was refused" in step.summary
    assert len(hook.received) == 1
    assert "sucess" in hook.texts()[0]
    assert not (world.repo / "artefacts.tar.gz").exists()
