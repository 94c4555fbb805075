"""An ordinary user's whole flow on one machine: nothing belongs to root, and the checkout stays as it was.

The user is `nobody` with the group that owns the engine's socket; the product is installed from its wheel, since
that user may not be able to read this test's interpreter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hosts.fleet import uv_binary
from hosts.machine import ca_bundle
from loopback.installed import build, install
from loopback.world import World, tail

pytestmark = pytest.mark.engine

NOBODY = 65534
SOCKET = Path("/var/run/docker.sock")
MODEL = """
import six
owners = {os.lstat(os.path.join(top, name)).st_uid for top, folders, files in os.walk(".") for name in folders + files}
print(os.getuid(), sorted(owners), oct(os.stat("tool.sh").st_mode & 0o777), six.__name__)
os.makedirs("artefacts/deep", exist_ok=True)
open("artefacts/deep/weights", "w").write("x")
open("artefacts/metrics.json", "w").write('{"accuracy": 0.5}')
os.chmod("artefacts/deep", 0o500)
# What a model does to its workspace never reaches the checkout.
open("README.md", "a").write("changed by the job")
os.remove("odd name \\n\\xe9")
os.makedirs("probe/__pycache__", exist_ok=True)
"""


def python() -> str:
    """An interpreter that the ordinary user can run."""
    for name in (sys.executable, "/usr/bin/python3"):
        code = "import sys; sys.exit(sys.version_info < (3, 11))"
        # That user may not be able to execute it.
        with contextlib.suppress(PermissionError):
            done = subprocess.run([name, "-c", code], user=NOBODY, group=NOBODY, extra_groups=[], check=False)
            if done.returncode == 0:
                return name
    pytest.skip("no Python from 3.11 on that another user may run: apt-get install python3")


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every file, folder and link below `folder`, .git included: mode, owner, time and content."""
    entries: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        information = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif stat.S_ISREG(information.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        entries[str(path.relative_to(folder))] = (
            oct(information.st_mode), information.st_uid, information.st_gid, information.st_mtime_ns, content,
        )  # fmt: skip
    return entries


def owned_by_others(uid: int, folder: Path) -> list[str]:
    """What below `folder`, itself included, belongs to another user."""
    return [str(path) for path in (folder, *folder.rglob("*")) if path.lstat().st_uid != uid]


def checkout(world: World) -> Path:
    """A git checkout with ignored files, odd names and modes, links, old times."""
    repo = world.repo
    world.model(MODEL)
    (repo / "probe" / "requirements.txt").write_text("six==1.16.0\n")
    (repo / "probe" / "apt-pkgs.txt").write_text("tree\n")
    (repo / "README.md").write_text("read me\n")
    (repo / ".gitignore").write_text("ignored/\n")
    (repo / "ignored").mkdir()
    (repo / "ignored" / "data.csv").write_text("1,2\n")
    (repo / "artefacts" / "README.md").write_text("kept\n")
    (repo / "tool.sh").write_text("#!/bin/sh\n")
    (repo / "tool.sh").chmod(0o750)
    (repo / "odd name \né").write_text("x")
    (repo / "link").symlink_to("README.md")
    git = ["git", "-C", str(repo), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *words], check=True)
    # git's index has other times now: a `git status` that may write it would do so.
    for path in repo.rglob("*"):
        if ".git" not in path.parts:
            os.utime(path, ns=(10**18, 10**18 + 123_456_789), follow_symlinks=False)
    return repo


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_ordinary_user_trains_lists_and_cleans(world: World, tmp_path: Path) -> None:
    program = install(build(tmp_path / "wheel"), python(), world.folder / "venv")
    repo = checkout(world)
    settings = json.loads(world.host_json.read_text())
    settings["uv"] = str(world.folder / "uv")
    shutil.copy(uv_binary(), settings["uv"])
    if (bundle := ca_bundle()) is not None:
        settings["ca_bundle"] = str(bundle)
    world.host_json.write_text(json.dumps(settings))
    home = world.folder / "home"
    home.mkdir()
    for folder in (repo, home, world.work, world.temp, world.folder / "queue"):
        subprocess.run(["chown", "-hR", f"{NOBODY}:{NOBODY}", folder], check=True)
    world.folder.chmod(0o755)
    inventory = world.folder / "here.yml"
    # No folder is named: the state is at its default place below the home.
    inventory.write_text("all:\n  hosts:\n    here:\n      ansible_connection: local\n")
    variables = {name: os.environ[name] for name in ("LANG", "SSL_CERT_FILE") if name in os.environ}
    environment = {
        **variables, "HOME": str(home), "USER": "nobody", "LOGNAME": "nobody", "PATH": "/usr/local/bin:/usr/bin:/bin",
        "TMPDIR": str(world.temp), "TRAIN_CLASSIFIER_HOST_JSON": str(world.host_json),
        "XDG_STATE_HOME": str(home / ".local" / "state"),
    }  # fmt: skip

    def run(*words: str | Path) -> bytes:
        done = subprocess.run(
            [str(program), *map(str, words), "--inventory", str(inventory)],
            capture_output=True, stdin=subprocess.DEVNULL, cwd=repo, env=environment, timeout=300, check=False,
            user=NOBODY, group=NOBODY, extra_groups=[SOCKET.stat().st_gid],
        )  # fmt: skip
        crashes = [path.read_text() for path in world.temp.glob("*crash*")]
        assert done.returncode == 0, (words[0], tail(done.stderr), crashes)
        return done.stdout

    def left_in_git() -> str:
        command = ["git", "-c", f"safe.directory={repo}", "--no-optional-locks", "status", "--porcelain"]
        return subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True).stdout

    def layers() -> list[str]:
        labels = [
            "--filter",
            "label=train-classifier.kind=image",
            "--filter",
            f"label=train-classifier.uid={NOBODY}",
        ]
        listed = subprocess.run(
            ["docker", "images", "-q", *labels], check=True, capture_output=True, text=True
        )
        return listed.stdout.split()

    before = snapshot(repo)
    assert left_in_git() == ""
    assert run("train", "probe", "--gpus", "0").decode() == f"{NOBODY} [{NOBODY}] 0o750 six\n"
    after = snapshot(repo)
    archive = after.pop("artefacts.tar.gz")
    assert archive[1:3] == (NOBODY, NOBODY)
    assert after == before
    assert left_in_git() == "?? artefacts.tar.gz\n"
    with tarfile.open(repo / "artefacts.tar.gz") as opened:
        assert {member.uid for member in opened} == {NOBODY} or {member.uname for member in opened} <= {
            "",
            "nobody",
        }
        assert "artefacts/deep/weights" in opened.getnames()

    state = home / ".local" / "state" / "train-classifier"
    assert (state / "jobs").is_dir() and stat.S_IMODE(state.stat().st_mode) == 0o700
    (job,) = json.loads(run("list", "--all", "--json"))
    assert (job["outcome"], job["submitter"].split("@")[0]) == ("trained", "nobody")
    assert run("logs", job["id"]).startswith(b"65534 ")
    run("status", "last")
    # The second run does not push the archive of the first, and replaces it.
    assert run("train", "probe", "--gpus", "0").endswith(b"six\n")
    assert len(layers()) == 1
    run("clean", "--older", "0s")
    assert list((state / "jobs").iterdir()) == []
    # Environments and layers stay while they are fresh.
    run("clean", "--older", "0s", "--keep-environments", "0")
    environments = state / "environments" / "envs"
    assert len(layers()) == 1 and len(list(environments.iterdir())) == 1
    for used in (*environments.glob("*/environment.json"), *(state / "images").glob("*.json")):
        os.utime(used, (1, 1))
    removed = json.loads(run("clean", "--older", "0s", "--keep-environments", "0", "--json"))
    assert layers() == [] and list(environments.iterdir()) == [], removed
    last = snapshot(repo)
    assert last.pop("artefacts.tar.gz") and last == before
    for folder in (home, world.temp, world.work):
        assert owned_by_others(NOBODY, folder) == []
    assert list(world.temp.iterdir()) == []
