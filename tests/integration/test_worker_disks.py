"""State folders on disks that end: out of inodes, read-only, and two gigabytes of log. Small file systems of our own."""

import contextlib
import os
import pwd
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_support import Machine, Refused, accounts, docker, machine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system"),
]
WRITES = "open('artefacts/partial','w').write('x')\n"
#: Continues when the test makes /cache/go.
WAITS = (
    WRITES + "import os, time\nprint('up', flush=True)\n"
    "while not os.path.exists('/cache/go'):\n    time.sleep(0.1)\nprint('gone on', flush=True)\n"
)


@contextlib.contextmanager
def small(user: str, options: str) -> Iterator[Machine]:
    """A host whose state folder is a file system of its own."""
    with machine(user) as host:
        content = {path: path.read_bytes() for path in host.state.rglob("*") if path.is_file()}
        owner = pwd.getpwnam(user)
        mode = oct(host.state.stat().st_mode & 0o777)[2:]
        options = f"{options},mode={mode},uid={owner.pw_uid},gid={owner.pw_gid}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(host.state)], check=True)
        try:
            for path, data in content.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            subprocess.run(["chown", "-R", user, str(host.state)], check=True)
            yield host
            assert docker("ps", "-aq", "--filter", f"label=train-classifier.uid={owner.pw_uid}",
                          "--filter", "label=train-classifier.kind=job",
                          "--filter", f"label=train-classifier.dir={host.state}") == ""  # fmt: skip
        finally:
            while os.path.ismount(host.state):
                # Lazily: a process that is about to end may still be in there.
                subprocess.run(["umount", "-l", str(host.state)], check=True)


@pytest.fixture(params=accounts())
def host(request: pytest.FixtureRequest) -> Iterator[Machine]:
    # The worker alone has two hundred files and folders.
    with small(request.param, "size=64m,nr_inodes=800") as new_host:
        yield new_host


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for every file that is opened from now on."""
    deadline = time.monotonic() + 240
    while True:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        if not subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=False).returncode:
            break
        # Refused while a file that was opened through this mount is written, maybe until the job ends: mount anew.
        subprocess.run(["umount", "-l", folder], check=True)
        assert time.monotonic() < deadline
    try:
        yield
    finally:
        # Lazily: a process may still look at it; what is opened from here on is writable again.
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> list[Path]:
    """Use up the inodes of a file system, once no process will free one; returns the files."""
    deadline = time.monotonic() + 240
    while subprocess.run(["pgrep", "-f", str(folder.parent)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    folder.mkdir()
    files = []
    with contextlib.suppress(OSError):
        for number in range(10_000):
            path = folder / str(number)
            path.touch()
            files.append(path)
    assert os.statvfs(folder).f_favail == 0
    return files


def test_missing_inodes_refuse_a_job(host: Machine) -> None:
    trained, _ = host.train(WRITES)
    files = fill(host.state / "full")
    with pytest.raises(Refused, match="inodes") as refused:
        host.start(WRITES)
    assert refused.value.code == 3
    assert [path.name for path in (host.state / "jobs").iterdir()] == [trained]
    # One free inode passes the check and is too few for a push.
    files.pop().unlink()
    with pytest.raises(Refused, match="No space left") as refused:
        host.start(WRITES)
    assert refused.value.code == 3
    assert [path.name for path in (host.state / "jobs").iterdir()] == [trained]
    # Jobs can be listed and cleaned.
    assert host.call("list", all=True)["jobs"][0]["id"] == trained
    assert host.call("clean", older_s=0)["removed"]["jobs"] == 1
    for path in files:
        path.unlink()
    assert host.train(WRITES)[1]["outcome"] == "trained"


def test_model_that_uses_all_inodes_fails_normally(host: Machine) -> None:
    """The model gets the system's error; the job can be followed, and ends like any failed job."""
    program = WRITES + (
        "import os, sys, time\nos.mkdir('artefacts/many')\nat = 0\ntry:\n    while True:\n"
        "        open(f'artefacts/many/{at}', 'w').close()\n        at += 1\nexcept OSError as error:\n"
        "    print('full', error.errno, flush=True)\n"
        "while os.path.exists('/cache/stay'):\n    time.sleep(0.1)\n"
        "for n in range(0, at, 2):\n    os.remove(f'artefacts/many/{n}')\nsys.exit(5)\n"
    )
    stay = host.state / "cache" / "0123456789abcdef" / "stay"
    assert host.train(WRITES)[1]["outcome"] == "trained"
    stay.touch()
    job = host.start(program, lease_s=600.0)
    host.until(job, "training", text=b"full 28\n")
    # Reading and renewing the lease need no inode.
    answer = host.call("read", id=job, offset=0, wait=0, renew=True)
    assert answer["status"]["state"] == "running"
    time.sleep(1)
    assert host.status(job)["state"] == "running"
    stay.unlink()
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"], result["training_exit_status"]) == ("failed", 4, 5), (
        result
    )
    assert host.log(job) == b"full 28\n" and "artefacts/partial" in host.names(job)
    host.assert_clean(job)


