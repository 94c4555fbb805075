"""Pushing sources with rsync: odd names, interruptions, and the mirror afterwards."""

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from worker_support import Machine, Refused, accounts, host_fixture, packed

pytestmark = pytest.mark.engine
host = host_fixture(accounts(), scope="function")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / 'a repo\'s "name"\n'
    (root / "model").mkdir(parents=True)
    (root / "model" / "__main__.py").write_text("print('trained')\nopen('artefacts/x','w')\n")
    return root


def listing(folder: Path) -> dict[bytes, bytes]:
    """Return every file below a folder and its content; for a link where it points."""
    files = {}
    root = os.fsencode(folder)
    for base, folders, names in os.walk(root):
        for name in [*names, *(entry for entry in folders if os.path.islink(os.path.join(base, entry)))]:
            path = os.path.join(base, name)
            files[os.path.relpath(path, root)] = (
                b"-> " + os.readlink(path) if os.path.islink(path) else Path(os.fsdecode(path)).read_bytes()
            )
    return files


def mirror(host: Machine) -> Path:
    return host.state / "mirrors" / "0123456789abcdef" / "tree"


def workspace(host: Machine, spec: dict[str, object]) -> Path:
    return host.job_dir(str(spec["id"])) / "workspace"


def test_push_skips_what_host_has_already(host: Machine, tree: Path) -> None:
    first, second, other, third = (host.spec() for _ in range(4))
    assert host.push(tree, first, "a" * 64)
    assert not host.push(tree, second, "a" * 64)
    assert listing(workspace(host, second)) == listing(tree)
    one, two = (os.stat(workspace(host, spec) / "model/__main__.py") for spec in (first, second))
    assert one.st_ino != two.st_ino
    host.call("submit", id=second["id"])
    assert host.wait(second["id"])["exit_code"] == 0
    # The fingerprint of a push is valid until the next push.
    (tree / "model" / "more.py").write_text("x = 1\n")
    assert host.push(tree, other, "b" * 64)
    assert host.push(tree, third, "a" * 64)
    assert listing(workspace(host, third)) == listing(tree)


def test_interrupted_push_leaves_no_fingerprint(host: Machine, tree: Path) -> None:
    first, cut, last = (host.spec() for _ in range(3))
    host.push(tree, first, "a" * 64)
    host.call("prepare", spec=cut, files=packed([b"model/__main__.py"]), fingerprint="b" * 64)
    command = host.rsync_command(tree, cut["id"])
    # The list of names never ends: rsync is at work when it is killed.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        mark = mirror(host).parent / "fingerprint"
        until = time.monotonic() + 240
        while mark.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()
    assert host.push(tree, last, "a" * 64)
    assert listing(workspace(host, last)) == listing(tree)


def test_push_transfers_odd_names_and_links(host: Machine, tree: Path) -> None:
    root = os.fsencode(tree)
    for name in [b"new\nline", b"\xff\xfe", b"-rf", b"*", b" lead", b"tab\t", "größe".encode(), b"{{ 7*7 }}", b"$(id)",
                 b"a" * 255, b"back\\slash", b".hidden"]:  # fmt: skip
        with open(os.path.join(root, name), "wb") as file:
            file.write(name * 3)
    (tree / "dangling").symlink_to("nowhere")
    (tree / "loop").symlink_to("loop")
    (tree / "to-folder").symlink_to("model")
    (tree / "script").write_text("x")
    (tree / "script").chmod(0o755)
    os.link(tree / "script", tree / "hard")
    with open(tree / "sparse", "wb") as file:
        file.truncate(64 << 20)
    spec = host.spec()
    host.push(tree, spec)
    assert listing(mirror(host)) == listing(tree) == listing(workspace(host, spec))
    assert os.access(workspace(host, spec) / "script", os.X_OK)
    # The workspace is a copy: no inode is shared with the mirror.
    one, two = os.stat(workspace(host, spec) / "script"), os.stat(mirror(host) / "script")
    assert one.st_ino != two.st_ino
    assert os.stat(mirror(host) / "sparse").st_blocks * 512 < 1 << 20
    host.call("submit", id=spec["id"])
    assert host.wait(spec["id"])["outcome"] == "trained"
    host.assert_clean(spec["id"])


