"""How training can end: every way a model can go wrong, limits, cancels, and its output."""

import csv
import os
import re
import time
from pathlib import Path

import pytest
from worker_support import HOLD, Machine, accounts, docker, host_fixture

pytestmark = pytest.mark.engine
WRITES = "open('artefacts/partial','w').write('x')\n"
host = host_fixture(accounts()[-1:])


@pytest.mark.parametrize(
    ("program", "status", "signal", "words"),
    [
        pytest.param("raise SystemExit(1)", 1, None, "exit status 1", marks=pytest.mark.full),
        ("raise ValueError('oops')", 1, None, "exit status 1"),
        pytest.param("import os\nos._exit(3)", 3, None, "exit status 3", marks=pytest.mark.full),
        ("import ctypes\nctypes.string_at(0)", 139, "SIGSEGV", "SIGSEGV"),
        pytest.param("import os\nos.abort()", 134, "SIGABRT", "SIGABRT", marks=pytest.mark.full),
        (
            "import os\nos.kill(os.getpid(), 9)",
            137,
            "SIGKILL",
            "the model was killed: exit status 137 (SIGKILL)",
        ),
        pytest.param(
            "import os\nos.kill(os.getpid(), 15)", 143, "SIGTERM", "SIGTERM", marks=pytest.mark.full
        ),
        ("syntax error", 1, None, "exit status 1"),
    ],
)
def test_failed_job_delivers_artefacts(
    host: Machine, program: str, status: int, signal: str | None, words: str
) -> None:
    tail = program if program == "syntax error" else WRITES + program
    job, result = host.train(tail)
    assert (result["outcome"], result["exit_code"]) == ("failed", 4), result
    assert (result["training_exit_status"], result["signal"]) == (status, signal)
    assert words in result["reason"]
    if program != "syntax error":
        assert "artefacts/partial" in host.names(job)
    if "oops" in program:
        assert b"ValueError: oops" in host.log(job)
    assert host.manifest(job)["outcome"] == "failed"
    host.assert_clean(job)


def test_exit_0_without_artefacts_is_nothing_delivered(host: Machine) -> None:
    _, result = host.train("import os\nprint('lost in the buffer')\nos._exit(0)")
    assert result["outcome"] == "nothing-delivered"


def test_missing_model_module_fails(host: Machine) -> None:
    job, result = host.train("", model="missing")
    assert result["exit_code"] == 4 and b"No module named missing" in host.log(job)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nprint('done')\n",
            marks=pytest.mark.full,
        ),
        "import subprocess\nsubprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 600'])\nprint('done')\n",
    ],
)
def test_remaining_child_processes_do_not_block_job_end(host: Machine, program: str) -> None:
    job, result = host.train(WRITES + program)
    assert result["outcome"] == "trained" and host.log(job) == b"done\n"
    host.assert_clean(job)


def test_out_of_memory_is_reported(host: Machine) -> None:
    program = WRITES + "import time\ntime.sleep(1)\nblocks = [bytearray(10 << 20) for _ in range(100)]"
    job, result = host.train(program, memory_bytes=64 << 20)
    assert (result["exit_code"], result["training_exit_status"]) == (4, 137)
    assert result["out_of_memory"]["limit_bytes"] == 64 << 20
    # An engine on a busy host may never tell that it was the kernel; then the peak is what was seen last.
    if "probably" not in result["reason"]:
        assert result["out_of_memory"]["peak_bytes"] == 64 << 20
    assert (
        "out of memory" in result["reason"] and "64 MiB" in result["reason"] and "--memory" in result["hint"]
    )
    assert "artefacts/partial" in host.names(job)
    assert host.manifest(job)["out_of_memory"] == result["out_of_memory"]
    host.assert_clean(job)


