"""Row 1: data folders that a repository's settings file may name, and folders that no job gets."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback.world import World, make_world
from worker_support import Machine, Refused, accounts, host_fixture, packed, write_model

pytestmark = pytest.mark.engine

LOOK = """
import os
for folder, folders, files in os.walk("/data"):
    for name in files:
        path = os.path.join(folder, name)
        print("FILE", path, flush=True)
        try:
            print(open(path).read())
            open(path, "a").write("from the model")
        except OSError as error:
            print(error)
for path in ("/data/h/dev/shm/planted", "/data/h/below/planted"):
    try:
        open(path, "w").write("x")
        print("WROTE", path)
    except OSError as error:
        print("no", path, error.errno)
os.makedirs("artefacts", exist_ok=True)
open("artefacts/out", "w").write("x")
"""


@pytest.fixture(scope="module")
def world(base_image: str) -> Iterator[World]:
    yield from make_world(base_image)


host = host_fixture(accounts()[-1:])


def refused(host: Machine, *paths: str, from_checkout: bool = False) -> list[str]:
    """Return the worker's problems with data folders, all in one request."""
    data = [
        {"path": path, "name": f"d{number}", **({"from_checkout": True} if from_checkout else {})}
        for number, path in enumerate(paths)
    ]
    with pytest.raises(Refused) as caught:
        host.call("prepare", spec=host.spec(data=data), files=packed([]))
    assert caught.value.code == 2
    problems: list[str] = caught.value.error["problems"]
    return problems


def test_01_repository_cannot_name_the_hosts_files(world: World) -> None:
    model = world.model(LOOK)
    settings = world.repo / "train-classifier.toml"
    home = world.folder / "home"
    (home / ".config" / "train-classifier").mkdir(parents=True)
    (home / ".netrc").write_text("machine example.org password hunter2\n")
    offered, other = world.folder / "offered", world.folder / "other"
    for folder in (offered / "set", other):
        folder.mkdir(parents=True)
        (folder / "input").write_text("numbers")
    before = world.host_json.read_text()
    world.host_json.write_text(json.dumps({**json.loads(before), "data_roots": [str(offered)]}))
    try:
        # The home folder first: a test that fails should not walk through all of this machine.
        for path in (str(home), str(other), f"{offered}/../other", "/"):
            settings.write_text(f"[defaults]\ndata = ['{path}:h']\n")
            done = world.run(*world.train(model), HOME=str(home))
            assert b"hunter2" not in done.stdout and b"FILE" not in done.stdout
            assert done.returncode == 2, done.stderr
        # The refusal names the line and the file to move it to, where it is accepted.
        settings.write_text(f"[defaults]\ndata = ['{other}:h']\n")
        messages = world.run(*world.train(model), HOME=str(home)).stderr.decode()
        line = f'data = ["{other}:h"]'
        assert (
            f"'{line}' below [defaults]" in messages and "~/.config/train-classifier/config.toml" in messages
        )
        assert f"--data {other}:h" in messages and "training_host_data_roots" in messages
        settings.write_text(f"[defaults]\ndata = ['{offered}/set:r']\n")
        (home / ".config" / "train-classifier" / "config.toml").write_text(f"[defaults]\n{line}\n")
        done = world.run(*world.train(model), HOME=str(home))
        assert done.returncode == 0, done.stderr
        assert b"FILE /data/h/input" in done.stdout and b"FILE /data/r/input" in done.stdout
        assert (other / "input").read_text() == "numbers"
    finally:
        settings.unlink()
        world.host_json.write_text(before)