def test_push_applies_changes_deletions_and_type_changes(host: Machine, tree: Path) -> None:
    (tree / "becomes-folder").write_text("file")
    (tree / "becomes-file").mkdir()
    (tree / "becomes-file" / "inside").write_text("x")
    (tree / "becomes-link").mkdir()
    (tree / "becomes-link" / "inside").write_text("x")
    (tree / "link-becomes-folder").symlink_to("/etc")
    (tree / "goes").write_text("x")
    (tree / "folder-goes" / "deep").mkdir(parents=True)
    (tree / "folder-goes" / "deep" / "file").write_text("x")
    host.push(tree, host.spec())
    for name in ("becomes-file", "becomes-link", "folder-goes"):
        shutil.rmtree(tree / name)
    for name in ("becomes-folder", "link-becomes-folder", "goes"):
        (tree / name).unlink()
    (tree / "becomes-folder" / "sub").mkdir(parents=True)
    (tree / "becomes-folder" / "sub" / "file").write_text("new")
    (tree / "becomes-file").write_text("now a file")
    (tree / "becomes-link").symlink_to("model")
    (tree / "link-becomes-folder").mkdir()
    (tree / "link-becomes-folder" / "passwd").write_text("not that one")
    before = Path("/etc/passwd").read_bytes()
    spec = host.spec()
    host.push(tree, spec)
    assert listing(mirror(host)) == listing(tree) == listing(workspace(host, spec))
    assert not (mirror(host) / "folder-goes").exists()
    assert Path("/etc/passwd").read_bytes() == before