def test_read_only_before_job_refuses_it(host: Machine) -> None:
    trained, _ = host.train(WRITES)
    with read_only(host.state):
        with pytest.raises(Refused, match="Read-only") as refused:
            host.start(WRITES)
        assert refused.value.code == 3
        assert host.call("status", id=trained)["result"]["outcome"] == "trained"
        assert host.call("read", id=trained, offset=0)["result"]["outcome"] == "trained"
        assert [path.name for path in (host.state / "jobs").iterdir()] == [trained]
    assert host.train(WRITES)[1]["outcome"] == "trained"


def test_read_only_during_training_is_survived(host: Machine) -> None:
    job = host.start(WAITS, lease_s=600.0)
    host.until(job, "training", text=b"up\n")
    with read_only(host.state):
        time.sleep(1)
        answer = host.call("read", id=job, offset=0, wait=0, renew=True)
        assert answer["status"]["state"] == "running"
    (host.state / "cache" / "0123456789abcdef" / "go").touch()
    result = host.wait(job)
    assert result["outcome"] == "trained", result
    assert host.log(job) == b"up\ngone on\n"
    host.assert_clean(job)


def test_read_only_at_job_end_is_recovered(host: Machine) -> None:
    """Once files can be written again, the next read ends the job and delivers its artefacts."""
    job = host.start(WAITS)
    host.until(job, "training", text=b"up\n")
    (host.state / "cache" / "0123456789abcdef" / "go").touch()
    with read_only(host.state):
        end = time.monotonic() + 240
        while docker("ps", "-q", "--filter", f"label=train-classifier.job={job}"):
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(2)
        # Until then the worker answers, and reports no end that is not stored.
        with contextlib.suppress(Refused):
            assert host.call("read", id=job, offset=0, wait=0)["result"] is None
    result = host.wait(job)
    assert result["exit_code"] in (0, 3, 7, 10), result
    if "unpacked" in result:
        host.pack(job)
    assert host.log(job).startswith(b"up\n") and "artefacts/partial" in host.names(job)
    # The worker may have written its error there.
    (host.job_dir(job) / "crash.txt").unlink(missing_ok=True)
    host.assert_clean(job)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_two_gigabytes_of_log_use_flat_memory() -> None:
    """As fast as the model can, past the limit of 2 GiB: head and tail stay, nothing grows, nothing waits for ever."""
    count, block = 2300, (1 << 20) + 7
    program = WRITES + (
        "import os\nblock = b'0123456789abcdef' * 65536\n"
        f"for n in range({count}):\n    data = b'<%05d>' % n + block\n"
        "    while data:\n        data = data[os.write(1, data):]\nprint('the end', flush=True)\n"
    )
    with machine(accounts()[-1]) as host:
        job = host.start(program)
        pid = host.until(job, "training", text=b"")["pid"]
        peak, size = 0, 0
        while host.status(job)["state"] == "running":
            with contextlib.suppress(OSError):
                match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                peak = max(peak, int(match[1]) if match else 0)
            log_size = host.call("read", id=job, offset=max(size - 100, 0), wait=1)["log_size"]
            assert log_size >= size
            size = log_size
        result = host.wait(job)
        assert result["outcome"] == "trained", result
        assert 0 < peak < 100 << 10
        path = host.job_dir(job) / "log.txt"
        with open(path, "rb") as file:
            assert file.read(23) == b"<00000>0123456789abcdef"
            file.seek(-8, os.SEEK_END)
            assert file.read() == b"the end\n"
        missing = subprocess.run(
            ["grep", "-a", "-o", r"\[train-classifier: [0-9]* bytes of the log are missing here\]", path],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        note = len(missing) + 1
        assert path.stat().st_size - note + int(missing.split()[1]) == count * block + 8
        with host.archive(job) as archive:
            assert archive.getmember("job/log.txt").size == path.stat().st_size
        host.assert_clean(job)
