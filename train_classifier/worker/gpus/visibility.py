"""Checks before the training that a job will see its GPUs: by framework, by devices, or not at all."""

import hashlib
import json
import pkgutil
import time
from collections.abc import Sequence
from typing import Any

from train_classifier.core.errors import NoGpu
from train_classifier.core.options import show_option
from train_classifier.worker.containers import helper, inside_answer
from train_classifier.worker.containers.context import Context
from train_classifier.worker.containers.image import Image
from train_classifier.worker.environments.stored_environments import Environment
from train_classifier.worker.gpus import devices
from train_classifier.worker.gpus.devices import Gpu
from train_classifier.worker.state.files import read_json, write_json
from train_classifier.worker.system.host import boot_id

#: TensorFlow compiles kernels for a card without prebuilt binaries, which takes minutes.
TIMEOUT_S = 900.0
FRAMEWORKS = ("tensorflow", "torch", "jax")
HINT = (
    f"the image's CUDA must suit the driver and the card: try another {show_option('image')}, "
    f"or {show_option('gpus')} 0 for the CPU; "
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
    stored = read_json(path)
    if isinstance(stored, dict):
        proof: dict[str, Any] = stored["found"]
        return proof
    if mode == "framework":
        context.say("checking that the framework sees the GPU")
        proof = _by_framework(context, image, environment, gpus)
    else:
        proof = {"mode": mode, "proven": False, "detail": _by_device(context, image, gpus)}
    if proof["mode"] != mode:
        context.say(proof["detail"])
    write_json(path, {"found": proof, "at": time.time()})
    return proof


def _key(image: Image, environment: Environment, gpus: Sequence[Gpu], mode: str) -> str:
    program = pkgutil.get_data("train_classifier.worker.containers.inside", "list_gpus.py") or b""
    inputs = [
        mode,
        image.id,
        environment.hash,
        sorted(card.uuid for card in gpus),
        sorted({card.driver for card in gpus}),
        boot_id(),
        hashlib.sha256(program).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:40]


def _by_framework(
    context: Context, image: Image, environment: Environment, gpus: Sequence[Gpu]
) -> dict[str, Any]:
    program = (pkgutil.get_data("train_classifier.worker.containers.inside", "list_gpus.py") or b"").decode()
    variables = {
        **environment.defaults,
        **environment.variables,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",
        "USER": "job",
    }
    command = [environment.python, "-c", program]
    status, output = _run(context, image, gpus, command, mounts=environment.mounts, environment=variables)
    frameworks = inside_answer.read(output)
    if not _is_valid(frameworks):
        raise NoGpu(
            f"the GPU check in image {image.reference} failed (exit status {status})", HINT, _tail(output)
        )
    importable = {name: result for name, result in frameworks.items() if result.get("gpus") is not None}
    broken = {name: result for name, result in frameworks.items() if result.get("gpus") is None}
    wrong = {name: result for name, result in importable.items() if result["gpus"] != len(gpus)}
    if wrong:
        name, result = next(iter(wrong.items()))
        raise NoGpu(
            f"{name} {result['version']} in image {image.reference} sees {result['gpus']} of {len(gpus)} "
            f"GPUs (driver {gpus[0].driver}, {gpus[0].name})",
            HINT,
            result["output"].strip(),
        )
    if importable:
        listed = ", ".join(f"{name} {result['version']}" for name, result in importable.items())
        detail = f"{listed}: {len(gpus)} GPU" + ("s" if len(gpus) != 1 else "")
        if broken:
            detail += f"; does not import: {', '.join(broken)}"
        return {"mode": "framework", "proven": True, "detail": detail}
    finding = _by_device(context, image, gpus)
    why = f"{', '.join(broken)} does not import" if broken else "tensorflow, torch and jax are not installed"
    return {"mode": "device", "proven": False, "detail": f"no framework to check ({why}); {finding}"}


def _by_device(context: Context, image: Image, gpus: Sequence[Gpu]) -> str:
    """Check the device nodes of exactly these cards and return the finding. Raises NoGpu."""
    status, output = _run(context, image, gpus, ["/bin/sh", "-c", _LIST_DEVICES])
    nodes = sorted(output.decode("utf-8", "replace").split())
    expected = sorted(node for node in devices.device_nodes(gpus, context.host.root) if node[-1].isdigit())
    if status != 0 or len(nodes) != len(gpus) or (expected and nodes != expected):
        raise NoGpu(
            f"the container sees {', '.join(nodes) or 'no GPU device'}, expected {', '.join(expected)}",
            "run the role nvidia_container_toolkit on this host; `train-classifier doctor` checks it",
            _tail(output),
        )
    return f"devices {', '.join(nodes)}"


def _run(
    context: Context, image: Image, gpus: Sequence[Gpu], program: Sequence[str], **more: Any
) -> tuple[int, bytes]:
    import docker.errors

    check = helper.Helper(
        image.id,
        program,
        user=context.host.job_user(),
        labels=context.labels("probe", tuple(card.uuid for card in gpus)),
        limits=context.host.limits("the GPU check"),
        network=False,
        options=devices.device_options(context.client, gpus, context.host.root),
        **more,
    )
    try:
        return helper.run_helper(context, check, timeout=TIMEOUT_S)
    except docker.errors.APIError as error:
        detail = str(error.explanation or error)
        raise NoGpu("the container engine cannot give the GPU to a container", HINT, detail) from error
    except helper.LimitReached as error:
        raise NoGpu(error.reason, error.hint) from error
    except TimeoutError as error:
        raise NoGpu(f"the GPU check did not end within {TIMEOUT_S:.0f} s", HINT) from error


def _is_valid(frameworks: Any) -> bool:
    """Tell whether this is a valid answer of the check: image and environment may print anything."""
    return isinstance(frameworks, dict) and all(
        isinstance(result, dict)
        and name in FRAMEWORKS
        and (result.get("gpus") is None or type(result["gpus"]) is int)
        and isinstance(result.get("output"), str)
        and (result.get("gpus") is None or isinstance(result.get("version"), str))
        for name, result in frameworks.items()
    )


def _tail(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()[-3000:]