def test_fifos_sockets_and_devices_are_not_pushed(host: Machine, tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    if os.geteuid() == 0:
        os.mknod(tree / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    spec = host.spec()
    host.push(tree, spec)
    assert sorted(listing(workspace(host, spec))) == [b"model/__main__.py"]


def start_rsync(
    host: Machine, tree: Path, spec: dict[str, Any], names: list[bytes], *options: str
) -> "subprocess.Popen[bytes]":
    """Start a push in a session of its own."""
    command = host.rsync_command(tree, spec["id"])
    command[1:1] = options
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdin
    process.stdin.write(b"".join(name + b"\0" for name in names))
    process.stdin.close()
    return process


def start_slow_push(host: Machine, tree: Path, spec: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """Start a push, and return when it is in the middle of the file `large`."""
    (tree / "large").write_bytes(os.urandom(60 << 20))
    names = [b"model/__main__.py", b"large"]
    host.call("prepare", spec=spec, files=packed(names))
    process = start_rsync(host, tree, spec, names, "--bwlimit=4000")
    end = time.monotonic() + 240
    while not any(path.name.startswith(".large.") for path in mirror(host).iterdir()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return process


def test_interrupted_push_leaves_mirror_usable(host: Machine, tree: Path) -> None:
    spec = host.spec()
    process = start_slow_push(host, tree, spec)
    # Kill the sender, and the receiving worker with its rsync.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((host.job_dir(spec["id"]) / "status.json").read_text())["state"] == "prepared"
    again = host.spec()
    host.push(tree, again)
    assert listing(mirror(host)) == listing(tree) == listing(workspace(host, again))
    with pytest.raises(Refused, match="have not arrived"):
        host.call("submit", id=spec["id"])


def test_job_can_be_pushed_again_after_sender_died(host: Machine, tree: Path) -> None:
    spec = host.spec()
    process = start_slow_push(host, tree, spec)
    process.kill()
    process.wait()
    # The same job can be pushed again once its receiver has ended.
    end = time.monotonic() + 240
    while time.monotonic() < end:
        done = host.rsync(tree, spec["id"], [b"model/__main__.py", b"large"])
        if done.returncode == 0:
            break
        assert b"by another process" in done.stderr, done.stderr
        time.sleep(0.2)
    assert listing(mirror(host)) == listing(tree) == listing(workspace(host, spec))


def test_simultaneous_pushes_of_one_repository_succeed(host: Machine, tree: Path) -> None:
    (tree / "large").write_bytes(os.urandom(20 << 20))
    names = [b"model/__main__.py", b"large"]
    specs = [host.spec() for _ in range(3)]
    for spec in specs:
        host.call("prepare", spec=spec, files=packed(names))
    processes = [start_rsync(host, tree, spec, names) for spec in specs]
    assert [process.wait(240) for process in processes] == [0, 0, 0]
    for spec in specs:
        assert listing(workspace(host, spec)) == listing(tree)


@pytest.mark.parametrize("names", [[b"/etc/passwd"], [b"../x"], [b"a/../../b"], [b"a//b"], [b"./a"]])
def test_file_lists_with_paths_outside_are_refused(host: Machine, names: list[bytes]) -> None:
    with pytest.raises(Refused) as refused:
        host.call("prepare", spec=host.spec(), files=packed(names))
    assert refused.value.code == 2


@pytest.mark.parametrize("files", ["", "no base64!", "AAAA", None, 5])
def test_invalid_file_lists_are_refused(host: Machine, files: object) -> None:
    with pytest.raises(Refused) as refused:
        host.call("prepare", spec=host.spec(), files=files)
    assert refused.value.code == 2


def test_send_serves_only_the_archive(host: Machine, tree: Path, tmp_path: Path) -> None:
    job = host.start_tree(tree)
    host.wait(job)
    command = host.rsync_command(tree, job)
    shell = command[command.index("-e") : command.index("--rsync-path")]
    rsync_path = command[command.index("--rsync-path") + 1].replace(" receive ", " send ")
    target = tmp_path / "got"
    get = ["rsync", *shell, "--rsync-path", rsync_path]
    subprocess.run([*get, "host:artefacts.tar.gz", str(target)], check=True, capture_output=True)
    assert target.read_bytes() == (host.job_dir(job) / "artefacts.tar.gz").read_bytes()
    target.unlink()
    for name in ("spec.json", "/etc/passwd", "."):
        done = subprocess.run([*get, f"host:{name}", str(target)], check=False, capture_output=True)
        # The worker sends the archive whatever is asked for; rsync refuses other names.
        content = target.read_bytes() if target.exists() else b""
        assert b"root:" not in content and b"schema" not in content
        assert done.returncode != 0 or content.startswith(b"\x1f\x8b")
        target.unlink(missing_ok=True)
    entry = [*host.prefix(), "/usr/bin/python3", "-I", str(host.program)]
    for arguments in (
        ["send", job, "--", "cat", "/etc/passwd"],
        ["receive", job, "--", "sh", "-c", "id"],
        ["dance"],
    ):
        done = subprocess.run([*entry, *arguments], env=host.environment(), capture_output=True, check=False)
        assert done.returncode == 2 and b"Traceback" not in done.stderr and done.stdout == b""


@pytest.mark.full
def test_push_of_a_hundred_thousand_files(host: Machine, tree: Path) -> None:
    for number in range(100_000):
        if number % 1000 == 0:
            (tree / f"d{number // 1000}").mkdir()
        (tree / f"d{number // 1000}" / f"{number}").write_bytes(b"%d" % number)
    spec = host.spec()
    host.push(tree, spec)
    assert listing(workspace(host, spec)) == listing(tree)


def test_state_on_an_overlay_is_refused(host: Machine, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting wants root")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = ",".join(f"{kind}dir={tmp_path / kind}" for kind in ("lower", "upper", "work"))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(tmp_path / "merged")], check=True)
    try:
        with pytest.raises(Refused, match="overlay file system") as refused:
            host.call("list", state_dir=str(tmp_path / "merged" / "state"))
        assert refused.value.code == 3
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "merged")], check=True)


def test_full_disk_during_push_is_reported(host: Machine, tree: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting wants root")
    state = host.root / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0755", "tmpfs", str(state)], check=True)
    try:
        shutil.copytree(host.program, state / "state" / "workers" / host.program.name)
        subprocess.run(["chown", "-R", "--reference", str(host.state), str(state)], check=True)
        small = Machine(state, host.user, host.settings)
        small.write_settings(disk_floor_bytes=0)
        (tree / "large").write_bytes(os.urandom(15 << 20))
        # The copy runs beside the push: either may find the disk full.
        try:
            result = small.wait(small.start_tree(tree))
            assert (result["outcome"], result["exit_code"]) == ("not-ready", 3), result
            assert "cannot be copied" in result["reason"] and "No space left" in result["detail"]
        except Refused as refused:
            assert "No space left" in str(refused)
        (tree / "large").unlink()
        again = small.spec()
        small.push(tree, again)
        assert listing(workspace(small, again)) == listing(tree)
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


def test_send_ignores_names_of_old_clients_and_serves_the_archive(host: Machine, tmp_path: Path) -> None:
    job, _ = host.train("open('artefacts/x','w')")
    other = host.root / "other-file"
    other.write_text("foreign")
    target = tmp_path / "got"
    target.mkdir()
    command = host.rsync_command(tmp_path, job)
    rsync_path = command[command.index("--rsync-path") + 1].replace(" receive ", " send ")
    shell = command[command.index("-e") + 1]
    # Names of the caller's choice, as an old client sends them.
    done = subprocess.run(
        ["rsync", "--old-args", "-e", shell, "--rsync-path", rsync_path, f"host:{other}", "host:x", f"{target}/"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert [path.name for path in target.iterdir()] in (["artefacts.tar.gz"], []), done.stderr
    single = tmp_path / "single"
    subprocess.run(
        ["rsync", "--partial", "--inplace", "--append", "-e", shell, "--rsync-path", rsync_path, "host:artefacts.tar.gz",
         str(single)], check=True, timeout=60,
    )  # fmt: skip
    assert single.read_bytes() == (host.job_dir(job) / "artefacts.tar.gz").read_bytes()
