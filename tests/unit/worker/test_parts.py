"""Small parts of the worker: locks, files written whole, ids, the lease, counters and quoting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train_classifier.controller.worker_bundle import bundle
from train_classifier.core import locks
from train_classifier.core.errors import BadInput, Cancelled, NotReady
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.state.file_trees import parse_list, remove_unlisted
from train_classifier.worker.state.files import write_json
from train_classifier.worker.state.store import Job, Store
from train_classifier.worker.system import launcher
from train_classifier.worker.system.host import Host, file_system
from train_classifier.worker.training import usage
from train_classifier.worker.training.container_watch import signal_of
from train_classifier.worker.training.stop_reasons import Watch

HOLD = """
import sys, time
from pathlib import Path
from train_classifier.core import locks
with locks.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_locks_follow_the_life_of_their_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert locks.is_held(path)
        with locks.hold_now(path) as mine:
            assert not mine
        with pytest.raises(TimeoutError), locks.hold(path, timeout=0.3):
            raise AssertionError("never held")
        holder.kill()
    assert not locks.is_held(path)
    with locks.hold_now(path) as mine:
        assert mine and locks.is_held(path)


def test_lock_on_a_removed_file_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.hold(path):
        path.unlink()
        with locks.hold(path, timeout=1) as descriptor:
            assert os.fstat(descriptor).st_ino == path.stat().st_ino


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1}, 0o640)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]


def job(tmp_path: Path, name: str) -> Job:
    folder = tmp_path / "jobs" / name
    folder.mkdir(parents=True)
    made = Job(folder)
    write_json(folder / "spec.json", {})
    made.write_status(state="prepared")
    return made


def test_status_counts_its_versions(tmp_path: Path) -> None:
    made = job(tmp_path, "20260101-000000-00000000")
    assert made.write_status(message="x")["version"] == 2
    assert made.status()["state"] == "prepared"
    write_json(made.dir / "status.json", {"schema": 3})
    with pytest.raises(NotReady, match="another version"):
        made.status()
    (made.dir / "status.json").write_text("{")
    with pytest.raises(NotReady, match="damaged"):
        made.status()


def test_finding_jobs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(BadInput, match="no job"):
        store.find("last")
    first = job(tmp_path, "20260101-000000-00000000")
    second = job(tmp_path, "20260101-000001-00000000")
    os.utime(first.dir / "spec.json", (1, 1))
    (tmp_path / "jobs" / "no-job").mkdir()
    for made in (first, second):
        made.write_status(state="finished")
    # Pushed and never started: no job that anybody means.
    job(tmp_path, "20260101-000002-00000000").write_status(state="pushed")
    assert store.find("last").id == second.id
    assert store.find("20260101-000000").id == first.id
    for wrong, words in (("20260101", "ambiguous"), ("2027", "no job"), ("", "job id"), ("..", "no job")):
        with pytest.raises(BadInput, match=words):
            store.find(wrong)


def spec(**changes: object) -> JobSpec:
    values = {
        "id": "20260101-000000-00000000",
        "model": "m",
        "repository": Repository("r", "0" * 16),
        **changes,
    }
    return JobSpec(**values)  # type: ignore[arg-type]


class Clock:
    """Stands in for the module time: it goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("train_classifier.worker.training.stop_reasons.time", made)
    return made


def test_lease_is_measured_by_changes_not_by_the_clock(tmp_path: Path, clock: Clock) -> None:
    made = job(tmp_path, "20260101-000000-00000000")
    watch = Watch(made, spec(lease_s=4.0))
    made.lease.touch()
    os.utime(made.lease, (1, 1))
    watch.check()
    for stamp in (2, 10**9, 3):
        clock.now += 2.5
        os.utime(made.lease, (stamp, stamp))
        watch.check()
    clock.now += 6
    with pytest.raises(Cancelled, match="controller is gone"):
        watch.check()


def test_the_first_cause_wins(tmp_path: Path, clock: Clock) -> None:
    made = job(tmp_path, "20260101-000000-00000000")
    watch = Watch(made, spec())
    watch.check()
    made.cancel.write_text("one")
    clock.now += 1
    with pytest.raises(Cancelled, match="cancelled by one"):
        watch.check()
    made.cancel.write_text("two")
    clock.now += 1
    with pytest.raises(Cancelled, match="cancelled by one"):
        watch.check()


def test_gpu_samples_tolerate_what_cards_do_not_say() -> None:
    text = "GPU-a, 55, 1024\nGPU-b, [N/A], [Not Supported]\nUnable to determine\nGPU-c, 1, 2\n"
    assert usage.parse(text, ["GPU-a", "GPU-b", "GPU-gone"]) == [
        ("GPU-a", "55", "1024"), ("GPU-b", "", ""), ("GPU-gone", "", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "name"), [(137, "SIGKILL"), (139, "SIGSEGV"), (1, None), (255, None), (128, None)]
)
def test_signals(status: int, name: str | None) -> None:
    assert signal_of(status) == name


def test_lists(tmp_path: Path) -> None:
    files, folders = parse_list(b"a/b/c\0d/\0e\0.\0")
    assert files == {b"a/b/c", b"e"} and folders == {b"a", b"a/b", b"d"}
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "c").touch()
    (tmp_path / "tree" / "a" / "b" / ".c.Xy12").touch()
    (tmp_path / "tree" / "d").symlink_to("/etc")
    (tmp_path / "tree" / "e").mkdir()
    (tmp_path / "tree" / "e" / "x").touch()
    remove_unlisted(tmp_path / "tree", *parse_list(b"a/b/c\0d/\0e\0"))
    left = sorted(str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*"))
    assert left == ["a", "a/b", "a/b/c"]


def test_settings_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "host.json"
    monkeypatch.setenv("TRAIN_CLASSIFIER_HOST_JSON", str(path))
    assert Host.load() == Host()
    path.write_text('{"schema": 1, "uv": "/x", "unknown": 1, "state_dir": "/scratch/{user}/tc"}')
    host = Host.load()
    assert host.uv == Path("/x") and host.state_dir({}) == Path(f"/scratch/{host.caller().name}/tc")
    for wrong in (
        "{",
        "[]",
        '{"schema": 2}',
        '{"uv": 5}',
        '{"images": {"cpu": 1}}',
        '{"disk_floor_bytes": true}',
        '{"build_pids": 1}',
        '{"build_cpus": "2"}',
        '{"build_timeout_s": NaN}',
        '{"build_memory_bytes": 1' + "0" * 30 + "}",
    ):
        path.write_text(wrong)
        with pytest.raises(NotReady, match=r"host\.json"):
            Host.load()
    assert file_system(Path("/proc/self")) == "proc"
    with pytest.raises(BadInput):
        host.state_dir({"state_dir": "relative"})


def test_the_program_is_named_by_its_content() -> None:
    name, files = bundle()
    assert len(name) == 16 and "__main__.py" in files and "train_classifier/worker/api.py" in files
    # It carries nothing of the controller.
    top = {path.split("/")[1] for path in files if "/" in path}
    assert top == {"__init__.py", "core", "worker"}


def test_start_time_tells_processes_of_one_id_apart() -> None:
    assert launcher.start_time(os.getpid()) == launcher.start_time(os.getpid())
    assert launcher.start_time(1 << 30) is None
