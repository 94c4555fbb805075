"""The worker is killed (-9) in each phase: nothing of the job is left, it ends as lost, its log and artefacts are kept."""

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from worker_support import (
    IMAGE,
    Machine,
    Refused,
    accounts,
    docker,
    host_fixture,
    machine,
    until_building,
    write_model,
)

pytestmark = pytest.mark.engine
LONG = "open('artefacts/partial','w').write('x')\nprint('up', flush=True)\nimport time\ntime.sleep(600)\n"
#: Answers as the real one does for one card of 24 GB.
NVIDIA_SMI = """#!/bin/sh
case "$*" in
*--query-gpu=index*) echo "0, GPU-00000000-1111-2222-3333-444444444444, NVIDIA Test, 24576, 24000, 550.54.14, [N/A]";;
*--query-gpu=uuid,util*) echo "GPU-00000000-1111-2222-3333-444444444444, [N/A], [N/A]";;
esac
"""
host = host_fixture(accounts())


def pack_artefacts(host: Machine, job: str, result: dict[str, object]) -> dict[str, object]:
    """Pack the artefacts that recovery left on the host; returns the new result."""
    if "unpacked" not in result:
        return result
    assert result["archive"] is None and (host.job_dir(job) / "workspace" / "artefacts").is_dir()
    packed = host.pack(job)
    assert packed["archive"] and "unpacked" not in packed
    return packed


def assert_lost(host: Machine, job: str, phase: str) -> dict[str, object]:
    # Until every process of the killed worker has ended the job counts as alive.
    end = time.monotonic() + 240
    while (result := host.call("status", id=job)["result"]) is None and time.monotonic() < end:
        time.sleep(0.1)
    assert result is not None, host.status(job)
    assert (result["outcome"], result["exit_code"]) == ("lost", 10)
    assert f"in phase {phase}" in result["reason"]
    result = pack_artefacts(host, job, result)
    assert (result["outcome"], result["exit_code"]) == ("lost", 10)
    host.assert_clean(job)
    # Later calls return the same.
    assert host.call("read", id=job, offset=0)["result"] == result
    assert host.call("cancel", id=job)["state"] == "finished"
    return dict(result)


def test_worker_killed_in_phase_image(host: Machine) -> None:
    # The image is probed, which takes a moment.
    with machine(host.user) as fresh:
        fresh.forget_images()
        job = fresh.start(LONG)
        fresh.until(job, "image")
        fresh.kill_worker(job)
        assert_lost(fresh, job, "image")


def test_worker_killed_in_phase_packages(host: Machine, tmp_path: Path) -> None:
    with host.unreachable_archive():
        job = host.start_tree(write_model(tmp_path, LONG, packages="hello\n"))
        host.until(job, "packages")
        until_building(job)
        host.kill_worker(job)
        assert_lost(host, job, "packages")


def test_worker_killed_in_phase_environment(host: Machine, tmp_path: Path) -> None:
    uv = host.root / "waiting-uv"
    uv.write_text("#!/bin/sh\ncase $1 in --version) echo uv 0.0.0;; *) sleep 600;; esac\n")
    uv.chmod(0o755)
    with host.changed_settings(uv=str(uv)):
        job = host.start_tree(write_model(tmp_path, LONG, requirements="six\n"))
        host.until(job, "environment")
        until_building(job)
        host.kill_worker(job)
        assert_lost(host, job, "environment")


