"""What `clean` removes and what not: jobs of other versions, files in use, a budget that really frees the disk."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from engine_proxy import proxied
from worker_support import (
    IMAGE,
    SERVICE_USER,
    Machine,
    Refused,
    accounts,
    docker,
    host_fixture,
    write_model,
)

from train_classifier.core import locks
from train_classifier.worker.containers import engine, package_layers
from train_classifier.worker.containers.context import Context
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Host

pytestmark = pytest.mark.engine
LONG = "open('artefacts/partial','w').write('x')\nprint('up', flush=True)\nimport time\ntime.sleep(600)\n"
host = host_fixture(accounts()[-1:], scope="function")


def rewrite(path: Path, **changes: Any) -> None:
    """Change a JSON file in place, keeping its owner."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def until_unlocked(host: Machine, job: str) -> None:
    """Wait until no process of a killed worker holds the lock of its job."""
    end = time.monotonic() + 240
    while locks.is_held(host.job_dir(job) / "lock") and time.monotonic() < end:
        time.sleep(0.05)


def test_clean_keeps_unreadable_jobs(host: Machine) -> None:
    newer, _ = host.train("open('artefacts/x','w')")
    damaged, _ = host.train("open('artefacts/x','w')")
    old, _ = host.train("open('artefacts/x','w')")
    host.assert_clean(old)
    model = host.call("status", id=old)["spec"]["model"]
    for job in (newer, damaged):
        rewrite(host.job_dir(job) / "result.json", finished=1.0)
        os.utime(host.job_dir(job) / "spec.json", (1, 1))
    rewrite(host.job_dir(newer) / "status.json", schema=99)
    (host.job_dir(damaged) / "status.json").write_text("{")
    done = host.call("clean", older_s=0)
    assert done["removed"]["jobs"] == 1 and not host.job_dir(old).exists()
    # What is known of the run stays.
    assert [(run["id"], run["outcome"]) for run in host.call("runs", model=model)["runs"]] == [
        (old, "trained")
    ]
    for job in (newer, damaged):
        assert (host.job_dir(job) / "artefacts.tar.gz").exists()


def test_dead_job_is_finished_by_its_own_worker_version(host: Machine) -> None:
    job = host.start(LONG)
    host.until(job, "training", text=b"up\n")
    other = host.program.with_name("0" * 16)
    shutil.copytree(host.program, other)
    subprocess.run(["chown", "-R", "--reference", str(host.program), str(other)], check=True)
    with open(other / "train_classifier/worker/jobs/recover.py", "a") as file:
        file.write("\n\ndef _reason(status):\n    return 'finished by the version that began it'\n")
    status = host.job_dir(job) / "status.json"
    host.kill_worker(job)
    until_unlocked(host, job)
    rewrite(status, worker=str(other))
    result = host.wait(job)
    assert result["reason"] == "finished by the version that began it"
    assert host.pack(job)["outcome"] == "lost"
    assert "artefacts/partial" in host.names(job)
    host.assert_clean(job)
    # Without the program that began it, a job is finished by the current one.
    second = host.start(LONG)
    host.until(second, "training", text=b"up\n")
    host.kill_worker(second)
    host.until_worker_is_gone(second)
    rewrite(host.job_dir(second) / "status.json", worker=str(other.with_name("1" * 16)))
    assert host.wait(second)["outcome"] == "lost"


def environment(host: Machine, key: str, used: float) -> Path:
    """Make an environment, as a build leaves it."""
    folder = host.state / "environments" / "envs" / key
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "wheel").write_bytes(os.urandom(4 << 20))
    (folder / "environment.json").write_text("{}")
    chown_build(host, folder, folder / "site")
    os.utime(folder / "environment.json", (used, used))
    return folder


def uv_cache(host: Machine, name: str, used: float) -> Path:
    """Make a cache of uv, and the lock whose time is its last use."""
    folder = host.state / "environments" / "uv-caches" / name
    folder.mkdir()
    (folder / "wheel").write_bytes(os.urandom(1 << 20))
    lock = host.state / "environments" / "locks" / f"{name}.lock"
    lock.touch()
    chown_build(host, lock, folder)
    os.utime(lock, (used, used))
    return folder