def test_child_out_of_memory_is_reported(host: Machine) -> None:
    program = WRITES + (
        "import subprocess, sys, time\n"
        "child = subprocess.run([sys.executable, '-c', 'blocks = [bytearray(10 << 20) for _ in range(100)]'])\n"
        "time.sleep(1)\nprint('child', child.returncode)\nsys.exit(5)\n"
    )
    job, result = host.train(program, memory_bytes=64 << 20)
    assert host.log(job) == b"child -9\n"
    assert result["training_exit_status"] == 5 and result["out_of_memory"]["limit_bytes"] == 64 << 20
    assert "out of memory" in result["reason"]


@pytest.mark.parametrize("ignores_sigterm", [False, True])
def test_timeout_stops_training(host: Machine, ignores_sigterm: bool) -> None:
    program = WRITES + (
        "import signal, sys, time\n"
        + ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if ignores_sigterm else
           "def stop(*_):\n    open('artefacts/stopped','w').write('x')\n    print('bye', flush=True)\n    sys.exit(0)\n"
           "signal.signal(signal.SIGTERM, stop)\n")
        + "print('up', flush=True)\nwhile True:\n    time.sleep(0.1)\n"
    )  # fmt: skip
    job, result = host.train(program, timeout_s=5.0, grace_s=2.0 if ignores_sigterm else 60.0)
    assert (result["outcome"], result["exit_code"]) == ("timed-out", 5)
    assert "5 s" in result["reason"]
    assert result["training_exit_status"] == (137 if ignores_sigterm else 0)
    assert result["out_of_memory"] is None
    names = host.names(job)
    assert "artefacts/partial" in names and ("artefacts/stopped" in names) == (not ignores_sigterm)
    assert host.log(job) == (b"up\n" if ignores_sigterm else b"up\nbye\n")
    host.assert_clean(job)


@pytest.mark.parametrize("ignores_sigterm", [False, True])
def test_cancel_stops_training(host: Machine, ignores_sigterm: bool) -> None:
    program = WRITES + (
        "import signal, time\n"
        + ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if ignores_sigterm else "")
        + "print('up', flush=True)\nwhile True:\n    time.sleep(0.1)\n"
    )
    job = host.start(program, grace_s=1.0)
    host.until(job, "training", text=b"up\n")
    assert host.call("cancel", id=job, by="me@there")["state"] == "running"
    host.call("cancel", id=job, by="somebody else")
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"], result["reason"]) == (
        "cancelled", 6, "cancelled by me@there",
    )  # fmt: skip
    assert "artefacts/partial" in host.names(job) and host.log(job) == b"up\n"
    assert host.call("cancel", id=job, by="late")["state"] == "finished"
    assert host.call("status", id=job)["result"] == result
    host.assert_clean(job)


def test_cancel_before_training_ends_job(host: Machine) -> None:
    for _ in range(3):
        job = host.start(WRITES)
        host.call("cancel", id=job)
        result = host.wait(job)
        # The job may end before the cancel.
        assert result["outcome"] in ("cancelled", "trained")
        # A cancel that comes while it packs leaves artefacts/ to `fetch`.
        if "unpacked" in result:
            host.pack(job)
        host.assert_clean(job)


def test_expired_lease_cancels_job(host: Machine) -> None:
    job = host.start("print('up', flush=True)\nimport time\ntime.sleep(600)", lease_s=20.0)
    host.until(job, "training", text=b"up\n")
    # Longer than the lease; each read has more time than a busy machine takes.
    begun = time.monotonic()
    while time.monotonic() < begun + 22:
        time.sleep(2)
        answer = host.call("read", id=job, offset=0, wait=0, renew=True)
        assert answer["status"]["state"] == "running"
    # Nothing renews the lease any more: reading alone does not. A clock that jumps changes nothing.
    os.utime(host.job_dir(job) / "lease", (0, 0))
    end = time.monotonic() + 240
    while host.status(job)["state"] != "finished" and time.monotonic() < end:
        time.sleep(0.5)
    result = host.call("status", id=job)["result"]
    assert result["outcome"] == "cancelled" and "controller is gone" in result["reason"]
    host.assert_clean(job)


