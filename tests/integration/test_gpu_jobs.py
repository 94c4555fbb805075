"""Jobs and their GPUs through the real command line over ssh, on a host with two simulated cards.

A simulated GPU is no CUDA: device nodes, the CDI specification and nvidia-smi's answers are stand-ins, and the
framework that sees nothing is a module of three lines. Who gets which card, who waits and what is refused is real.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import json_output
import pytest
from documented import documented
from hosts.caller import Caller, archived
from hosts.gpu.world import UUIDS
from hosts.machine import TestHost
from loopback.world import tail, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.host]

NODES = {uuid: f"/dev/nvidia{index}" for index, uuid in enumerate(UUIDS)}
#: Prints the cards that it sees, then (with the argument `hold`) keeps them until the test ends it.
LOOK = """
import glob, json, os, shutil, subprocess, sys, time
smi = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout if shutil.which("nvidia-smi") else ""
seen = {"nodes": sorted(glob.glob("/dev/nvidia*")), "smi": smi.strip().splitlines(),
        "variables": {name: value for name, value in os.environ.items() if name.startswith("NVIDIA")}}
print(json.dumps(seen), flush=True)
open("artefacts/seen.json", "w").write(json.dumps(seen))
end = time.monotonic() + 200
while "hold" in sys.argv and not os.path.exists("/cache/let-go") and time.monotonic() < end:
    time.sleep(0.1)
"""
BLIND = """
__version__ = "2.17.0"
class config:
    @staticmethod
    def list_physical_devices(kind):
        print("Cannot dlopen some GPU libraries")
        return []