def chown_build(host: Machine, root_files: Path, build_files: Path) -> None:
    """Set the owners as a build does: `build_files` belong to the building account, the rest to the submitter."""
    if os.geteuid() == 0:
        builder = SERVICE_USER if host.user == "root" else host.user
        subprocess.run(["chown", "-R", host.user, str(root_files)], check=True)
        subprocess.run(["chown", "-R", builder, str(build_files)], check=True)


def on_disk(host: Machine) -> int:
    done = subprocess.run(
        ["du", "-sB1", str(host.state / "environments")], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0])


def test_clean_frees_the_bytes_that_it_reports(host: Machine) -> None:
    host.train("open('artefacts/x','w')")
    old, new = environment(host, "a" * 40, 1), environment(host, "b" * 40, 2)
    cache = uv_cache(host, "image-1", 1.5)
    for path in (host.state / "cache").iterdir():
        os.utime(path, None)
    before = on_disk(host)
    everything = host.call("clean")
    assert abs(everything["kept_bytes"] - before) < 2 << 20 and on_disk(host) == before
    # Room for one environment: older ones are removed.
    dry = host.call("clean", keep_environments_bytes=9 << 19, dry_run=True)
    done = host.call("clean", keep_environments_bytes=9 << 19)
    assert dry["removed"] == done["removed"] and done["removed"]["environments"] == 1
    assert not old.exists() and not cache.exists()
    assert (new / "site" / "wheel").stat().st_size == 4 << 20
    freed = before - on_disk(host)
    assert freed >= 5 << 20 and abs(done["removed"]["bytes"] - freed) < 1 << 20
    assert done["kept_bytes"] <= 9 << 19


def test_clean_removes_environments_of_last_release_when_no_job_runs(host: Machine) -> None:
    """They belong to the job's user as a whole, so they are removed as that user and never used."""
    old = host.state / "store"
    (old / "envs" / ("a" * 40) / "site").mkdir(parents=True)
    (old / "envs" / ("a" * 40) / "environment.json").write_text("{}")
    outside = host.root / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (old / "build").symlink_to(outside)
    chown_build(host, host.state / "store", old)
    job = host.start(LONG)
    host.until(job, "training", text=b"up\n")
    host.call("clean")
    assert (old / "envs").exists()
    host.call("cancel", id=job, by="a test")
    host.wait(job)
    assert host.call("clean")["removed"]["environments"] == 1
    assert not old.exists() and (outside / "precious").exists()


def test_clean_keeps_environment_taken_into_use(host: Machine) -> None:
    """A job takes the environment after `clean` has listed it."""
    host.train("open('artefacts/x','w')")
    just_used, locked = environment(host, "a" * 40, 1), environment(host, "b" * 40, 1)
    patch = f"""
def _used(self, *arguments):
    os.utime({str(just_used / "environment.json")!r})
    return iter(())
ReusableItems._images = _used
"""
    lock = host.state / "environments" / "locks" / f"environment-{'b' * 40}.lock"
    lock.touch(0o600)
    shutil.chown(lock, host.user)
    with host.patched("jobs/retention", patch), locks.hold(lock, shared=True):
        done = host.call("clean", keep_environments_bytes=0)
    assert done["removed"]["environments"] == 0 and just_used.exists() and locked.exists()
    os.utime(just_used / "environment.json", (1, 1))
    assert host.call("clean", keep_environments_bytes=0)["removed"]["environments"] == 2


def test_clean_removes_stray_probe_container(host: Machine) -> None:
    labels = [
        f"--label=train-classifier{name}={value}"
        for name, value in {
            "": 1,
            ".kind": "probe",
            ".job": "",
            ".dir": "",
            ".uid": 0,
            ".gpus": "GPU-x",
        }.items()
    ]
    stray = docker("create", *labels, IMAGE, "sleep", "1")
    try:
        host.call("clean")
        assert docker("ps", "-aq", "--no-trunc", "--filter", f"id={stray}") == stray
        with host.patched("containers/engine", "LEFTOVER_S = -10.0\n"):
            # Other tests may have such containers, too.
            assert host.call("clean")["removed"]["containers"] >= 1
        assert docker("ps", "-aq", "--filter", f"id={stray}") == ""
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            docker("rm", "-f", stray)