def test_sigterm_to_worker_cancels_job(host: Machine) -> None:
    job = host.start(WRITES + "print('up', flush=True)\nimport time\ntime.sleep(600)")
    host.until(job, "training", text=b"up\n")
    host.kill_worker(job, 15)
    result = host.wait(job)
    assert result["outcome"] == "cancelled" and "SIGTERM" in result["reason"]
    assert "artefacts/partial" in host.names(job)
    host.assert_clean(job)


OUTPUTS = {
    "binary": b"bytes(range(256)) * 4096",
    "one line of 64 MiB": b"b'x' * (64 << 20)",
    "carriage returns": rb"b''.join(b'\r%d%%' % n for n in range(100000))",
    "for others": rb"b'\x1b[31mred\x1b[0m ::set-output name=a::b\n::add-mask::x\n::error::y\n\xff\xfe{{ 1 }}\n'",
    "200,000 lines": rb"b''.join(b'line %d\n' % n for n in range(200000))",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_kept_byte_for_byte(host: Machine, name: str) -> None:
    expression = OUTPUTS[name].decode()
    program = (
        WRITES
        + f"import os\ndata = {expression}\nat = 0\nwhile at < len(data):\n    at += os.write(1, data[at:at + 1000003])\n"
    )
    job, result = host.train(program)
    assert result["outcome"] == "trained"
    assert host.log(job) == eval(expression)
    with host.archive(job) as archive:
        file = archive.extractfile("job/log.txt")
        assert file is not None and file.read() == host.log(job)


def peak_kib(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1])


def test_log_over_its_limit_uses_flat_memory(host: Machine) -> None:
    program = WRITES + (
        "import os, time\nblock = b'0123456789abcdef' * 65536\n"
        "for n in range(200):\n    os.write(1, b'<%04d>' % n + block)\nprint('the end', flush=True)\n" + HOLD
    )
    limit = 16 << 20
    job = host.start(program, {"NEVER": "not in there"}, log_max_bytes=limit)
    host.until(job, "training", text=b"<0000>")
    pid = host.status(job)["pid"]
    # Long before the end the log has its first half and does not grow.
    end = time.monotonic() + 240
    while len(host.log(job)) < limit // 2 and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)
    assert peak_kib(pid) < 100 << 10
    host.go(job)
    result = host.wait(job)
    log = host.log(job)
    assert result["outcome"] == "trained" and len(log) < limit + 200
    assert log.startswith(b"<0000>0123") and log.endswith(b"the end\n")
    missing = re.search(rb"\n\[train-classifier: (\d+) bytes of the log are missing here\]\n", log)
    assert missing
    assert len(log) - len(missing[0]) + int(missing[1]) == 200 * ((1 << 20) + 6) + 8
    host.assert_clean(job)


def test_usage_is_sampled(host: Machine) -> None:
    job, _ = host.train(WRITES + "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass\n")
    with open(host.job_dir(job) / "usage.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and int(rows[0]["memory_bytes"]) > 0 and float(rows[0]["cpu_percent"]) >= 0


def test_removed_container_ends_job_as_lost(host: Machine) -> None:
    job = host.start(WRITES + "print('up', flush=True)\nimport time\ntime.sleep(600)")
    host.until(job, "training", text=b"up\n")
    docker("rm", "-f", f"tc-job-{job}")
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"]) == ("lost", 10), result
    assert "artefacts/partial" in host.names(job)
    host.assert_clean(job)


def test_two_jobs_at_once_are_independent(host: Machine) -> None:
    program = "import os, time\nopen('artefacts/mine','w').write(os.environ['WHO'])\ntime.sleep(2)\nprint(os.environ['WHO'], os.listdir('artefacts'))"
    jobs = {who: host.start(program, environment={"WHO": who}) for who in ("a", "b")}
    for who, job in jobs.items():
        assert host.wait(job)["outcome"] == "trained"
        assert host.log(job) == f"{who} ['mine']\n".encode()
        host.assert_clean(job)
