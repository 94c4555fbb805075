"""Row 9: packing is limited, ends with its job's cancel, signals and lease, and reading never packs."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from worker_support import IMAGE, Machine, Refused, accounts, host_fixture

pytestmark = pytest.mark.engine
#: Takes many minutes to pack, and no room.
LONG = "print('up', flush=True)\nopen('artefacts/sparse', 'wb').truncate(150 << 30)\nopen('artefacts/x', 'w').write('x')\n"
host = host_fixture(accounts())


def until_packing(host: Machine, job: str) -> None:
    """Wait until a job is being packed."""
    host.until(job, "artefacts")
    end = time.monotonic() + 60
    while not list(host.job_dir(job).glob(".artefacts.tar.gz.*")):
        assert time.monotonic() < end, host.status(job)
        time.sleep(0.02)


def assert_kept(host: Machine, job: str, why: str) -> None:
    result = host.stored_result(job)
    assert result["archive"] is None and result["unpacked"]["why"] == why, result
    assert (host.job_dir(job) / "workspace" / "artefacts" / "x").exists()
    # Nothing is left of the partial archive, and reading packs nothing.
    assert host.call("read", id=job, offset=0)["result"] == result
    assert job in [line["id"] for line in host.call("list", all=True)["jobs"]]
    assert not list(host.job_dir(job).glob(".*")) and not (host.job_dir(job) / "run").exists()
    assert not (host.job_dir(job) / "artefacts.tar.gz").exists()


def test_09_too_large_artefacts_stay_on_host_and_are_reported(host: Machine) -> None:
    job, result = host.train(
        "open('artefacts/x', 'w').write('x')\nopen('artefacts/huge', 'wb').truncate(8 << 40)\n"
    )
    assert (result["outcome"], result["exit_code"]) == ("nothing-delivered", 7), result
    assert "8.0 TiB with its holes" in result["reason"] and "--max-size" in result["hint"]
    assert_kept(host, job, "too-large")


def test_09_fetch_packs_more_than_the_limit_when_told_to(host: Machine) -> None:
    program = "import os\nopen('artefacts/x', 'wb').write(os.urandom(3 << 20))\n"
    job, result = host.train(program, artefacts_max_bytes=1 << 20)
    assert result["exit_code"] == 7 and "3.0 MiB, more than the limit of 1.0 MiB" in result["reason"]
    assert_kept(host, job, "too-large")
    with pytest.raises(Refused, match="more than the limit") as refused:
        host.pack(job)
    assert refused.value.code == 2
    done = host.pack(job, 4 << 20)
    assert (done["outcome"], done["exit_code"], done["reason"]) == ("trained", 0, None)
    assert "artefacts/x" in host.names(job) and host.manifest(job)["outcome"] == "trained"
    host.assert_clean(job)


def test_09_failed_job_names_the_command_that_packs_its_artefacts(host: Machine) -> None:
    program = "import os\nopen('artefacts/x', 'wb').write(os.urandom(3 << 20))\nraise SystemExit(3)\n"
    job, result = host.train(program, artefacts_max_bytes=1 << 20)
    assert result["exit_code"] == 4 and "--max-size 3MiB" in result["unpacked"]["hint"]
    assert_kept(host, job, "too-large")
    with pytest.raises(Refused, match="more than the limit") as refused:
        host.pack(job)
    assert refused.value.error["hint"] == result["unpacked"]["hint"]
    with pytest.raises(Refused, match=r"3\.0 MiB, more than the limit of 1000 bytes"):
        host.pack(job, 1000)


def test_09_holes_do_not_count_against_the_limit(host: Machine) -> None:
    program = "open('artefacts/x', 'wb').truncate(3 << 20)\n"
    job, result = host.train(program, artefacts_max_bytes=1 << 20)
    assert result["outcome"] == "trained", result
    with host.archive(job) as archive:
        assert archive.getmember("artefacts/x").size == 3 << 20


def test_09_cancel_stops_packing(host: Machine) -> None:
    job = host.start(LONG)
    until_packing(host, job)
    host.call("cancel", id=job, by="me")
    host.until_finished(job)
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"]) == ("cancelled", 6), result
    assert "cancelled by me" in result["reason"] and "fetch" in result["hint"]
    assert_kept(host, job, "stopped")


def test_09_second_cancel_stops_packing_after_the_first(host: Machine) -> None:
    job = host.start(LONG + "import time\ntime.sleep(600)\n")
    host.until(job, "training", text=b"up\n")
    host.call("cancel", id=job, by="first")
    until_packing(host, job)
    host.call("cancel", id=job, by="second")
    host.until_finished(job)
    result = host.wait(job)
    assert (result["outcome"], result["reason"]) == ("cancelled", "cancelled by first")
    assert_kept(host, job, "stopped")


def test_09_sigterm_stops_packing(host: Machine) -> None:
    job = host.start(LONG)
    until_packing(host, job)
    host.kill_worker(job, signal.SIGTERM)
    host.until_finished(job)
    assert host.wait(job)["outcome"] == "cancelled"
    assert_kept(host, job, "stopped")


def test_09_expired_lease_stops_packing(host: Machine) -> None:
    job = host.start(LONG, lease_s=5.0)
    host.until_finished(job, timeout=120)
    result = host.stored_result(job)
    assert result["outcome"] == "cancelled" and "its controller is gone" in result["reason"], result
    assert_kept(host, job, "stopped")


def test_09_kill_while_packing_ends_job_as_lost(host: Machine) -> None:
    job = host.start(LONG)
    until_packing(host, job)
    host.kill_worker(job)
    host.until_worker_is_gone(job)
    result = host.wait(job)
    assert (result["outcome"], result["exit_code"]) == ("lost", 10) and host.log(job) == b"up\n"
    assert_kept(host, job, "lost")


def test_09_packing_ends_when_its_client_disconnects(host: Machine) -> None:
    job = host.start(LONG, artefacts_max_bytes=1)
    host.until_finished(job)
    process = subprocess.Popen(
        [*host.prefix(), host.python, "-I", str(host.program)], env=host.environment(), cwd="/",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout
    request = {"verb": "pack", "id": job, "most": 1 << 40, "state_dir": str(host.state)}
    process.stdin.write(json.dumps(request).encode())
    process.stdin.close()
    assert json.loads(process.stdout.readline())["state"] == "packing"
    # Other calls do not wait for it.
    assert host.status(job)["state"] == "finished"
    process.stdout.close()
    process.wait(60)
    assert_kept(host, job, "too-large")


def test_09_fifos_in_artefacts_do_not_block(host: Machine) -> None:
    program = (
        "import os\nos.mkfifo('artefacts/metrics.json')\nopen('artefacts/x', 'w')\n"
        "os.mkfifo('artefacts/fifo')\nos.mkdir('artefacts/history.csv')\n"
    )
    job, result = host.train(program)
    assert result["outcome"] == "trained" and result["metrics"] is None, result
    assert "metrics.json" in result["remarks"][0]
    host.assert_clean(job)


def test_09_container_killed_from_outside_is_not_out_of_memory(host: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone kills the process of a container")
    job = host.start("open('artefacts/x', 'w')\nprint('up', flush=True)\nimport time\ntime.sleep(600)\n")
    host.until(job, "training", text=b"up\n")
    inspected = subprocess.run(
        ["docker", "inspect", "-f", "{{.State.Pid}}", f"tc-job-{job}"],
        capture_output=True,
        text=True,
        check=True,
    )
    # Another container's lack of memory says nothing of this one.
    greedy = [
        "docker",
        "run",
        "--rm",
        "--network=none",
        "--memory=32m",
        "--memory-swap=32m",
        IMAGE,
        "python3",
    ]
    other = subprocess.run([*greedy, "-c", "bytearray(1 << 30)"], check=False)
    assert other.returncode == 137
    os.kill(int(inspected.stdout), signal.SIGKILL)
    result = host.wait(job)
    assert result["exit_code"] == 4 and result["training_exit_status"] == 137, result
    assert result["out_of_memory"] is None and "memory" not in result["reason"]
    host.assert_clean(job)


def test_09_no_empty_crash_file_is_left_behind(host: Machine) -> None:
    job = host.start("print('up', flush=True)\nimport time\ntime.sleep(600)\n")
    host.until(job, "training", text=b"up\n")
    assert Path(host.job_dir(job) / "crash.txt").exists()
    host.kill_worker(job)
    host.until_worker_is_gone(job)
    assert host.wait(job)["outcome"] == "lost"
    assert not (host.job_dir(job) / "crash.txt").exists()
