"""`train` against what goes wrong: kills, cuts, signals, damaged archives, a full disk."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest
from loopback.line import Line
from loopback.sshd import Sshd
from loopback.world import HOLD, World, tail, wait_until

pytestmark = pytest.mark.engine

#: Writes a line every 50 ms for some seconds, then an artefact.
COUNTING = """
import time
for n in range({count}):
    print("line", n, flush=True); time.sleep(0.05)
os.makedirs("artefacts", exist_ok=True)
open("artefacts/a", "w").write("x")
"""
#: The same, and waits for World.go before the artefact.
COUNTING_HELD = COUNTING.replace("os.makedirs", f"{HOLD}os.makedirs")
#: Notices SIGTERM, says so, and leaves a partial artefact.
STOPPABLE = """
import signal, time
open("artefacts/partial", "w").write("x")
def stop(*_):
    print("stopping", flush=True); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(120)
"""
#: Ignores SIGTERM.
IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(120)
"""


def start(world: World, *arguments: str | Path, says: bytes = b"ready\n") -> subprocess.Popen[bytes]:
    """Start a command, and wait for the first line of its log."""
    process = world.start(*arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == says
    return process


def assert_fetched(world: World, job: str, archive: Path) -> None:
    """The archive is the one that the job's result names."""
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == world.result(job)["archive"]["sha256"]


def lines(count: int) -> bytes:
    return b"".join(b"line %d\n" % n for n in range(count))


# Row 20: the controller is killed.


@pytest.mark.parametrize("phase", [pytest.param("image", marks=pytest.mark.full), "training"])
def test_second_controller_attaches_after_kill(world: World, phase: str) -> None:
    world.model(COUNTING.format(count=150))
    process = world.start(*world.train("probe"))
    world.wait_for(
        lambda status: status["state"] == "running" and (phase == "image" or status["phase"] == phase)
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    other = world.folder / "elsewhere"
    other.mkdir()
    attached = world.run("attach", "last", "--inventory", world.local, cwd=other)
    assert attached.returncode == 0, tail(attached.stderr)
    (job,) = world.statuses()
    assert attached.stdout == lines(150) == world.log(job["id"])
    assert_fetched(world, job["id"], other / "artefacts.tar.gz")
    # The next run removes the files of the killed run, whose Ansible ended by itself.
    world.run(*world.train("probe", "--gpus", "0", "--env", "X=1"))
    world.assert_clean()


def test_killed_command_of_silent_job_leaves_no_process(world: World) -> None:
    """Without output, too, the playbook notices that its command is gone: otherwise it would renew the lease."""
    world.model("import time\nprint('up', flush=True)\ntime.sleep(300)\n")
    process = start(world, *world.train("probe"), says=b"up\n")
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (job,) = world.statuses()

    def own_processes() -> list[tuple[int, str]]:
        # The job's own worker stays.
        return [(pid, command) for pid, command in world.processes() if job["id"] not in command]

    wait_until(lambda: not own_processes(), 60)
    assert world.run("cancel", job["id"], "--inventory", world.local).returncode == 0
    assert world.result(job["id"])["exit_code"] == 6


def test_controller_killed_during_push_leaves_nothing_running(world: World, sshd: Sshd) -> None:
    world.model(COUNTING.format(count=5))
    with (world.repo / "large").open("wb") as file:
        file.write(os.urandom(40 << 20))
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        process = world.start(*world.train("probe", inventory=world.inventory(sshd, line.port)))
        # In the middle of the push.
        wait_until(lambda: line.bytes > 8 << 20, 60)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not world.processes(), 60)
    states = [status["state"] for status in world.statuses()]
    assert states in (["prepared"], [])
    done = world.run(*world.train("probe"))
    assert done.returncode == 0, tail(done.stderr)
    assert done.stdout == lines(5)


# Row 21: the connection is cut.


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.full)])
def test_log_is_complete_after_lost_connection(world: World, sshd: Sshd, seconds: float) -> None:
    world.model(COUNTING_HELD.format(count=200))
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        process = world.start(*world.train("probe", inventory=world.inventory(sshd, line.port)))
        assert process.stdout is not None
        first = process.stdout.readline() + process.stdout.readline()
        line.cut()
        time.sleep(seconds)
        line.mend()
        world.go()
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, tail(errors)
    assert first + output == lines(200)
    assert b"was cut" in errors and b"Connected to trainer1 again" in errors
    world.assert_clean()


def test_log_is_complete_after_half_open_connection(world: World, sshd: Sshd) -> None:
    world.model(COUNTING.format(count=100))
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        train = world.train("probe", inventory=world.inventory(sshd, line.port))
        process = start(world, *train, says=b"line 0\n")
        line.freeze()
        time.sleep(3)
        line.mend()
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, tail(errors)
    assert b"line 0\n" + output == lines(100)


