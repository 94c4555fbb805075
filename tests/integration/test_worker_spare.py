"""The spare workspace: what one job leaves, the next one gets as the repository says, whatever the model did."""

import base64
import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_support import Machine, accounts, machine

pytestmark = pytest.mark.engine
ODD = b"od\xffd\nname"
READS = "import os\nopen('artefacts/done', 'w').write('x')\n"


@pytest.fixture(scope="module", params=accounts())
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with machine(request.param) as made:
        yield made


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A repository of its own for each test."""
    return f"{abs(hash(request.node.name)):016x}"[:16]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    for folder in ("model", "data/deep", "tools"):
        (root / folder).mkdir(parents=True)
    (root / "model/__init__.py").touch()
    (root / "model/__main__.py").write_text(READS)
    for number in range(50):
        (root / f"data/{number}").write_text(f"line {number}\n")
    (root / "data/deep/file").write_text("deep\n")
    (root / "tools/run").write_text("#!/bin/sh\n")
    (root / "tools/run").chmod(0o755)
    (root / "link").symlink_to("data/1")
    (root / "to-folder").symlink_to("data")
    Path(os.fsdecode(os.path.join(os.fsencode(root), ODD))).write_bytes(ODD)
    return root


def spec_of(host: Machine, key: str) -> dict[str, object]:
    return host.spec(repository={"name": "repo", "key": key, "commit": None, "dirty": None})


def push(host: Machine, tree: Path, key: str) -> str:
    spec = spec_of(host, key)
    host.push(tree, spec)
    return str(spec["id"])


def run(host: Machine, tree: Path, key: str, program: str = "") -> tuple[str, dict[str, tuple[int, int]]]:
    """Train with a model that also does `program`, and wait until the job's worker has tidied up after it.

    Returns the job's id and (inode, ctime) of each file that it was given.
    """
    if program:
        (tree / "model/__main__.py").write_text(READS + program)
    job = push(host, tree, key)
    given = inodes(host, job)
    host.call("submit", id=job, secrets={})
    result = host.wait(job, 300)
    assert result["outcome"] == "trained" and "artefacts/done" in host.names(job), (result, host.log(job))
    settled(host, key)
    host.assert_clean(job)
    return job, given


def settled(host: Machine, key: str) -> None:
    """Wait until nothing but the mirror and its spare is left."""
    mirror = host.state / "mirrors" / key
    end = time.monotonic() + 60
    while time.monotonic() < end:
        left = sorted(path.name for path in mirror.iterdir())
        if set(left) <= {"fingerprint", "lock", "spare", "spare.stamp", "tree"}:
            return
        time.sleep(0.05)
    raise AssertionError(left)


def workspace(host: Machine, job: str) -> Path:
    return host.job_dir(job) / "workspace"


def inodes(host: Machine, job: str) -> dict[str, tuple[int, int]]:
    found = {}
    root = workspace(host, job)
    for folder, _, names in os.walk(root):
        for name in names:
            seen = os.lstat(os.path.join(folder, name))
            found[os.path.relpath(os.path.join(folder, name), root)] = (seen.st_ino, seen.st_ctime_ns)
    return found


def whole(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return everything there is to a tree: kinds, modes, owners, times, contents, attributes."""
    found: dict[str, tuple[object, ...]] = {}
    root = os.fsencode(folder)
    for base, folders, names in os.walk(root):
        for path in [base, *(os.path.join(base, name) for name in [*folders, *names])]:
            seen = os.lstat(path)
            kind = stat.S_IFMT(seen.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                content = Path(os.fsdecode(path)).read_bytes()
                assert seen.st_nlink == 1, path
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            attributes = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            found[os.fsdecode(os.path.relpath(path, root))] = (
                seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, content, attributes,
            )  # fmt: skip
    return found


def contents(found: dict[str, tuple[object, ...]]) -> dict[str, object]:
    """Return what the files and links of `whole` hold."""
    return {name: seen[4] for name, seen in found.items() if seen[4] is not None}


def assert_equal(host: Machine, job: str, key: str, tree: Path) -> None:
    mirror = host.state / "mirrors" / key / "tree"
    theirs_whole = whole(mirror)
    assert whole(workspace(host, job)) == theirs_whole
    assert contents(theirs_whole) == contents(whole(tree))
    ours = {seen[0] for seen in inodes(host, job).values()}
    theirs = {
        os.lstat(os.path.join(base, name)).st_ino for base, _, found in os.walk(mirror) for name in found
    }
    assert not ours & theirs


def test_an_unchanged_tree_is_used_again(host: Machine, tree: Path, key: str) -> None:
    _, first = run(host, tree, key)
    job = push(host, tree, key)
    assert inodes(host, job) == first
    assert_equal(host, job, key, tree)
    assert not (host.job_dir(job) / "weeds").exists()
    host.call("submit", id=job, secrets={})
    result = host.wait(job, 300)
    assert result["outcome"] == "trained" and "artefacts/done" in host.names(job)
    settled(host, key)
    # What the model made went before the next job asked for it.
    assert not (host.state / "mirrors" / key / "spare" / "artefacts").exists()
    again = push(host, tree, key)
    assert inodes(host, again) == first


TAMPERING = {
    "content and time restored": "s = os.stat('data/1')\nopen('data/1', 'r+').write('EVIL')\n"
    "os.utime('data/1', ns=(s.st_atime_ns, s.st_mtime_ns))",
    "written through a map": "import mmap\nf = open('data/2', 'r+b')\ns = os.stat('data/2')\n"
    "m = mmap.mmap(f.fileno(), 0)\nm[:4] = b'EVIL'\nm.flush()\nm.close()\nos.utime('data/2', ns=(s.st_atime_ns, s.st_mtime_ns))",
    "a time alone": "os.utime('data/1', ns=(1, 1))",
    "a mode": "os.chmod('data/1', 0)\nos.chmod('tools/run', 0o4777)",
    "modes of folders": "os.chmod('data/deep', 0)\nos.chmod('tools', 0o777)\nos.chmod('model', 0o500)\nos.chmod('.', 0o1777)",
    "the workspace shut": "os.chmod('.', 0)",
    "a link for a file": "os.unlink('data/1')\nos.symlink('/etc/passwd', 'data/1')",
    "a file for a link": "os.unlink('link')\nopen('link', 'w').write('x')",
    "another link": "os.unlink('link')\nos.symlink('data/2', 'link')",
    "hard links": "os.unlink('data/1')\nos.link('data/2', 'data/1')\nos.link('data/3', 'extra')",
    "a hard link made and removed": "os.link('data/3', 'extra')\nos.unlink('extra')",
    "removed": "os.unlink('data/1')\nos.unlink('link')\nimport shutil\nshutil.rmtree('tools')",
    "extra": "open('data/extra', 'w').write('x')\nos.makedirs('more/and/more')\nopen('more/and/more/x', 'w')\n"
    "os.mkfifo('fifo')\nopen(b'od\\xfe\\n', 'w').write('x')\nos.makedirs('shut/in')\nos.chmod('shut', 0)\n"
    "os.makedirs('deep/' + '/'.join(['d' * 50] * 60))\nopen('data/empty-now', 'w')",
    "a folder for a file": "os.unlink('data/1')\nos.mkdir('data/1')\nopen('data/1/x', 'w').write('x')",
    "a file for a folder": "import shutil\nshutil.rmtree('data')\nopen('data', 'w').write('x')",
    "a link for a folder": "os.rename('data', 'moved')\nos.symlink('moved', 'data')",
    "a link out for a folder": "import shutil\nshutil.rmtree('data')\nos.symlink('/cache', 'data')",
    "folders exchanged": "os.rename('data', 'x')\nos.rename('tools', 'data')\nos.rename('x', 'tools')",
    "files exchanged": "os.rename('data/1', 'x')\nos.rename('data/2', 'data/1')\nos.rename('x', 'data/2')",
    "an odd name": "open(b'od\\xffd\\nname', 'w').write('evil')",
    "attributes": "os.setxattr('data/1', 'user.x', b'y')\nos.setxattr('data', 'user.x', b'y')",
    "attributes of the workspace": "os.setxattr('.', 'user.x', b'y')",
    "everything": "import shutil\n[shutil.rmtree(n) if os.path.isdir(n) and not os.path.islink(n) else os.unlink(n) "
    "for n in os.listdir('.') if n != 'artefacts']",
}  # fmt: skip


CASES = [(accounts()[-1], name) for name in TAMPERING] + [
    (user, name)
    for user in accounts()[:-1]
    for name in ("content and time restored", "modes of folders", "the workspace shut", "extra", "everything")
]


@pytest.mark.parametrize(("host", "name"), CASES, indirect=["host"], ids=[" ".join(case) for case in CASES])
def test_whatever_the_model_did_the_next_job_gets_the_repository(
    host: Machine, tree: Path, key: str, name: str
) -> None:
    run(host, tree, key, TAMPERING[name])
    job = push(host, tree, key)
    assert_equal(host, job, key, tree)


def test_a_file_that_was_left_alone_stays_and_a_changed_one_is_new(
    host: Machine, tree: Path, key: str
) -> None:
    _, first = run(host, tree, key, TAMPERING["content and time restored"])
    job = push(host, tree, key)
    second = inodes(host, job)
    assert {name for name in first if first[name] != second[name]} == {"data/1"}


def test_the_checkout_changes_between(host: Machine, tree: Path, key: str) -> None:
    _, first = run(host, tree, key)
    (tree / "data/1").write_text("LINE 1\n")
    seen = (tree / "data/2").stat()
    (tree / "data/2").write_text("LINE 2\n")
    os.utime(tree / "data/2", ns=(seen.st_atime_ns, seen.st_mtime_ns + 10**9))
    (tree / "data/3").unlink()
    (tree / "data/4").rename(tree / "data/renamed")
    (tree / "data/5").chmod(0o755)
    (tree / "data/6").unlink()
    (tree / "data/6").symlink_to("7")
    (tree / "data/8").unlink()
    (tree / "data/8").mkdir()
    (tree / "data/8/inside").write_text("x")
    (tree / "data/deep/file").unlink()
    (tree / "data/deep").rmdir()
    (tree / "data/deep").write_text("a file now")
    (tree / "tools").rename(tree / "utilities")
    (tree / "new/folder").mkdir(parents=True)
    (tree / "new/folder/-rf").write_text("x")
    (tree / "new/# odd").write_bytes(b"\0")
    (tree / "link").unlink()
    job = push(host, tree, key)
    assert_equal(host, job, key, tree)
    second = inodes(host, job)
    assert second["data/9"] == first["data/9"] and second["data/1"] != first["data/1"]
    host.call("submit", id=job, secrets={})
    assert host.wait(job, 300)["outcome"] == "trained"
    settled(host, key)
    again = push(host, tree, key)
    assert inodes(host, again) == second
    assert_equal(host, again, key, tree)


@pytest.mark.parametrize("ruin", ["missing", "torn", "of another boot", "of another workspace", "no object"])
def test_a_stamp_that_does_not_belong(host: Machine, tree: Path, key: str, ruin: str) -> None:
    program = "open('data/1', 'w').write('evil')\nimport shutil\nshutil.rmtree('tools')"
    _, first = run(host, tree, key, program)
    stamp = host.state / "mirrors" / key / "spare.stamp"
    data = json.loads(stamp.read_text())
    if ruin == "missing":
        stamp.unlink()
    elif ruin == "torn":
        stamp.write_bytes(stamp.read_bytes()[:-100])
    elif ruin == "of another boot":
        stamp.write_text(json.dumps({**data, "boot": "x"}))
    elif ruin == "no object":
        stamp.write_text("[]")
    else:
        moved = {name: entry and [entry[0] + 1, *entry[1:]] for name, entry in data["entries"].items()}
        stamp.write_text(json.dumps({**data, "entries": moved}))
    job = push(host, tree, key)
    assert_equal(host, job, key, tree)
    second = inodes(host, job)
    assert not [name for name in first if first[name] == second[name]]


def test_killed_in_the_middle_of_putting_right(host: Machine, tree: Path, key: str) -> None:
    for number in range(800):
        (tree / f"data/deep/{number}").write_text(f"{number}\n")
    program = "for n in os.listdir('data/deep'):\n    open('data/deep/' + n, 'w').write('evil')\n"
    killed = 0
    for delay in (0.0, 0.03, 0.1):
        run(host, tree, key, program)
        spec = spec_of(host, key)
        names = sorted(whole(tree))
        files = [os.fsencode(name) for name in names if not stat.S_ISDIR(os.lstat(tree / name).st_mode)]
        packed = base64.b64encode(zlib.compress(b"".join(name + b"\0" for name in files))).decode()
        host.call("prepare", spec=spec, files=packed)
        process = subprocess.Popen(
            host.rsync_command(tree, str(spec["id"])), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(b"".join(name + b"\0" for name in files))
        process.stdin.close()
        spare = host.state / "mirrors" / key / "spare"
        end = time.monotonic() + 30
        while spare.exists() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        state = json.loads((host.job_dir(str(spec["id"])) / "status.json").read_text())["state"]
        killed += state == "prepared"
        # The same job again, and another one.
        if state == "prepared":
            assert host.rsync(tree, str(spec["id"]), files).returncode == 0
            assert_equal(host, str(spec["id"]), key, tree)
        assert_equal(host, push(host, tree, key), key, tree)
        host.call("cancel", id=spec["id"])
    assert killed


def test_the_receiver_alone_is_killed(host: Machine, tree: Path, key: str) -> None:
    """What copies for it may live on: the next push waits for it."""
    for number in range(800):
        (tree / f"data/deep/{number}").write_text(f"{number}\n")
    run(host, tree, key, "for n in os.listdir('data/deep'):\n    open('data/deep/' + n, 'w').write('evil')\n")
    spec = spec_of(host, key)
    files = [os.fsencode(name) for name in whole(tree) if not stat.S_ISDIR(os.lstat(tree / name).st_mode)]
    packed = base64.b64encode(zlib.compress(b"".join(name + b"\0" for name in files))).decode()
    host.call("prepare", spec=spec, files=packed)
    process = subprocess.Popen(
        host.rsync_command(tree, str(spec["id"])), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(b"".join(name + b"\0" for name in files))
    process.stdin.close()
    end = time.monotonic() + 30
    while (host.state / "mirrors" / key / "spare").exists() and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.1)
    found = subprocess.run(
        ["pgrep", "-f", f"^/usr/bin/python3 -I .* receive {spec['id']}"], capture_output=True, text=True
    )
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    process.wait()
    assert host.rsync(tree, str(spec["id"]), files).returncode == 0
    assert_equal(host, str(spec["id"]), key, tree)
    assert_equal(host, push(host, tree, key), key, tree)


def test_pushes_of_one_repository_at_once(host: Machine, tree: Path, key: str) -> None:
    run(host, tree, key, TAMPERING["content and time restored"])
    specs = [spec_of(host, key) for _ in range(3)]
    files = [os.fsencode(name) for name in whole(tree) if not stat.S_ISDIR(os.lstat(tree / name).st_mode)]
    packed = base64.b64encode(zlib.compress(b"".join(name + b"\0" for name in files))).decode()
    for spec in specs:
        host.call("prepare", spec=spec, files=packed)
    processes = []
    for spec in specs:
        process = subprocess.Popen(
            host.rsync_command(tree, str(spec["id"])), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert process.stdin
        process.stdin.write(b"".join(name + b"\0" for name in files))
        process.stdin.close()
        processes.append(process)
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    seen: set[int] = set()
    for spec in specs:
        assert_equal(host, str(spec["id"]), key, tree)
        mine = {inode for inode, _ in inodes(host, str(spec["id"])).values()}
        assert not seen & mine
        seen |= mine
    for spec in specs:
        host.call("submit", id=spec["id"], secrets={})
    for spec in specs:
        assert host.wait(str(spec["id"]), 300)["outcome"] == "trained"
    settled(host, key)
    assert_equal(host, push(host, tree, key), key, tree)


def test_a_killed_worker_leaves_its_workspace_too(host: Machine, tree: Path, key: str) -> None:
    (tree / "model/__main__.py").write_text(
        "import time\nopen('data/1', 'w')\nopen('artefacts/partial', 'w')\nprint('on', flush=True)\ntime.sleep(600)"
    )
    job = push(host, tree, key)
    first = inodes(host, job)
    host.call("submit", id=job, secrets={})
    host.until(job, text=b"on\n")
    host.kill_worker(job)
    end = time.monotonic() + 30
    while host.status(job)["state"] != "finished" and time.monotonic() < end:
        time.sleep(0.2)
    host.assert_clean(job)
    assert "artefacts/partial" in host.names(job)
    settled(host, key)
    again = push(host, tree, key)
    assert_equal(host, again, key, tree)
    second = inodes(host, again)
    assert {name for name in first if first[name] != second[name]} == {"data/1"}


def test_clean_removes_spares_and_what_the_killed_left(host: Machine, tree: Path, key: str) -> None:
    job, _ = run(host, tree, key)
    mirror = host.state / "mirrors" / key
    (mirror / f"{job}.older" / "x").mkdir(parents=True)
    subprocess.run(["chown", "-R", "--reference", str(mirror), str(mirror / f"{job}.older")], check=True)
    dry = host.call("clean", older_s=0, dry_run=True)["removed"]
    assert dry["caches"] >= 1 and (mirror / "spare").exists()
    assert host.call("clean", older_s=3600)["removed"]["caches"] == 0 and (mirror / "spare").exists()
    assert not (mirror / f"{job}.older").exists()
    removed = host.call("clean", older_s=0)["removed"]
    assert removed["caches"] >= 1 and removed["bytes"] >= 4096
    assert sorted(os.listdir(mirror)) == ["lock", "tree"]
    assert_equal(host, push(host, tree, key), key, tree)


def test_a_mirror_that_is_gone_at_the_end_of_the_job(host: Machine, tree: Path, key: str) -> None:
    (tree / "model/__main__.py").write_text(READS + "import time\nprint('on', flush=True)\ntime.sleep(2)\n")
    job = push(host, tree, key)
    host.call("submit", id=job, secrets={})
    host.until(job, text=b"on\n")
    subprocess.run(["rm", "-rf", str(host.state / "mirrors" / key)], check=True)
    assert host.wait(job, 300)["outcome"] == "trained"
    host.assert_clean(job)
    assert_equal(host, push(host, tree, key), key, tree)


MANY = "os.mkdir('many')\nfor n in range(5000):\n    open(f'many/{n}', 'w').write('x')\n"


def test_the_result_waits_for_no_removal(host: Machine, tree: Path, key: str) -> None:
    """A job that is over is told so before thousands of files are deleted."""
    (tree / "model/__main__.py").write_text(READS + MANY)
    job = push(host, tree, key)
    mirror = host.state / "mirrors" / key
    with (mirror / "lock").open("rb") as lock:
        # As a push does: nothing is removed before it lets go.
        fcntl.flock(lock, fcntl.LOCK_EX)
        host.call("submit", id=job, secrets={})
        kept = finished(host, job)
        assert any(
            (folder / "many").exists() for folder in (workspace(host, job), mirror / f"{job}.workspace")
        )
    settled(host, key)
    host.assert_clean(job)
    assert json.loads((host.job_dir(job) / "status.json").read_text()) == kept


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.1])
def test_killed_while_it_clears_up(host: Machine, tree: Path, key: str, delay: float) -> None:
    """The job has ended; what lies about goes with the next look, and the next push is whole."""
    (tree / "model/__main__.py").write_text(READS + MANY + "open('data/1', 'w').write('evil')\n")
    job = push(host, tree, key)
    host.call("submit", id=job, secrets={})
    finished(host, job)
    time.sleep(delay)
    # It may have got to its end meanwhile.
    with contextlib.suppress(ProcessLookupError):
        host.kill_worker(job)
    assert host.wait(job)["outcome"] == "trained" and "artefacts/done" in host.names(job)
    end = time.monotonic() + 30
    while (host.job_dir(job) / "run").exists() and time.monotonic() < end:
        host.status(job)
    host.assert_clean(job)
    host.call("clean", older_s=10**9)
    settled(host, key)
    assert_equal(host, push(host, tree, key), key, tree)


def finished(host: Machine, job: str) -> dict[str, object]:
    """Wait for the moment at which a job is said to have ended; return its status."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        status: dict[str, object] = json.loads((host.job_dir(job) / "status.json").read_text())
        if status["state"] == "finished":
            return status
        time.sleep(0.002)
    raise AssertionError(status)