def test_worker_killed_in_phase_queue(host: Machine) -> None:
    smi = host.root / "nvidia-smi"
    smi.write_text(NVIDIA_SMI)
    smi.chmod(0o755)
    queue = Path(host.settings["queue_dir"])
    # A job of another user holds the only card: the test locks its ticket.
    other = queue / "000000000000-20200101-000000-00000000.json"
    entry = {
        "job": "20200101-000000-00000000", "model": "other", "uid": 0, "user": "root", "dir": "/nowhere", "want": 1,
        "min_vram_mib": None, "state": "granted", "gpus": ["GPU-00000000-1111-2222-3333-444444444444"],
        "since": time.time(), "since_boot": time.clock_gettime(time.CLOCK_BOOTTIME),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }  # fmt: skip
    try:
        with host.changed_settings(nvidia_smi=str(smi)), open(other, "w") as held:
            other.chmod(0o666)
            fcntl.flock(held, fcntl.LOCK_EX)
            held.write(json.dumps(entry))
            held.flush()
            job = host.start(LONG, gpus=1)
            host.until(job, "queue")
            assert [name for name in os.listdir(queue) if job in name]
            host.kill_worker(job)
            assert_lost(host, job, "queue")
    finally:
        other.unlink()


def test_worker_killed_in_phase_training(host: Machine) -> None:
    job = host.start(LONG)
    host.until(job, "training", text=b"up\n")
    host.kill_worker(job)
    assert_lost(host, job, "training")
    assert host.log(job) == b"up\n"
    assert "artefacts/partial" in host.names(job)
    assert host.manifest(job)["outcome"] == "lost"


def test_worker_killed_in_phase_artefacts(host: Machine) -> None:
    program = "import os\nfor n in range(60):\n    open(f'artefacts/{n}','wb').write(os.urandom(1 << 20))\nprint('up')\n"
    job = host.start(program)
    host.until(job, "artefacts")
    host.kill_worker(job)
    assert_lost(host, job, "artefacts")
    assert len(host.names(job)) == 61 and host.log(job) == b"up\n"
    assert not list(host.job_dir(job).glob(".*"))


#: Prints its last output once /cache/go is there, and then makes /cache/printed.
LAST_OUTPUT = """
import os, time
open('artefacts/x', 'w')
print('up', flush=True)
while not os.path.exists('/cache/go'):
    time.sleep(0.05)
print({words}, flush=True)
open('/cache/printed', 'w')
time.sleep(600)
"""


def print_while_worker_is_stopped(host: Machine, job: str) -> None:
    """Let a job print while its worker is stopped, so that the output stays in the FIFO; then kill the worker."""
    status = host.until(job, "training", text=b"up\n")
    cache = host.state / "cache" / "0123456789abcdef"
    os.kill(status["pid"], signal.SIGSTOP)
    (cache / "go").touch()
    try:
        end = time.monotonic() + 240
        while not (cache / "printed").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        for name in ("go", "printed"):
            (cache / name).unlink(missing_ok=True)
    host.kill_worker(job)
    host.until_worker_is_gone(job)


def test_last_output_of_model_is_kept(host: Machine) -> None:
    job = host.start(LAST_OUTPUT.format(words="'last words'"))
    print_while_worker_is_stopped(host, job)
    result = host.wait(job)
    assert result["outcome"] == "lost" and host.log(job) == b"up\nlast words\n"


def test_unmasked_output_of_job_with_secrets_is_removed(host: Machine) -> None:
    job = host.start(LAST_OUTPUT.format(words="os.environ['TOKEN']"), {"TOKEN": "hunter2"})
    print_while_worker_is_stopped(host, job)
    assert host.wait(job)["outcome"] == "lost"
    assert b"hunter2" not in host.log(job) and b"8 bytes of the log are missing" in host.log(job)


def test_worker_that_never_starts_ends_job_as_lost(host: Machine, tmp_path: Path) -> None:
    spec = host.spec()
    host.push(write_model(tmp_path, LONG), spec)
    job = spec["id"]
    # As if the launcher had failed after the state was written: of an earlier boot, so no grace is due.
    path = host.job_dir(job) / "status.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps({**status, "state": "submitted", "boot_id": "another"}))
    result = host.wait(job)
    assert result["outcome"] == "lost" and "rebooted" in result["reason"]
    host.assert_clean(job)


