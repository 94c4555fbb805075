"""GPUs in real containers on the simulated GPU host (CDI, Docker 26). It proves placement, and no CUDA."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hosts.gpu.world import UUIDS, world
from hosts.machine import TestHost

pytestmark = [pytest.mark.engine, pytest.mark.host]

SOURCE = "/opt/train-classifier-gpu-test"
#: Runs on the host, as root: proves with the given mode and cards, and prints the answer or the refusal.
PROGRAM = """
import json, sys
sys.path.insert(0, {source!r})
from pathlib import Path
from train_classifier.core.errors import TrainClassifierError
from train_classifier.core.job import JobSpec
from train_classifier.core.job import Repository
from train_classifier.worker.containers import engine, helper, image
from train_classifier.worker.containers.context import Context
from train_classifier.worker.gpus import devices
from train_classifier.worker.gpus import visibility
from train_classifier.worker.environments.stored_environments import Environment
from train_classifier.worker.system.host import Host
from train_classifier.worker.state.store import Store

order = json.loads(sys.argv[1])
host = Host.load()
store = Store(Path(order["state"])).make()
client = engine.connect()
spec = JobSpec("x", "m", Repository("r", "0" * 16), image=order.get("image"))
messages = []
try:
    context = Context(client, host, store, None, messages.append)
    base = image.resolve(context, spec, True)
    cards = [card for card in devices.discover(host).gpus if card.uuid in order["uuids"]]
    runs = []
    real = helper.run_helper
    helper.run_helper = lambda *a, **k: runs.append(1) or real(*a, **k)
    for _ in range(order.get("times", 1)):
        answer = visibility.prove(context, base, Environment("", (), (), {{}}, base.python), cards, order["mode"])
    print(json.dumps({{"answer": answer, "runs": len(runs), "messages": messages}}))
except TrainClassifierError as error:
    print(json.dumps({{"code": int(error.code), "reason": error.reason, "hint": error.hint, "detail": error.detail}}))
"""
#: A framework that answers as TensorFlow does, with a fixed number of cards.
TENSORFLOW = """
__version__ = "2.17.0"
class config:
    @staticmethod
    def list_physical_devices(kind):
        print("Cannot dlopen some GPU libraries")
        return ["/physical_device:GPU:%d" % n for n in range(COUNT)]