"""


def make_caller(host: TestHost, folder: Path) -> Caller:
    caller = Caller(host, folder)
    (caller.repo / "artefacts").mkdir()
    caller.model("look", LOOK)
    return caller


@pytest.fixture
def caller(gpu_host: TestHost, tmp_path: Path) -> Iterator[Caller]:
    caller = make_caller(gpu_host, tmp_path)
    yield caller
    gpu_host.shell(f"rm -f {caller.state}/cache/*/let-go")


def sees_exactly(report: dict[str, Any], uuid: str) -> None:
    assert report["nodes"] == [NODES[uuid]]
    assert len(report["smi"]) == 1 and uuid in report["smi"][0]
    others = [other for other in UUIDS if other != uuid]
    assert not [other for other in others if other in json.dumps(report)]
    assert report["variables"].get("NVIDIA_VISIBLE_DEVICES") not in ("all", "0,1")


def refused_training(caller: Caller, *words: str) -> dict[str, Any]:
    """Train without getting a GPU and return the answer; no training began and nothing was delivered."""
    done = caller.run(*caller.train("look", "--json", *words))
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 8, tail(done.stderr)
    assert b'"nodes"' not in done.stderr and b"Traceback" not in done.stderr
    assert "training" not in (answer.get("seconds") or {})
    assert not (caller.work / "artefacts.tar.gz").exists()
    return answer


def test_each_job_gets_its_own_card_and_the_next_job_waits(caller: Caller) -> None:
    """The first two are a group, of which every job takes its own place in the queue."""
    words = ("--gpus", "1", "--detach", "--sweep", "number=1,2", "--", "hold")
    done = caller.run(*caller.train("look", *words))
    assert done.returncode == 0, tail(done.stderr)
    jobs = [f"{done.stdout.decode().strip()}0{number}" for number in (1, 2)]
    reports = {}
    for job in jobs:
        log = f"{caller.state}/jobs/{job}/log.txt"
        line = wait_until(lambda log=log: caller.host.shell(f"head -n1 {log} 2>/dev/null || :"), 90)
        reports[job] = json.loads(line)
        usage = f"{caller.state}/jobs/{job}/usage.csv"
        wait_until(lambda usage=usage: caller.host.shell(f"grep 354 {usage} 2>/dev/null || :"), 90)
    listed = {entry["id"]: entry for entry in json.loads(caller.run("list", "--json").stdout)}
    assigned = [listed[job]["gpus"] for job in jobs]
    assert sorted(assigned) == sorted([uuid] for uuid in UUIDS)
    for job in jobs:
        sees_exactly(reports[job], listed[job]["gpus"][0])

    listed_before = listed
    errors = caller.folder / "third"
    third = caller.start(*caller.train("look"), errors=errors)
    try:
        wait_until(lambda: b"waiting for a GPU" in errors.read_bytes(), 90)
        messages = errors.read_text()
        for job in jobs:
            assert f"job {job} (look) of trainer has it since" in messages
        listed = json.loads(caller.run("list", "--json").stdout)
        (waiting,) = [entry for entry in listed if entry["model"] == "look" and entry["id"] not in jobs]
        assert (waiting["phase"], waiting["gpus"]) == ("queue", [])
        assert "waiting for a GPU" in waiting["message"]
        training = [entry for entry in listed if entry["id"] in jobs]
        for (uuid,), figures in [(entry["gpus"], entry["figures"]) for entry in training]:
            assert figures["gpus"] == [{"uuid": uuid, "percent": 0, "memory_mib": 354}]
            assert "GPU 0 % 354.0 MiB" in figures["progress"]
        (cards,) = json.loads(caller.run("top", "--json").stdout)
        assert [card["job"]["id"] for card in cards["cards"]] == sorted(
            jobs, key=lambda job: listed_before[job]["gpus"]
        )
        assert [job["id"] for job in cards["queue"]] == [waiting["id"]]
        first = cards["cards"][0]
        assert (first["use_percent"], first["memory_used_mib"], first["temperature_c"]) == (0, 354, 41)
        shown = caller.run("top").stdout.decode()
        assert all(job in shown for job in (*jobs, waiting["id"])) and "1 waits for a GPU" in shown
    finally:
        caller.host.shell(f"for c in {caller.state}/cache/*; do touch $c/let-go; done")
        out, _ = third.communicate(timeout=120)
    assert third.returncode == 0, tail(errors.read_bytes())
    for job in jobs:
        assert caller.result(job)["outcome"] == "trained"
        # A row for its own card every few seconds, and none for the other's.
        text = caller.host.shell(f"cat {caller.state}/jobs/{job}/usage.csv")
        rows = list(csv.DictReader(text.splitlines()))
        assert {(row["gpu_uuid"], row["gpu_util_percent"], row["gpu_memory_mib"]) for row in rows} == {
            (listed_before[job]["gpus"][0], "0", "354")
        }
    result = caller.result(waiting["id"])
    (card,) = result["gpus"]
    sees_exactly(json.loads(out), card["uuid"])

    manifest = json.loads(archived(caller.work / "artefacts.tar.gz", "job/manifest.json"))
    json_output.validate("manifest", manifest)
    (recorded,) = manifest["gpus"]
    for file_name in ("manifest.json", "result.json"):
        keys = {
            key.removeprefix("gpus[].").partition("[")[0] for key in documented(file_name) if "gpus[]" in key
        }
        assert set(recorded) == keys
    assert recorded["uuid"] == card["uuid"]
    assert (recorded["name"], recorded["driver"]) == ("NVIDIA GeForce RTX 4090", "550.163.01")
    assert manifest["gpu_check"]["mode"] == "device"
    # Only device nodes were checked: no framework computed on them.
    assert manifest["gpu_check"]["proven"] is False
    assert NODES[card["uuid"]] in manifest["gpu_check"]["detail"]


def test_card_that_is_not_used_is_reported_and_then_freed(caller: Caller) -> None:
    """The stand-in says that no card is used."""
    words = ("--gpus", "1", "--idle-warning", "1s", "--max-idle", "6s", "--", "hold")
    done = caller.run(*caller.train("look", *words))
    assert done.returncode == 5, tail(done.stderr)
    assert b"the job has not used its GPU for" in done.stderr
    assert b"stopped because it had not used its GPU for 6.0 s" in done.stderr
    (entry, *_) = reversed(json.loads(caller.run("list", "--json").stdout))
    assert (entry["outcome"], len(entry["gpus"])) == ("timed-out", 1)


def test_too_many_gpus_are_refused(caller: Caller) -> None:
    answer = refused_training(caller, "--gpus", "3")
    assert "3 GPUs are asked for, this host has 2 GPUs" in answer["error"]["reason"]
    assert "--gpus" in answer["error"]["hint"]


def test_too_much_gpu_memory_is_refused(caller: Caller) -> None:
    answer = refused_training(caller, "--min-vram", "64GiB")
    assert "65536 MiB" in answer["error"]["reason"] and "24564" in answer["error"]["reason"]
    assert "--min-vram" in answer["error"]["hint"]


def test_framework_without_gpu_is_refused_before_training(caller: Caller) -> None:
    host = caller.host
    base = host.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "tc-slim").split()[0]
    host.write("/tmp/blind-job/tensorflow.py", BLIND)
    host.write("/tmp/blind-job/Dockerfile", f"FROM {base}\nCOPY *.py /usr/lib/python3/dist-packages/\n")
    host.docker("build", "-q", "-t", "tc-env-blind-job:1", "/tmp/blind-job")
    answer = refused_training(caller, "--gpu-check", "framework", "--image", "tc-env-blind-job:1")
    error = answer["error"]
    assert "tensorflow 2.17.0 in image tc-env-blind-job:1 sees 0 of 1 GPUs" in error["reason"]
    assert "driver 550.163.01" in error["reason"]
    assert "Cannot dlopen some GPU libraries" in error["detail"]
    assert host.containers() == []


def test_gpu_check_off_is_recorded_as_not_proven(caller: Caller) -> None:
    done = caller.run(*caller.train("look", "--gpus", "1", "--gpu-check", "off", "--json"))
    assert done.returncode == 0, tail(done.stderr)
    answer = json.loads(done.stdout)
    result = caller.result(answer["id"])
    expected = {"mode": "off", "proven": False, "detail": "switched off (gpu_check = off)"}
    assert result["gpu_check"] == expected
    archive = caller.work / "artefacts.tar.gz"
    manifest, report = (
        json.loads(archived(archive, name)) for name in ("job/manifest.json", "artefacts/seen.json")
    )
    assert manifest["gpu_check"] == expected
    # Not proven, but given: exactly one card, and the same in every file.
    (card,) = manifest["gpus"]
    assert result["gpus"] == [card]
    sees_exactly(report, card["uuid"])
    # The check would have started a container of its own.
    assert (
        "probe"
        not in caller.host.docker("ps", "-a", "--format", '{{.Label "train-classifier.kind"}}').split()
    )


def test_doctor_finds_the_cards(caller: Caller) -> None:
    done = caller.run("doctor", "--gpus", "2", "--json")
    assert done.returncode == 0, tail(done.stderr)
    answer = json.loads(done.stdout)
    (host,) = answer["hosts"]
    assert answer["ready"] is host["ready"] is True
    assert [card["uuid"] for card in host["gpus"]] == list(UUIDS)
    checks = {check["name"]: check for check in host["checks"]}
    assert (checks["gpu"]["status"], checks["gpu-in-container"]["status"]) == ("ok", "ok")
    assert all(node in checks["gpu-in-container"]["message"] for node in NODES.values())
    # The check by devices proves no framework, and says so.
    assert checks["gpu-in-framework"]["status"] == "skip"


def test_auto_uses_cpu_when_engine_cannot_give_a_gpu(caller: Caller, gpu_host: TestHost) -> None:
    gpu_host.shell("mv /etc/cdi/nvidia.json /root/")
    try:
        done = caller.run(*caller.train("look", "--gpus", "auto"))
        assert done.returncode == 0, tail(done.stderr)
        assert b"cannot give a GPU" in done.stderr and b"training on the CPU" in done.stderr
        assert json.loads(done.stdout)["nodes"] == []
        assert caller.run(*caller.train("look", "--gpus", "1")).returncode == 8
    finally:
        # An engine in a container does not see that the file has come back.
        gpu_host.shell("mv /root/nvidia.json /etc/cdi/; systemctl restart docker")


def test_host_without_gpu_is_refused_and_auto_uses_cpu(systemd_host: TestHost, tmp_path: Path) -> None:
    caller = make_caller(systemd_host, tmp_path)
    answer = refused_training(caller)
    assert "no GPU" in answer["error"]["reason"]
    assert "--gpus 0" in answer["error"]["hint"] and "--gpus auto" in answer["error"]["hint"]

    done = caller.run(*caller.train("look", "--gpus", "auto"))
    assert done.returncode == 0, tail(done.stderr)
    assert b"training on the CPU" in done.stderr
    assert json.loads(done.stdout)["nodes"] == []

    done = caller.run("doctor", "--gpus", "1", "--json")
    assert done.returncode == 8, tail(done.stderr)
    answer = json.loads(done.stdout)
    assert (answer["ready"], answer["exit_code"]) == (False, 8)
    (failed,) = [check for check in answer["hosts"][0]["checks"] if check["status"] == "fail"]
    assert (failed["name"], failed["code"]) == ("gpu", 8)
    assert "--gpus auto" in failed["hint"]
