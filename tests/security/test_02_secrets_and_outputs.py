"""Row 2: variables of the caller, the archive's place, env files and hosts that a repository's files name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback.world import World, make_world

from train_classifier.request.build import TrainRequest, build

pytestmark = pytest.mark.engine

SECRET = "hunter2hunter2"
#: Prints the secret backwards: the log masks it otherwise.
PRINT = """
print((os.environ.get('AWS_SECRET_ACCESS_KEY') or '')[::-1], os.environ.get('WANTED'))
open('artefacts/a', 'w')
"""


@pytest.fixture(scope="module")
def shared(base_image: str) -> Iterator[World]:
    yield from make_world(base_image)


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """One host for all tests; the settings files of a test are removed after it."""
    yield shared
    (shared.repo / "train-classifier.toml").unlink(missing_ok=True)
    (shared.folder / "config" / "train-classifier" / "config.toml").unlink(missing_ok=True)


def own_settings(world: World, text: str) -> Path:
    path = world.folder / "config" / "train-classifier" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def train(world: World, *flags: str, text: str = "", dry: bool = True) -> tuple[int, str, str]:
    """Train with a settings file of the repository; return exit code and both outputs."""
    (world.repo / "train-classifier.toml").write_text(text)
    done = world.run(
        *world.train(world.model(PRINT)), *flags, *(["--dry-run"] if dry else []),
        AWS_SECRET_ACCESS_KEY=SECRET, XDG_CONFIG_HOME=str(world.folder / "config"),
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("table", ["defaults", "models.probe", "models.other"])
def test_02_repository_cannot_name_a_variable_of_the_caller(world: World, table: str) -> None:
    code, out, messages = train(world, text=f"[{table}]\nsecrets = ['AWS_SECRET_ACCESS_KEY']\n", dry=False)
    assert SECRET[::-1] not in out and SECRET not in messages
    assert code == 2
    assert f"train-classifier.toml: [{table}] secrets: " in messages
    assert (
        "'secrets = [\"AWS_SECRET_ACCESS_KEY\"]'" in messages and "--secret AWS_SECRET_ACCESS_KEY" in messages
    )
    assert f"{world.folder}/config/train-classifier/config.toml" in messages


def test_02_own_settings_file_names_secrets_for_the_command_line_only(world: World) -> None:
    own_settings(world, "[defaults]\nsecrets = ['AWS_SECRET_ACCESS_KEY']\nenvironment = { WANTED = 'own' }\n")
    code, out, messages = train(world, text="[defaults]\nenvironment = { WANTED = 'theirs' }\n", dry=False)
    assert (code, out) == (0, f"{SECRET[::-1]} own\n"), messages
    # As the action and the playbook's role ask.
    plan = build(
        TrainRequest(model="probe", repo=str(world.repo)), {"XDG_CONFIG_HOME": str(world.folder / "config")}
    )
    assert plan.spec.secrets == ()


def test_02_own_settings_file_must_belong_to_the_caller(world: World) -> None:
    path = own_settings(world, "[defaults]\nsecrets = ['AWS_SECRET_ACCESS_KEY']\n")
    path.chmod(0o666)
    code, _, messages = train(world)
    assert code == 2 and "others may write to it" in messages
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 1, 1)
        code, _, messages = train(world)
        assert code == 2 and "belongs to uid 1 and not to you" in messages
    path.unlink()
    # A link to a dotfile of the caller is accepted, a link into the repository is not.
    (world.folder / "dotfile").write_text("[defaults]\nsecrets = ['AWS_SECRET_ACCESS_KEY']\n")
    path.symlink_to(world.folder / "dotfile")
    code, out, messages = train(world)
    assert code == 0 and "AWS_SECRET_ACCESS_KEY" in out, messages
    path.unlink()
    (world.repo / "planted.toml").write_text("[defaults]\nsecrets = ['AWS_SECRET_ACCESS_KEY']\n")
    path.symlink_to(world.repo / "planted.toml")
    code, _, messages = train(world)
    assert code == 2 and "lies in the repository" in messages
    path.unlink()
    os.mkfifo(path)
    code, _, messages = train(world)
    assert code == 2 and "is not a regular file" in messages


def test_02_repository_cannot_write_outside_itself(world: World) -> None:
    precious = world.folder / "precious.txt"
    precious.write_text("precious")
    (world.repo / "notes.txt").write_text("notes")
    for name, target in (("away", world.folder), ("climbs", Path("..")), ("hooks", world.repo / ".git")):
        (world.repo / name).unlink(missing_ok=True)
        (world.repo / name).symlink_to(target)
    (world.repo / ".git" / "hooks").mkdir(parents=True, exist_ok=True)
    for output in (
        str(precious), "../precious.txt", "away/precious.txt", "climbs/precious.txt", "~/x.tar.gz",
        ".git/hooks/pre-commit", "hooks/config", "artefacts/../../precious.txt", "notes.txt",
    ):  # fmt: skip
        code, _, messages = train(world, text=f"[defaults]\noutput = '{output}'\n", dry=False)
        assert precious.read_bytes() == b"precious", output
        assert (world.repo / "notes.txt").read_bytes() == b"notes", output
        assert list((world.repo / ".git").rglob("*")) == [world.repo / ".git" / "hooks"], output
        assert code == 2 and "output" in messages, (output, messages)
    # A link at the archive's path is replaced, not followed.
    (world.repo / "results").mkdir()
    (world.repo / "results" / "out.tar.gz").symlink_to(precious)
    code, _, messages = train(world, text="[defaults]\noutput = 'results/out.tar.gz'\n", dry=False)
    assert code == 0 and precious.read_text() == "precious", messages
    assert not (world.repo / "results" / "out.tar.gz").is_symlink()
    # The caller may name any path.
    code, _, messages = train(
        world, "--output", str(world.folder / "mine.tar.gz"), text="[defaults]\noutput = '/x'\n"
    )
    assert code == 0, messages


def test_02_all_refusals_are_reported_at_once(world: World) -> None:
    text = "[defaults]\nsecrets = ['HF_TOKEN']\noutput = '/nowhere/x'\nlog_max = '3GiB'\nhost = 'a*'\n"
    code, _, messages = train(world, text=text)
    assert code == 2
    for key in ("secrets", "log_max", "host"):
        assert f"train-classifier.toml: [defaults] {key}: " in messages, key
    assert "leads out of the repository" in messages and "make it first" not in messages


def test_02_refused_line_works_in_the_file_that_the_refusal_names(world: World) -> None:
    for table in ("defaults", "models.probe"):
        code, _, messages = train(world, text=f"[{table}]\nsecrets = ['AWS_SECRET_ACCESS_KEY']\n")
        match = re.search(r"move the line '(.*)' below (\[.*\]) of your own settings", messages)
        assert code == 2 and match, messages
        own_settings(world, f"{match[2]}\n{match[1]}\n")
        code, out, messages = train(world)
        assert code == 0 and "AWS_SECRET_ACCESS_KEY" in out, messages


def test_02_link_planted_during_training_is_not_followed(world: World) -> None:
    outside, gate = world.folder / "outside", world.folder / "gate"
    outside.mkdir()
    gate.mkdir()
    gate.chmod(0o755)
    folder = world.repo / "later"
    folder.mkdir()
    program = "print('up', flush=True)\nwhile not os.path.exists('/data/gate/go'):\n    pass\nopen('artefacts/a', 'w')\n"
    (world.repo / "train-classifier.toml").write_text("[defaults]\noutput = 'later/out.tar.gz'\n")
    running = world.start(*world.train(world.model(program)), "--data", f"{gate}:gate")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    folder.rmdir()
    folder.symlink_to(outside)
    (gate / "go").touch()
    _, messages = running.communicate(timeout=120)
    assert list(outside.iterdir()) == []
    assert running.returncode == 7 and b"cannot be written" in messages, messages


def test_02_env_file_of_the_repository_cannot_read_caller_variables(world: World) -> None:
    (world.repo / "bare.env").write_text("A=1\nAWS_SECRET_ACCESS_KEY\n")
    (world.folder / "credentials").write_text("TOKEN=hunter2\nAWS_SECRET_ACCESS_KEY\n")
    (world.repo / "link.env").unlink(missing_ok=True)
    (world.repo / "link.env").symlink_to(world.folder / "credentials")
    (world.repo / "folder").symlink_to(world.folder)
    code, out, messages = train(world, "--env-file", str(world.repo / "bare.env"), dry=False)
    assert SECRET[::-1] not in out
    assert (
        code == 2 and "line 2: AWS_SECRET_ACCESS_KEY has no value, and a file of the repository" in messages
    )
    for name in ("link.env", "folder/credentials"):
        code, out, messages = train(world, "--env-file", str(world.repo / name), dry=False)
        assert SECRET[::-1] not in out
        assert code == 2 and "leads out of the repository" in messages
    # The caller's own file may take variables.
    code, out, messages = train(world, "--env-file", str(world.folder / "credentials"))
    assert code == 0 and "AWS_SECRET_ACCESS_KEY" in out, messages


def test_02_settings_file_must_not_be_a_link_out_of_the_repository(world: World) -> None:
    (world.folder / "credentials.toml").write_text("hunter2hunter2 = 1\n")
    (world.repo / "train-classifier.toml").symlink_to(world.folder / "credentials.toml")
    done = world.run(*world.train(world.model(PRINT)), "--dry-run")
    assert SECRET.encode() not in done.stderr
    assert done.returncode == 2 and b"train-classifier.toml: leads out of the repository" in done.stderr


def test_02_repository_cannot_raise_worker_limits(world: World) -> None:
    code, _, messages = train(world, text="[defaults]\nlog_max = '3GiB'\n")
    assert code == 2 and "[defaults] log_max: a repository sets at most 2.0 GiB" in messages, messages
    code, _, messages = train(
        world, text="[defaults]\nlog_max = '3GiB'\n[models.probe]\nartefacts_max = '1TiB'\n"
    )
    assert code == 2 and f"'log_max = {3 << 30}'" in messages and f"--artefacts-max {1 << 40}" in messages, (
        messages
    )
    assert "[defaults] log_max: a repository sets at most 2.0 GiB" in messages
    own_settings(world, "[defaults]\nlog_max = '3GiB'\n")
    code, _, messages = train(world, text="[defaults]\nlog_max = '1GiB'\n")
    assert code == 0, messages


def test_02_repository_can_name_only_one_host(world: World) -> None:
    for host in ("here,@/etc/shadow", "@/etc/shadow", "all:!here", "~(a+)+$", "*", "here:@/etc/shadow", "-i"):
        code, _, messages = train(world, text=f"[defaults]\nhost = '{host}'\n")
        assert code == 2 and "is not the name of one host" in messages, (host, messages)
    code, _, messages = train(world, "--host", "here,@/etc/shadow")
    assert code == 2 and "is not the name of a host or group" in messages