def test_reboot_ends_job_as_lost(host: Machine) -> None:
    job = host.start(LONG)
    host.until(job, "training", text=b"up\n")
    host.kill_worker(job)
    docker("stop", "-t", "0", f"tc-job-{job}")
    path = host.job_dir(job) / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot_id": "another"}))
    result = host.call("status", id=job)["result"]
    assert result["outcome"] == "lost" and "rebooted" in result["reason"]
    pack_artefacts(host, job, result)
    assert "artefacts/partial" in host.names(job)
    host.assert_clean(job)


def test_next_worker_finishes_dead_job(host: Machine) -> None:
    dead = host.start(LONG)
    host.until(dead, "training", text=b"up\n")
    host.kill_worker(dead)
    _, result = host.train("open('artefacts/x','w')")
    assert result["outcome"] == "trained"
    assert host.stored_result(dead)["outcome"] == "lost"
    host.pack(dead)
    host.assert_clean(dead)


def test_stop_hook_of_unit_finishes_dead_job(host: Machine) -> None:
    job = host.start(LONG)
    host.until(job, "training", text=b"up\n")
    command = [*host.prefix(), "/usr/bin/python3", "-I", str(host.program), "finish", str(host.job_dir(job))]
    # While the worker lives, the hook does nothing.
    subprocess.run(command, env={**host.environment(), "SERVICE_RESULT": "success"}, check=True)
    assert host.status(job)["state"] == "running"
    host.kill_worker(job)
    host.until_worker_is_gone(job)
    hook = {**host.environment(), "SERVICE_RESULT": "oom-kill", "EXIT_STATUS": "KILL"}
    subprocess.run(command, env=hook, check=True)
    result = host.stored_result(job)
    assert result["outcome"] == "lost" and "oom-kill" in result["reason"]
    host.pack(job)
    host.assert_clean(job)


def test_worker_killed_at_random_moment(host: Machine) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(3):
        job = host.start("print('up')\nopen('artefacts/x','w').write('x')")
        time.sleep(chance.uniform(0, 2.5))
        with contextlib.suppress(ProcessLookupError, TypeError):
            host.kill_worker(job)
        result = host.wait(job)
        assert result["outcome"] in ("lost", "trained")
        pack_artefacts(host, job, result)
        host.assert_clean(job)


def test_clean_removes_only_finished_jobs(host: Machine) -> None:
    with machine(host.user) as fresh:
        old, _ = fresh.train("open('artefacts/x','w')")
        live = fresh.start(LONG)
        fresh.until(live, "training", text=b"up\n")
        foreign = docker("create", IMAGE, "true")
        try:
            dry = fresh.call("clean", older_s=0, dry_run=True)
            assert dry["removed"]["jobs"] == 1 and fresh.job_dir(old).exists()
            done = fresh.call("clean", older_s=0, keep_environments_bytes=0)
            assert done["removed"]["jobs"] == 1 and not fresh.job_dir(old).exists()
            assert docker("ps", "-aq", "--no-trunc", "--filter", f"id={foreign}") == foreign
            assert fresh.status(live)["state"] == "running"
            assert (fresh.state / "cache" / "0123456789abcdef").exists()
        finally:
            docker("rm", foreign)
        fresh.call("cancel", id=live)
        assert fresh.wait(live)["outcome"] == "cancelled"
        fresh.assert_clean(live)
        # Caches that were not used for a while are removed, down to the budget.
        for path in (fresh.state / "cache").iterdir():
            os.utime(path, (1, 1))
        os.utime(fresh.job_dir(live) / "result.json", (1, 1))
        done = fresh.call("clean", keep_environments_bytes=0)
        assert done["removed"]["caches"] == 1
        assert not list((fresh.state / "cache").iterdir()) and not list((fresh.state / "mirrors").iterdir())
        assert fresh.job_dir(live).exists() and fresh.program.exists()