def test_permanent_connection_loss_is_exit_11_and_attach_completes_the_log(world: World, sshd: Sshd) -> None:
    world.model(COUNTING_HELD.format(count=100))
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        arguments = world.train("probe", "--patience", "3s", inventory=world.inventory(sshd, line.port))
        process = start(world, *arguments, says=b"line 0\n")
        line.cut()
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 11, tail(errors)
    (job,) = world.statuses()
    assert f"train-classifier attach {job['id']}".encode() in errors
    world.go()
    attached = world.run("attach", job["id"], "--inventory", world.local)
    assert attached.returncode == 0, tail(attached.stderr)
    assert attached.stdout == lines(100)
    world.assert_clean()


def test_push_and_fetch_continue_after_lost_connection(world: World, sshd: Sshd) -> None:
    """The line is cut in the middle of each: after 15 MiB of the push, and after 15 MiB of the fetch."""
    world.model(f"print('up', flush=True)\n{HOLD}open('artefacts/large', 'wb').write(os.urandom(30 << 20))\n")
    for number in range(40):
        (world.repo / f"part{number}").write_bytes(os.urandom(1 << 20))
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        line.cut_after = 15 << 20
        process = world.start(*world.train("probe", inventory=world.inventory(sshd, line.port)))
        wait_until(lambda: line.cut_after is None, 120)
        assert not [status for status in world.statuses() if status["state"] == "running"]
        line.mend()
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        line.cut_after = line.bytes + (15 << 20)
        world.go()
        wait_until(lambda: line.cut_after is None, 120)
        (job,) = world.statuses()
        assert job["state"] == "finished" and process.poll() is None
        line.mend()
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, tail(errors)
    assert output == b"" and errors.count(b"was cut") == 2, tail(errors)
    assert_fetched(world, job["id"], world.work / "artefacts.tar.gz")
    world.assert_clean()


# Row 28: cancel.


def test_ctrl_c_once_stops_the_job_and_fetches(world: World, sshd: Sshd) -> None:
    world.model(STOPPABLE)
    process = start(world, *world.train("probe", inventory=world.inventory(sshd)))
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 6, tail(errors)
    assert out == b"stopping\n"
    (archive,) = world.work.iterdir()
    assert archive.name.startswith("artefacts-") and b"Traceback" not in errors
    world.assert_clean()


def test_ctrl_c_twice_exits_at_once_and_stops_the_job(world: World) -> None:
    world.model(IGNORES_SIGTERM)
    process = start(world, *world.train("probe", "--grace", "10m"))
    os.killpg(process.pid, signal.SIGINT)
    (job,) = world.statuses()
    folder = world.state / "jobs" / job["id"]
    wait_until(lambda: (folder / "cancel").exists(), 20)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 6, tail(errors)
    assert not (folder / "result.json").exists(), "left only after the job's end"
    label = f"label=train-classifier.job={job['id']}"
    listed = subprocess.run(
        ["docker", "ps", "-q", "--filter", label], capture_output=True, text=True, check=True
    )
    subprocess.run(["docker", "kill", *listed.stdout.split()], capture_output=True, check=True)
    assert world.result(job["id"])["exit_code"] == 6
    world.assert_clean()


@pytest.mark.full
def test_workflow_cancel_stops_the_job(world: World) -> None:
    """SIGINT, 7.5 s, SIGTERM, 2.5 s, SIGKILL, as GitHub's runner does it, to a job that ignores SIGTERM."""
    world.model(IGNORES_SIGTERM)
    process = start(world, *world.train("probe", "--grace", "12s"))
    os.kill(process.pid, signal.SIGINT)
    time.sleep(7.5)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(2.5)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (job,) = world.statuses()
    assert world.result(job["id"])["exit_code"] == 6
    wait_until(lambda: not world.processes(), 40)


def test_sigterm_acts_like_ctrl_c(world: World) -> None:
    world.model(STOPPABLE)
    process = start(world, *world.train("probe"))
    os.kill(process.pid, signal.SIGTERM)
    out, errors = process.communicate(timeout=240)
    assert (process.returncode, out) == (6, b"stopping\n"), tail(errors)


def test_ctrl_c_during_push_starts_no_job(world: World, sshd: Sshd) -> None:
    world.model(COUNTING.format(count=3))
    (world.repo / "large").write_bytes(os.urandom(30 << 20))
    with Line(sshd.port) as line:
        sshd.trust(line.port)
        process = world.start(*world.train("probe", inventory=world.inventory(sshd, line.port)))
        wait_until(lambda: line.bytes > 4 << 20, 60)
        line.freeze()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=240)
        line.mend()
    assert process.returncode == 6, tail(errors)
    assert all(status["state"] == "prepared" for status in world.statuses())
    wait_until(lambda: not world.processes(), 60)


