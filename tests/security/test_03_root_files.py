"""Row 3: what the job's account can write is no path of root's, in jobs of this release and of the last one."""

import contextlib
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_support import PERSON, SERVICE_USER, Machine, Refused, machine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="root submits for another account here"),
]
#: Written by 31f221e as root for `nobody`: a finished job with a checkpoint and an archive, and one whose worker
#: and container were killed while it trained.
LAST_RELEASE = Path(__file__).parent / "data" / "state-of-last-release.tar.gz"
SECRET = b"only root reads this\n"
PRINTS = (
    "import os, time\nopen('artefacts/x', 'w').write('x')\nprint('up', flush=True)\n"
    "while not os.path.exists('/cache/go'):\n    time.sleep(0.05)\nprint('z' * 20000, flush=True)\n"
)
#: Run as the account: renames, removes, links and writes every file of a job's folder.
ATTACK = """
import os, sys
folder, secret = sys.argv[1:]
names = {"log.txt", "log.tail.0", "log.tail.1", "log.dropped", "status.json", "result.json", "manifest.json",
         "artefacts.tar.gz", "usage.csv", "lock", "cancel", "lease", "facts.json", "stock.json", "packed.json",
         "crash.txt", "reserve", "resumed", "secrets-at", "run/passwd", "run/group", "run/ca.crt", "run/out", "workspace",
         "checkpoints", "home", "run"}
done = []
for name in sorted(names | set(os.listdir("/proc/self/fd")) - set("0123456789")):
    path = os.path.join(folder, name)
    for what, act in (
        ("rename", lambda: os.rename(path, path + ".gone")),
        ("unlink", lambda: os.unlink(path)),
        ("link", lambda: os.symlink(secret, path)),
        ("make", lambda: os.symlink(secret, os.path.join(folder, "new-" + name.replace("/", "-")))),
    ):
        try:
            act()
        except OSError:
            continue
        done.append(f"{what} {name}")
    try:
        if os.path.isfile(path):
            open(path, "ab").close()
            done.append(f"write {name}")
    except OSError:
        pass
print(*done, sep="\\n")
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Machine]:
    with machine("root") as new_host:
        yield new_host


@pytest.fixture
def secret(host: Machine) -> Iterator[Path]:
    path = host.root / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    yield path
    information = path.stat()
    assert path.read_bytes() == SECRET and (information.st_uid, information.st_mode & 0o777) == (0, 0o600)


def as_account(*command: str, user: str = SERVICE_USER) -> str:
    """Run a command as the account of root's jobs, or as another; returns its output."""
    group = "nogroup" if user == SERVICE_USER else user
    done = subprocess.run(
        ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *command],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_03_account_cannot_change_files_of_a_running_job(host: Machine, secret: Path) -> None:
    job = host.start(PRINTS, log_max_bytes=8192)
    host.until(job, "training", text=b"up\n")
    folder = host.job_dir(job)
    changes = as_account("/usr/bin/python3", "-c", ATTACK, str(folder), str(secret))
    for path in (folder / "workspace", host.state / "mirrors" / "0123456789abcdef" / "tree"):
        # Other accounts cannot reach it.
        assert as_account("sh", "-c", 'ls -d "$1" 2>&1 || true', "sh", str(path), user=PERSON).endswith(
            "denied"
        )
    (host.state / "cache" / "0123456789abcdef" / "go").touch()
    result = host.wait(job)
    assert changes == ""
    assert result["outcome"] == "trained", result
    host.assert_clean(job)


def test_03_account_can_write_only_leaf_folders(host: Machine) -> None:
    job, _ = host.train("import os\nopen('artefacts/x', 'w').write('x')\n")
    host.assert_clean(job)
    key = "0123456789abcdef"
    leaves = {host.state / "mirrors" / key / "tree", host.state / "cache" / key}
    leaves |= {folder / "checkpoints" for folder in (host.state / "jobs").iterdir()}
    tops = set()
    for top in ("jobs", "mirrors", "cache"):
        for base, folders, names in os.walk(host.state / top):
            for path in [Path(base, name) for name in [*folders, *names]]:
                information = path.lstat()
                # Its owner can make it writable.
                if information.st_uid != 0 or information.st_mode & 0o022:
                    tops.add(path)
                    folders[:] = [name for name in folders if name != path.name]
    assert tops == leaves