def test_01_system_folders_are_refused(host: Machine) -> None:
    home = pwd.getpwuid(0).pw_dir
    refusable = [
        "/", "//", "/proc", "/proc/1/root", "/sys", "/sys/fs/cgroup", "/dev", "/dev/shm", "/run", "/var/run",
        "/etc", "/etc/ssl", "/var", "/var/lib", "/var/lib/docker", str(host.state), str(host.state / "jobs"),
        str(host.root), "/var/tmp", host.settings["queue_dir"], "/home", home,
    ]  # fmt: skip
    link = host.root / "innocent"
    link.symlink_to("/etc")
    refusable.append(str(link))
    folders = [path for path in refusable if os.access(path, os.R_OK | os.X_OK) and Path(path).is_dir()]
    problems = refused(host, *refusable)
    assert len(problems) == len(refusable)
    for path, problem in zip(refusable, problems, strict=True):
        assert path in problem
        # An account that cannot read a folder gets no other reason.
        assert "no job may read it" in problem or path not in folders or host.user != "root", problem


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a home of another account, and mounts")
def test_01_homes_and_aliases_of_refused_folders_are_refused(host: Machine) -> None:
    person = pwd.getpwnam(host.user)
    root = Path(tempfile.mkdtemp(dir="/var/tmp"))
    root.chmod(0o755)
    (root / "real").mkdir()
    (root / "copy").mkdir()
    (root / "socket").mkdir()
    subprocess.run(["mount", "--bind", "/etc", str(root / "copy")], check=True)
    try:
        dotted = Path(person.pw_dir, ".train-classifier-test")
        dotted.mkdir()
        os.mkfifo(root / "fifo")
        try:
            sentences = refused(
                host,
                str(dotted),
                person.pw_dir,
                str(root / "copy"),
                str(root / "copy/ssl"),
                str(root / "fifo"),
            )
        finally:
            dotted.rmdir()
        assert f".train-classifier-test in the home folder of {host.user}" in sentences[0]
        assert f"home folder of {host.user}" in sentences[1]
        assert "is part of /etc" in sentences[2] and "is part of /etc" in sentences[3]
        assert "is not a folder" in sentences[4]
    finally:
        subprocess.run(["umount", "-l", str(root / "copy")], check=True)
        subprocess.run(["rm", "-rf", "--one-file-system", str(root)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_01_file_systems_mounted_below_are_not_included(host: Machine) -> None:
    folder = host.root / "data"
    (folder / "below").mkdir(parents=True)
    for path in (folder, folder / "below"):
        path.chmod(0o777)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0777", "tmpfs", str(folder / "below")]
    data = [{"path": str(folder), "name": "h"}]
    subprocess.run(mount, check=True)
    try:
        (problem,) = refused(host, str(folder))
        assert f"has a file system mounted below it, at {folder}/below" in problem
        # A file system that is mounted after the check is not part of the bind mount.
        with host.patched("training/data_folders", "def mounts():\n    return []\n"):
            job, result = host.train(LOOK, data=data)
        assert result["outcome"] == "trained", result
        assert b"WROTE" not in host.log(job) and b"no /data/h/below/planted 30" in host.log(job)
        assert not (folder / "below" / "planted").exists()
        inside, result = host.train(LOOK, data=[{"path": str(folder / "below"), "name": "h"}])
        assert result["outcome"] == "trained", (result, host.log(inside))
    finally:
        subprocess.run(["umount", "-l", str(folder / "below")], check=True)
    assert not (folder / "below" / "planted").exists()


def test_01_allowed_folder_is_checked_again_before_mounting(host: Machine, tmp_path: Path) -> None:
    offered, secret = host.root / "offered", host.root / "secret"
    for folder in (offered / "set", secret):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    offered.chmod(0o755)
    (secret / "input").write_text("hunter2")
    (offered / "out").symlink_to(secret)
    host.write_settings(data_roots=[str(offered)])
    try:
        (problem,) = refused(host, str(offered / "out"), from_checkout=True)
        assert f"which is {secret}," in problem and f"only what lies below {offered}" in problem
        data = [{"path": str(offered / "set"), "name": "h", "from_checkout": True}]
        spec = host.spec(data=data)
        host.push(write_model(tmp_path, LOOK), spec)
        (offered / "set").rmdir()
        (offered / "set").symlink_to(secret)
        host.call("submit", id=spec["id"])
        result = host.wait(spec["id"])
        assert result["exit_code"] == 2 and str(secret) in result["reason"], result
        assert b"hunter2" not in host.log(spec["id"])
    finally:
        host.write_settings(data_roots=[])


def test_01_the_administrators_list_is_checked(host: Machine) -> None:
    for roots in (["/"], ["relative"], ["/srv/../etc"], "/srv", [5], ["//"]):
        host.write_settings(data_roots=roots)
        try:
            with pytest.raises(Refused, match="data_roots") as caught:
                host.call("prepare", spec=host.spec(), files=packed([]))
            assert caught.value.code == 3
        finally:
            host.write_settings(data_roots=[])