def test_clean_ignores_clock_jumps(host: Machine, tmp_path: Path) -> None:
    spec = host.spec()
    host.push(write_model(tmp_path, "open('artefacts/x','w')\n"), spec)
    with host.patched("jobs/removal", "import types\ntime = types.SimpleNamespace(time=lambda: 4e9)\n"):
        host.call("clean")
    assert host.job_dir(spec["id"]).exists()
    rewrite(host.job_dir(spec["id"]) / "status.json", updated_uptime=-10_000.0)
    host.call("clean")
    assert not host.job_dir(spec["id"]).exists()


def test_cancel_during_push_refuses_submit(host: Machine, tmp_path: Path) -> None:
    spec = host.spec()
    host.push(write_model(tmp_path, "open('artefacts/x','w')\n"), spec)
    # A push holds the lock.
    with locks.hold(host.job_dir(spec["id"]) / "lock"):
        assert host.call("cancel", id=spec["id"], by="me")["state"] == "pushed"
        with pytest.raises(Refused, match="cancelled") as refused:
            host.call("submit", id=spec["id"], secrets={})
        assert refused.value.code == 6 and host.job_dir(spec["id"]).exists()
    with pytest.raises(Refused, match="cancelled"):
        host.call("submit", id=spec["id"], secrets={})
    assert not host.job_dir(spec["id"]).exists()


def test_cancel_ends_pull_from_silent_registry(host: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as registry:
        port = registry.getsockname()[1]
        job = host.start(LONG, image=f"127.0.0.1:{port}/slow/image:1")
        host.until(job, "image")
        connection, _ = registry.accept()
        with connection:
            host.call("cancel", id=job, by="me")
            result = host.wait(job, timeout=240)
    assert result["outcome"] == "cancelled"
    host.assert_clean(job)


def test_slow_layer_is_committed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A late answer of the engine is no outage."""
    tag = f"tc-keeping-layer:test-{os.getpid()}"
    with proxied() as proxy:
        monkeypatch.setenv("DOCKER_HOST", proxy.address)
        client = engine.connect(timeout=1)
        container = client.containers.create(IMAGE, ["true"])
        context = Context(client, Host.load(), Store(tmp_path))
        try:
            proxy.slow = (b"/commit?", 3.0)
            package_layers._commit(context, container, tag, {"Labels": {}}, "test")
            assert proxy.slowed == 1 and docker("images", "-q", tag)
            # After an outage the image is looked up, not committed again.
            package_layers._commit(context, container, tag, {"Labels": {}}, "test")
            assert proxy.slowed == 1
        finally:
            container.remove()
            docker("rmi", tag)


def test_second_cancel_finishes_job_of_dead_worker(host: Machine) -> None:
    job = host.start(LONG)
    host.until(job, "training", text=b"up\n")
    host.kill_worker(job, signal.SIGSTOP)
    assert host.call("cancel", id=job, by="me")["state"] == "running"
    host.kill_worker(job)
    until_unlocked(host, job)
    assert host.call("cancel", id=job, by="me")["state"] == "finished"
    assert docker("ps", "-aq", "--filter", f"label=train-classifier.job={job}") == ""


def test_read_renews_lease_on_full_disk(host: Machine) -> None:
    with host.on_small_disk("16m") as small:
        job = small.start(LONG, lease_s=600.0)
        small.until(job, "training", text=b"up\n")
        os.utime(small.job_dir(job) / "lease", (1, 1))
        with contextlib.suppress(OSError), open(small.root / "fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        answer = small.call("read", id=job, offset=0, renew=True)
        assert answer["status"]["state"] == "running"
        assert time.time() - (small.job_dir(job) / "lease").stat().st_mtime < 60
        (small.root / "fill").unlink()
        small.call("cancel", id=job)
        small.wait(job)
