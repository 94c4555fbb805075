"""The wheel, installed with its locked dependencies in a clean environment, is complete: it trains a model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from loopback.installed import build, install
from loopback.world import World, tail

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
#: Where the wheel keeps what is at the root of a checkout.
CONTENT = "train_classifier/_content"
GOOD = "print('hello'); open('artefacts/weights', 'w').write('x')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("uv") is None:
        pytest.skip("no uv on this machine: scripts/test installs it")
    return build(tmp_path_factory.mktemp("wheel"))


def newest() -> str:
    """The newest interpreter at hand that is newer than this one; skips when there is none."""
    programs = [*Path.home().glob(".pyenv/versions/3.*/bin/python3"), Path("/usr/bin/python3")]
    programs += [Path(path) for minor in (12, 13, 14) if (path := shutil.which(f"python3.{minor}"))]
    interpreters: list[tuple[tuple[int, int], str]] = []
    for program in programs:
        code = "import sys; print(*sys.version_info[:2])"
        done = subprocess.run([str(program), "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            major, minor = map(int, done.stdout.split())
            interpreters.append(((major, minor), str(program)))
    best = max(interpreters, default=((0, 0), ""))
    if best[0] <= sys.version_info[:2] or best[0] < (3, 12):
        pytest.skip(f"no Python newer than this one ({sys.version.split()[0]}) on this machine")
    return best[1]


def test_wheel_has_every_file_of_the_checkout(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", "train_classifier", "playbooks", "roles", "plugins", "site.yml", "ansible.cfg"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    # A file that is removed from the tree, but not yet from git, is not expected; links to folders are for those who run
    # ansible-playbook in a checkout.
    tracked = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    expected = {name if name.startswith("train_classifier/") else f"{CONTENT}/{name}" for name in tracked}
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        metadata = next(opened.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert {f"{CONTENT}/{name}" for name in ("ansible.cfg", "site.yml", "playbooks/train.yml")} <= names
    assert f"{CONTENT}/roles/training_job/tasks/main.yml" in names
    assert f"{CONTENT}/plugins/action/training_push.py" in names
    assert expected - names == set()
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]
    assert "License-Expression: GPL-3.0-only" in metadata


@pytest.mark.parametrize("which", ["own", "newest"])
def test_installed_wheel_trains(wheel: Path, world: World, which: str) -> None:
    """Python 3.12 and newer get another ansible-core than 3.11 does: both must train."""
    python = sys.executable if which == "own" else newest()
    venv = world.folder / "venv"
    program = install(wheel, python, venv)
    environment = {k: v for k, v in world.environment.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # PATH does not name the checkout's environment.
    own = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join(p for p in environment["PATH"].split(os.pathsep) if p != own)

    def run(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(program), *map(str, words)],
            capture_output=True, stdin=subprocess.DEVNULL, cwd=world.work, env=environment, timeout=300,
            check=False,
        )  # fmt: skip

    helped = run("--help")
    assert helped.returncode == 0, tail(helped.stderr)
    assert all(verb in helped.stdout.decode() for verb in ("train", "attach", "doctor", "provision"))
    version = re.search(r'__version__ = "(.+)"', (ROOT / "train_classifier/__init__.py").read_text())
    assert version and version[1] in run("--version").stdout.decode()

    world.model(GOOD)
    done = run(*world.train("probe", "--json"))
    assert done.returncode == 0, tail(done.stderr)
    answer = json.loads(done.stdout)
    assert (answer["outcome"], answer["exit_code"]) == ("trained", 0)
    with tarfile.open(world.work / "artefacts.tar.gz") as archive:
        assert {"artefacts/weights", "job/manifest.json", "job/log.txt"} <= set(archive.getnames())
    core = subprocess.run(
        [str(venv / "bin" / "python"), "-c", "import ansible.release; print(ansible.release.__version__)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert core.startswith("2.19.") == (which == "own" and sys.version_info < (3, 12))
    world.assert_clean()
