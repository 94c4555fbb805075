"""Checks before the training that a job will see its GPUs: by framework, by devices, or not at all."""

import hashlib
import json
import pkgutil
import time
from collections.abc import Sequence
from typing import Any

from train_classifier.core.errors import NoGpu
from train_classifier.worker.containers import answer as answers
from train_classifier.worker.containers import helper
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.environment import Environment
from train_classifier.worker.containers.image import Image
from train_classifier.worker.gpus import devices as gpu
from train_classifier.worker.gpus.devices import Gpu
from train_classifier.worker.state.files import read_json, write_json
from train_classifier.worker.system.host import boot_id

#: TensorFlow compiles kernels for a card without prebuilt binaries, which takes minutes.
TIMEOUT_S = 900.0
FRAMEWORKS = ("tensorflow", "torch", "jax")
HINT = (
    "the image's CUDA must suit the driver and the card: try another --image, or --gpus 0 for the CPU; "
    "`train-classifier doctor` checks the host"
)
_LIST_DEVICES = 'for node in /dev/nvidia[0-9]*; do [ -e "$node" ] && echo "$node"; done; exit 0'


def prove(
    context: Context, image: Image, environment: Environment, gpus: Sequence[Gpu], mode: str
) -> dict[str, Any]:
    """Return {mode, proven, detail} for result and manifest; only a framework's answer sets `proven` to True.

    Each of tensorflow, torch and jax that can be imported must list as many GPUs as the job has. A proof is
    stored for image, environment, cards, driver and boot. Raises NoGpu with the output of the framework.
    """
    if mode == "off":
        return {"mode": mode, "proven": False, "detail": "switched off (gpu_check = off)"}
    key = _key(image, environment, gpus, mode)
    path = context.store.proofs / f"{key}.json"
    remembered = read_json(path)
    if isinstance(remembered, dict):
        found: dict[str, Any] = remembered["found"]
        return found
    if mode == "framework":
        context.say("checking that the framework sees the GPU")
        found = _by_framework(context, image, environment, gpus)
    else:
        found = {"mode": mode, "proven": False, "detail": _by_device(context, image, gpus)}
    if found["mode"] != mode:
        context.say(found["detail"])
    write_json(path, {"found": found, "at": time.time()})
    return found


def _key(image: Image, environment: Environment, gpus: Sequence[Gpu], mode: str) -> str:
    program = pkgutil.get_data("train_classifier.worker.containers.inside", "list_gpus.py") or b""
    holds_for = [
        mode,
        image.id,
        environment.hash,
        sorted(card.uuid for card in gpus),
        sorted({card.driver for card in gpus}),
        boot_id(),
        hashlib.sha256(program).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(holds_for).encode()).hexdigest()[:40]


def _by_framework(
    context: Context, image: Image, environment: Environment, gpus: Sequence[Gpu]
) -> dict[str, Any]:
    program = (pkgutil.get_data("train_classifier.worker.containers.inside", "list_gpus.py") or b"").decode()
    variables = {**environment.variables, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp", "USER": "job"}
    asking = [image.python, "-c", program]
    status, output = _run(context, image, gpus, asking, mounts=environment.mounts, environment=variables)
    answer = answers.read(output)
    if not _makes_sense(answer):
        raise NoGpu(
            f"the GPU check in image {image.reference} failed (exit status {status})", HINT, _tail(output)
        )
    importing = {name: said for name, said in answer.items() if said.get("gpus") is not None}
    broken = {name: said for name, said in answer.items() if said.get("gpus") is None}
    blind = {name: said for name, said in importing.items() if said["gpus"] != len(gpus)}
    if blind:
        name, said = next(iter(blind.items()))
        raise NoGpu(
            f"{name} {said['version']} in image {image.reference} sees {said['gpus']} of {len(gpus)} GPUs "
            f"(driver {gpus[0].driver}, {gpus[0].name})",
            HINT,
            said["output"].strip(),
        )
    if importing:
        listed = ", ".join(f"{name} {said['version']}" for name, said in importing.items())
        detail = f"{listed}: {len(gpus)} GPU" + ("s" if len(gpus) != 1 else "")
        if broken:
            detail += f"; does not import: {', '.join(broken)}"
        return {"mode": "framework", "proven": True, "detail": detail}
    devices = _by_device(context, image, gpus)
    why = f"{', '.join(broken)} does not import" if broken else "neither tensorflow, torch nor jax is there"
    return {"mode": "device", "proven": False, "detail": f"no framework to ask ({why}); {devices}"}


def _by_device(context: Context, image: Image, gpus: Sequence[Gpu]) -> str:
    """Check the device nodes of exactly these cards and return the finding. Raises NoGpu."""
    status, output = _run(context, image, gpus, ["/bin/sh", "-c", _LIST_DEVICES])
    seen = sorted(output.decode("utf-8", "replace").split())
    wanted = sorted(node for node in gpu.device_nodes(gpus, context.host.root) if node[-1].isdigit())
    if status != 0 or len(seen) != len(gpus) or (wanted and seen != wanted):
        raise NoGpu(
            f"the container sees {', '.join(seen) or 'no GPU device'}, wanted {', '.join(wanted)}",
            "run the role nvidia_container_toolkit on this host; `train-classifier doctor` checks it",
            _tail(output),
        )
    return f"devices {', '.join(seen)}"


def _run(
    context: Context, image: Image, gpus: Sequence[Gpu], program: Sequence[str], **more: Any
) -> tuple[int, bytes]:
    import docker.errors

    checking = helper.Helper(
        image.id,
        program,
        user=context.host.job_user(),
        labels=context.labels("probe", tuple(card.uuid for card in gpus)),
        limits=context.host.limits("the GPU check"),
        network=False,
        options=gpu.device_options(context.client, gpus, context.host.root),
        **more,
    )
    try:
        return helper.run_helper(context, checking, timeout=TIMEOUT_S)
    except docker.errors.APIError as error:
        detail = str(error.explanation or error)
        raise NoGpu("the container engine cannot give the GPU to a container", HINT, detail) from error
    except helper.LimitReached as error:
        raise NoGpu(error.reason, error.hint) from error
    except TimeoutError as error:
        raise NoGpu(f"the GPU check did not end within {TIMEOUT_S:.0f} s", HINT) from error


def _makes_sense(answer: Any) -> bool:
    """Tell whether this is a valid answer of the check: image and environment may print anything."""
    return isinstance(answer, dict) and all(
        isinstance(said, dict)
        and name in FRAMEWORKS
        and (said.get("gpus") is None or type(said["gpus"]) is int)
        and isinstance(said.get("output"), str)
        and (said.get("gpus") is None or isinstance(said.get("version"), str))
        for name, said in answer.items()
    )


def _tail(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()[-3000:]