def test_clean_finishes_only_dead_jobs(host: Machine) -> None:
    with machine(host.user) as fresh:
        dead, live = (fresh.start(LONG) for _ in range(2))
        for job in (dead, live):
            fresh.until(job, "training", text=b"up\n")
        fresh.kill_worker(dead)
        assert fresh.call("clean", dry_run=True)["removed"]["jobs"] == 0
        assert not (fresh.job_dir(dead) / "result.json").exists()
        # Only files are read: other verbs would finish the job, too.
        end = time.monotonic() + 240
        while not (fresh.job_dir(dead) / "result.json").exists() and time.monotonic() < end:
            # A killed worker's children may hold its lock for a moment.
            fresh.call("clean", older_s=10**9)
        result = fresh.stored_result(dead)
        assert (result["outcome"], result["exit_code"]) == ("lost", 10)
        fresh.pack(dead)
        assert "artefacts/partial" in fresh.names(dead) and fresh.log(dead) == b"up\n"
        fresh.assert_clean(dead)
        assert fresh.status(live)["state"] == "running"
        assert docker("ps", "-q", "--filter", f"label=train-classifier.job={live}")
        fresh.call("cancel", id=live)
        assert fresh.wait(live)["outcome"] == "cancelled"
        fresh.assert_clean(live)


def test_checkpoints_over_budget_are_removed(host: Machine) -> None:
    saves = (
        "import os\nopen(os.environ['TRAIN_CHECKPOINT_DIR'] + '/epoch', 'wb').write(os.urandom(5 << 20))\n"
        "open('artefacts/x', 'w').write('x')\nprint('up', flush=True)\n"
    )
    with machine(host.user) as fresh:
        old, _ = fresh.train(saves)
        young, _ = fresh.train(saves)
        live = fresh.start(saves + "import time\ntime.sleep(600)\n")
        fresh.until(live, "training", text=b"up\n")
        before = fresh.call("clean", keep_environments_bytes=1 << 40)
        assert before["removed"]["caches"] == 0 and before["kept_bytes"] >= 10 << 20
        # Only unused checkpoints are removed, and no more than the budget requires.
        os.utime(fresh.job_dir(old) / "result.json", (1, 1))
        done = fresh.call("clean", keep_environments_bytes=before["kept_bytes"] - 1)
        assert (done["removed"]["caches"], done["removed"]["jobs"]) == (1, 0)
        # A file system may take some blocks more than a file has bytes, and give them back later.
        assert 5 << 20 <= done["removed"]["bytes"] < 6 << 20
        assert 4 << 20 < before["kept_bytes"] - done["kept_bytes"] < 6 << 20
        assert not (fresh.job_dir(old) / "checkpoints").exists()
        assert (fresh.job_dir(young) / "checkpoints" / "epoch").exists()
        # Checkpoints of a running job are kept, whatever the budget is.
        done = fresh.call("clean", keep_environments_bytes=0)
        assert 5 << 20 <= done["kept_bytes"] < 6 << 20
        for job in (young, live):
            assert (fresh.job_dir(job) / "checkpoints" / "epoch").stat().st_size == 5 << 20
        # The job itself is complete; only resuming it is refused.
        assert "artefacts/x" in fresh.names(old) and fresh.log(old) == b"up\n"
        with pytest.raises(Refused, match="no checkpoints any more"):
            fresh.start(saves, resume=old)
        fresh.call("cancel", id=live)
        assert fresh.wait(live)["outcome"] == "cancelled"
        fresh.assert_clean(live)


def test_abandoned_pushes_are_removed_by_clean(host: Machine, tmp_path: Path) -> None:
    spec = host.spec()
    host.push(write_model(tmp_path, LONG), spec)
    path = host.job_dir(spec["id"]) / "status.json"
    host.call("clean")
    assert path.exists()
    path.write_text(json.dumps({**json.loads(path.read_text()), "updated_uptime": -1000.0}))
    host.call("clean", older_s=10**9)
    assert not path.exists()