"""


@pytest.fixture(scope="module")
def host(gpu_host: TestHost) -> TestHost:
    package = Path(__file__).parents[2] / "train_classifier"
    gpu_host.shell(f"rm -rf {SOURCE}; mkdir -p {SOURCE}")
    subprocess.run(["docker", "cp", package, f"{gpu_host.container}:{SOURCE}/"], check=True)
    gpu_host.write(f"{SOURCE}/program.py", PROGRAM.format(source=SOURCE))
    return gpu_host


def prove(host: TestHost, **order: Any) -> dict[str, Any]:
    order = {"state": "/var/lib/train-classifier/state", "uuids": list(UUIDS), **order}
    printed = host.exec("python3", f"{SOURCE}/program.py", json.dumps(order)).stdout
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer


def image_with(host: TestHost, name: str, files: dict[str, str]) -> str:
    """An image on the host whose Python has these modules."""
    folder = f"/tmp/{name}"
    host.shell(f"rm -rf {folder}; mkdir -p {folder}")
    base = host.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "tc-slim").split()[0]
    for file, text in files.items():
        host.write(f"{folder}/{file}", text)
    host.write(f"{folder}/Dockerfile", f"FROM {base}\nCOPY *.py /usr/lib/python3/dist-packages/\n")
    host.docker("build", "-q", "-t", f"tc-env-{name}:1", folder)
    return f"tc-env-{name}:1"


@pytest.mark.parametrize("uuids", [UUIDS[:1], UUIDS[1:], UUIDS])
def test_container_gets_exactly_its_cards(host: TestHost, uuids: tuple[str, ...]) -> None:
    nodes = [f"/dev/nvidia{UUIDS.index(uuid)}" for uuid in uuids]
    outcome = prove(host, mode="device", uuids=list(uuids))
    assert outcome["answer"] == {"mode": "device", "proven": False, "detail": f"devices {', '.join(nodes)}"}


def test_mode_off_is_recorded_and_runs_nothing(host: TestHost) -> None:
    outcome = prove(host, mode="off")
    assert (outcome["answer"]["mode"], outcome["answer"]["proven"], outcome["runs"]) == ("off", False, 0)


def test_missing_framework_is_recorded_as_device_check(host: TestHost) -> None:
    outcome = prove(host, mode="framework")
    assert (outcome["answer"]["mode"], outcome["answer"]["proven"]) == ("device", False)
    assert any("tensorflow, torch and jax are not installed" in message for message in outcome["messages"])


def test_framework_result_is_cached(host: TestHost) -> None:
    image = image_with(host, "sees", {"tensorflow.py": TENSORFLOW.replace("COUNT", "2")})
    outcome = prove(host, mode="framework", image=image, times=3, state="/var/lib/train-classifier/once")
    assert outcome["answer"] == {"mode": "framework", "proven": True, "detail": "tensorflow 2.17.0: 2 GPUs"}
    assert outcome["runs"] == 1
    # The result is stored for each set of cards.
    outcome = prove(
        host, mode="framework", image=image, uuids=[UUIDS[0]], state="/var/lib/train-classifier/once"
    )
    assert (outcome["code"], "sees 2 of 1 GPUs" in outcome["reason"]) == (8, True)


def test_framework_without_gpu_is_refused_with_its_output(host: TestHost) -> None:
    image = image_with(host, "blind", {"tensorflow.py": TENSORFLOW.replace("COUNT", "0")})
    for _ in range(2):
        outcome = prove(host, mode="framework", image=image)
        assert outcome["code"] == 8
        assert "tensorflow 2.17.0" in outcome["reason"]
        assert "sees 0 of 2 GPUs" in outcome["reason"]
        assert "Cannot dlopen some GPU libraries" in outcome["detail"]
    assert host.docker("ps", "-aq", "--filter", "label=train-classifier.kind=probe") == ""


def test_every_installed_framework_must_see_the_cards(host: TestHost) -> None:
    blind = "class cuda:\n    is_available = staticmethod(lambda: False)\n__version__ = '2.6'\n"
    image = image_with(host, "mixed", {"tensorflow.py": TENSORFLOW.replace("COUNT", "2"), "torch.py": blind})
    outcome = prove(host, mode="framework", image=image)
    assert (outcome["code"], "torch 2.6" in outcome["reason"]) == (8, True)
    broken = image_with(
        host,
        "broken",
        {"tensorflow.py": TENSORFLOW.replace("COUNT", "2"), "torch.py": "import nothing_there\n"},
    )
    outcome = prove(host, mode="framework", image=broken)
    assert outcome["answer"]["detail"] == "tensorflow 2.17.0: 2 GPUs; does not import: torch"


def test_host_check_finds_the_cards(host: TestHost) -> None:
    program = (
        f"import sys, json; sys.path.insert(0, {SOURCE!r}); from train_classifier.worker.checks import host_check; "
        "from train_classifier.worker.system.host import Host; "
        "print(json.dumps(host_check.check(Host.load(), {'gpus': 2, 'deep': True})))"
    )
    answer = json.loads(host.exec("python3", "-c", program).stdout)
    assert answer["ready"], answer["checks"]
    assert [card["uuid"] for card in answer["gpus"]] == list(UUIDS)
    assert answer["engine"]["cdi"] is True
    assert {check["name"]: check["status"] for check in answer["checks"]}["gpu-in-container"] == "ok"
    host.write(
        "/etc/simulated-gpus.json", world(fail={"exit": 18, "message": "Driver/library version mismatch"})
    )
    try:
        answer = json.loads(host.exec("python3", "-c", program).stdout)
    finally:
        host.write("/etc/simulated-gpus.json", world())
    failed = [check for check in answer["checks"] if check["status"] == "fail"]
    assert [(check["name"], check["code"]) for check in failed] == [("gpu", 8)]
    assert "reboot the host" in failed[0]["hint"]
