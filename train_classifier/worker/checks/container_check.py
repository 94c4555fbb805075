"""A container as a job would have it: whether it gets the image, the state folder and the GPUs."""

from typing import Any

from train_classifier.core.errors import TrainClassifierError
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.checks.finding import Finding, from_error, ok, skip, warn
from train_classifier.worker.containers import engine, image
from train_classifier.worker.containers.context import Context
from train_classifier.worker.environments.stored_environments import Environment
from train_classifier.worker.gpus import visibility
from train_classifier.worker.gpus.devices import Discovery
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Host


def check(host: Host, request: dict[str, Any], discovery: Discovery) -> list[Finding]:
    """Run a container as a job would, and check that it gets the GPUs and the framework sees them."""
    with_gpu = bool(discovery.gpus)
    spec = JobSpec("doctor", "doctor", Repository("doctor", "0" * 16), image=request.get("image"))
    name = "image"
    try:
        client = engine.connect()
        reference = image.reference_for(host, spec, with_gpu)
        present = image.find_local(client, reference)
        if present is None:
            message = f"image {reference} is not on this host; the first job pulls it"
            return [warn("image", message, image.BOOTSTRAP)]
        context = Context(client, host, Store(host.state_dir(request)).make())
        name = "state-in-container"
        image.require_visible_state_folder(context, present.id)
        name = "image"
        resolved = image.resolve(context, spec, with_gpu)
    except TrainClassifierError as error:
        return [from_error(name, error)]
    versions = f"Python {resolved.python_version}, {_frameworks(resolved.frameworks)}"
    result = [
        ok("state-in-container", "containers see the state folder"),
        ok("image", f"{reference}: {versions}"),
    ]
    if not with_gpu:
        return result
    environment = Environment("", (), (), {}, resolved.python)
    mode = host.gpu_check or "framework"
    for name, how in (("gpu-in-container", "device"), ("gpu-in-framework", "framework")):
        if how == "framework" and mode != how:
            result.append(skip(name, f"not tried: gpu_check is {mode} on this host"))
            continue
        try:
            proven = visibility.prove(context, resolved, environment, discovery.gpus, how)
            result.append((ok if proven["mode"] == how else warn)(name, str(proven["detail"])))
        except TrainClassifierError as error:
            result.append(from_error(name, error))
    return result


def _frameworks(frameworks: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(frameworks.items())) or "no framework"