@pytest.fixture
def last_release(host: Machine) -> Iterator[tuple[Machine, str, str]]:
    """A host with the state folder of the last release: the finished job and the dead one."""
    with machine("root") as new_host:
        with tarfile.open(LAST_RELEASE) as archive:
            archive.extractall(new_host.root, filter="fully_trusted")
        trained, dead = sorted(path.name for path in (new_host.state / "jobs").iterdir())
        status = new_host.job_dir(dead) / "status.json"
        information = json.loads(status.read_text())
        worker = next(path for path in (new_host.state / "workers").iterdir() if path != new_host.program)
        assert Path(information["worker"]).name == worker.name
        status.write_text(json.dumps({**information, "worker": str(worker), "pid": None}))
        yield new_host, trained, dead


def test_03_jobs_of_the_last_release_are_listed_read_fetched_resumed_and_cleaned(
    last_release: tuple[Machine, str, str],
) -> None:
    host, trained, _ = last_release
    listed = {line["id"]: line for line in host.call("list", all=True)["jobs"]}
    assert listed[trained]["outcome"] == "trained" and listed[trained]["model"] == "model"
    answer = host.call("read", id=trained, offset=0)
    assert answer["result"]["metrics"] == {"loss": 0.5} and answer["log_size"] == 3
    assert host.call("status", id=trained)["spec"]["model"] == "model"
    archive = fetch_archive(host, trained)
    assert archive.read_bytes() == (host.job_dir(trained) / "artefacts.tar.gz").read_bytes()
    program = "print(open('/checkpoints/epoch').read())\nopen('artefacts/x', 'w')\n"
    job, result = host.train(program, resume=trained)
    assert result["outcome"] == "trained" and host.log(job) == b"7\n"
    assert host.call("clean", older_s=0)["removed"]["jobs"] >= 2
    assert not host.job_dir(trained).exists()


def fetch_archive(host: Machine, job: str) -> Path:
    """Get an archive with rsync, as `fetch` does."""
    send = shlex.join(
        ["env", "-i", *(f"{k}={v}" for k, v in host.environment().items()), host.python, "-I", str(host.program),
         "send", job, "--", "rsync"]
    )  # fmt: skip
    shell = host.root / "rsh"
    shell.write_text('shift\nexec sh -c "$*"\n')
    target = host.root / f"got-{job}"
    target.unlink(missing_ok=True)
    subprocess.run(
        ["rsync", "-L", "-e", f"sh {shell}", "--rsync-path", send, "host:artefacts.tar.gz", str(target)],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    return target


def test_03_dead_job_of_the_last_release_is_finished_by_its_own_worker(
    last_release: tuple[Machine, str, str],
) -> None:
    host, _, dead = last_release
    result = host.wait(dead)
    assert (result["outcome"], result["exit_code"]) == ("lost", 10)
    assert "artefacts/metrics.json" in host.names(dead) and host.log(dead) == b"up\n"


@pytest.mark.parametrize(
    "name", ["log.txt", "artefacts.tar.gz", "lease", "cancel", "lock", "result.json", "spec.json"]
)
def test_03_link_planted_in_job_of_the_last_release_is_not_followed(
    last_release: tuple[Machine, str, str], secret: Path, name: str
) -> None:
    host, trained, dead = last_release
    for job in (trained, dead):
        path = host.job_dir(job) / name
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
        os.lchown(path, 65534, 65534)
    before = os.lstat(secret)
    refusals = []
    for verb, more in (
        ("list", {"all": True}), ("status", {"id": trained}), ("read", {"id": trained, "offset": 0, "renew": True}),
        ("cancel", {"id": trained, "by": "me"}), ("pack", {"id": trained}), ("clean", {"older_s": 10**9}),
    ):  # fmt: skip
        with contextlib.suppress(Refused):
            refusals.append(json.dumps(host.call(verb, **more)))
    assert SECRET.decode().strip() not in "".join(refusals)
    archive = fetch_archive(host, trained)
    assert not archive.exists() or SECRET not in archive.read_bytes()
    assert os.lstat(secret).st_mtime_ns == before.st_mtime_ns
    host.call("clean", older_s=0)
    created = subprocess.run(
        ["find", str(host.job_dir(dead)), "-user", "root", "-newer", str(secret)],
        capture_output=True,
        text=True,
    )
    assert created.stdout == ""


@pytest.mark.parametrize("kind", ["fifo", "folder", "deep", "huge", "bytes"])
def test_03_damaged_file_in_job_of_the_last_release_is_refused(
    last_release: tuple[Machine, str, str], kind: str
) -> None:
    host, trained, dead = last_release
    for name in ("status.json", "result.json"):
        path = host.job_dir(trained) / name
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "deep":
            path.write_text("[" * 200_000)
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        else:
            path.write_bytes(b'{"schema": 1, "state": "\xff", "version": "x"}')
    with pytest.raises(Refused) as refused:
        host.call("status", id=trained)
    assert refused.value.code in (2, 3), refused.value.error
    assert [line["id"] for line in host.call("list", all=True)["jobs"]] == [dead]