def test_closed_terminal_does_not_stop_the_job(world: World) -> None:
    """A hang-up: the terminal closes, the kernel sends SIGHUP, the job runs on."""
    world.model(COUNTING_HELD.format(count=100))
    master, slave = pty.openpty()
    process = world.start(
        *world.train("probe"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    output = b""
    while b"line 3" not in output:
        assert select.select([master], [], [], 60)[0], tail(output)
        try:
            output += os.read(master, 65536)
        except OSError:
            pytest.fail(f"ended with {process.wait()}: {tail(output)}")
    assert b"\x1b[K" in output, "no live line on a terminal"
    os.close(master)
    assert process.wait(timeout=240) == 11
    world.go()
    attached = world.run("attach", "last", "--inventory", world.local)
    assert attached.returncode == 0, tail(attached.stderr)
    assert attached.stdout == lines(100)
    world.assert_clean()


def test_ctrl_c_in_attach_and_logs_does_not_stop_the_job(world: World) -> None:
    world.model(COUNTING_HELD.format(count=100))
    assert world.run(*world.train("probe", "--detach")).returncode == 0
    for command in (["attach"], ["logs", "-f"]):
        process = world.start(*command, "last", "--inventory", world.local)
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        assert first == b"line 0\n", tail(process.stderr.read())
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 11, tail(errors)
        assert b"Traceback" not in errors
    world.go()
    attached = world.run("attach", "last", "--inventory", world.local)
    assert (attached.returncode, attached.stdout) == (0, lines(100)), tail(attached.stderr)


def test_cancel_from_another_shell_stops_the_job(world: World) -> None:
    world.model(STOPPABLE)
    cancel = ("cancel", "last", "--inventory", world.local)
    process = start(world, *world.train("probe"))
    assert world.run(*cancel).returncode == 0
    out, errors = process.communicate(timeout=240)
    assert (process.returncode, out) == (6, b"stopping\n"), tail(errors)
    assert world.run(*cancel).returncode == 0
    world.assert_clean()


# Row 36, and the disk on this side of row 29.


def test_damaged_download_is_fetched_again_and_damaged_archive_is_refused(world: World) -> None:
    world.model(COUNTING.format(count=1))
    job = world.run(*world.train("probe", "--detach")).stdout.decode().strip()
    wait_until(lambda: world.statuses()[-1]["state"] == "finished", 60)
    (world.work / f".artefacts.tar.gz.{job}.part").write_bytes(b"garbage of an earlier try")
    done = world.run("fetch", job, "--inventory", world.local)
    assert done.returncode == 0, tail(done.stderr)
    assert b"arrived damaged: it is fetched again" in done.stderr
    assert_fetched(world, job, world.work / "artefacts.tar.gz")
    world.assert_clean()

    # What is damaged on the host replaces nothing here.
    archive = world.state / "jobs" / job / "artefacts.tar.gz"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    (world.work / "artefacts.tar.gz").write_bytes(b"the good one of yesterday")
    done = world.run("fetch", job, "--inventory", world.local)
    assert done.returncode == 7, tail(done.stderr)
    assert (world.work / "artefacts.tar.gz").read_bytes() == b"the good one of yesterday"
    assert [path.name for path in world.work.iterdir()] == ["artefacts.tar.gz"]


def test_failed_job_names_the_command_that_packs_large_artefacts(world: World) -> None:
    world.model("open('artefacts/x', 'wb').write(os.urandom(3 << 20))\nraise SystemExit(3)\n")
    done = world.run(*world.train("probe", "--artefacts-max", "1MiB"))
    assert done.returncode == 4, tail(done.stderr)
    match = re.search(rb"train-classifier (fetch \S+ .*--max-size 3MiB)", done.stderr)
    assert match and b"more than the limit of 1.0 MiB: it stays on the host" in done.stderr, tail(done.stderr)
    done = world.run(*shlex.split(match[1].decode()))
    assert done.returncode == 0, tail(done.stderr)
    (archive,) = world.work.iterdir()
    assert archive.name.startswith("artefacts-") and archive.stat().st_size > 3 << 20


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
def test_full_local_disk_keeps_the_previous_archive(world: World) -> None:
    world.model("open('artefacts/large', 'wb').write(os.urandom(4 << 20))\n")
    small = world.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        (small / "artefacts.tar.gz").write_bytes(b"the good one of yesterday")
        done = world.run(*world.train("probe"), cwd=small)
        assert done.returncode == 7, tail(done.stderr)
        assert b"disk here is full" in done.stderr and b"train-classifier fetch" in done.stderr
        assert (small / "artefacts.tar.gz").read_bytes() == b"the good one of yesterday"
        assert [path.name for path in small.iterdir()] == ["artefacts.tar.gz"]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
