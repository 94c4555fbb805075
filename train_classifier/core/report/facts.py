"""What is known about a job that ended, as words for people: from result.json and manifest.json."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from train_classifier.core.errors import ExitCode
from train_classifier.core.job import in_order
from train_classifier.core.report.metrics import number
from train_classifier.core.text import SHORTEST_S, show_bytes, show_seconds

#: Most metrics that are listed; metrics.json may hold any number.
MAX_METRICS = 100
#: Packages whose versions people ask for first.
FRAMEWORKS = (
    "tensorflow", "tensorflow-cpu", "keras", "torch", "torchvision", "lightning", "pytorch-lightning", "jax",
    "flax", "transformers", "ultralytics", "scikit-learn", "xgboost", "lightgbm", "numpy",
)  # fmt: skip

SENTENCES = {
    ExitCode.TRAINED: "trained",
    ExitCode.BUG: "failed because of a bug in train-classifier",
    ExitCode.BAD_INPUT: "was refused",
    ExitCode.NOT_READY: "did not start: the host is not ready",
    ExitCode.FAILED: "failed",
    ExitCode.TIMED_OUT: "reached its time limit",
    ExitCode.CANCELLED: "was cancelled",
    ExitCode.NOTHING_DELIVERED: "trained, but delivered no artefacts",
    ExitCode.NO_GPU: "found no GPU",
    ExitCode.NO_ENVIRONMENT: "did not start: its environment could not be built",
    ExitCode.LOST: "was lost",
    ExitCode.OUT_OF_TOUCH: "may still run: the connection to its host is lost",
}


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return number(value) is not None


def exit_code(result: Mapping[str, Any]) -> ExitCode:
    """Return how a job ended."""
    try:
        return ExitCode(int(result["exit_code"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return ExitCode.BUG


def headline(result: Mapping[str, Any]) -> str:
    """Return the outcome as one sentence without a full stop, the model's name in front."""
    return f"{result.get('model') or 'The job'} {SENTENCES[exit_code(result)]}"


def repository(manifest: Mapping[str, Any]) -> str:
    """Return name and commit of the repository."""
    origin = mapping(manifest.get("repository"))
    commit = str(origin.get("commit") or "")[:12]
    if commit and origin.get("dirty"):
        commit += " with changes"
    return " ".join(filter(None, (str(origin.get("name") or ""), commit)))


def gpus(result: Mapping[str, Any]) -> str:
    """Return the names of the job's GPUs."""
    value = result.get("gpus")
    cards = [mapping(gpu) for gpu in value] if isinstance(value, list) else []
    if not cards:
        return "none, trained on the CPU" if exit_code(result) is ExitCode.TRAINED else "none"
    names = [str(gpu.get("name") or gpu.get("uuid") or "GPU") for gpu in cards]
    counted = ", ".join(
        f"{name} (\u00d7{names.count(name)})" if names.count(name) > 1 else name
        for name in dict.fromkeys(names)
    )
    check = mapping(result.get("gpu_check"))
    return counted if check.get("proven") else f"{counted} (framework: not proven)"


def durations(result: Mapping[str, Any], more: Optional[Mapping[str, float]] = None) -> str:
    """Return how long the phases took; `more` are those of the controller."""
    times = {**mapping(result.get("seconds")), **(more or {})}
    phases = in_order({name: value for name, value in times.items() if is_number(value) and value >= 0})
    parts = [f"{name} {show_seconds(value)}" for name, value in phases.items() if value >= SHORTEST_S]
    return f"{show_seconds(sum(phases.values()))}: {', '.join(parts)}" if parts else ""


def ending(result: Mapping[str, Any]) -> str:
    """Return exit code and outcome, and what the model's own end says."""
    code = exit_code(result)
    words = [f"{int(code)} ({result.get('outcome') or 'unknown'})"]
    status, signal = result.get("training_exit_status"), result.get("signal")
    if status is not None and code is not ExitCode.TRAINED:
        words.append(f"the model's exit status is {status}")
    if signal:
        words.append(f"killed by {signal}")
    memory = mapping(result.get("out_of_memory"))
    if is_number(memory.get("limit_bytes")):
        words.append(f"out of memory at {show_bytes(memory['limit_bytes'])}")
    return ", ".join(words)


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return what could not be delivered or read."""
    value = result.get("remarks")
    return [str(remark) for remark in value] if isinstance(value, list) else []


def failure_texts(result: Mapping[str, Any]) -> list[str]:
    """Return reason, hint and detail of a job that did not end well."""
    if exit_code(result) is ExitCode.TRAINED:
        return []
    parts = (str(result.get(key) or "") for key in ("reason", "hint", "detail"))
    return [part for part in parts if part.strip()]


def metrics(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the final metrics as name and value."""
    named = mapping(result.get("metrics")).items()
    rows = [(str(name)[:80], f"{value:.6g}") for name, value in named if is_number(value)]
    return rows[:MAX_METRICS]


def environment(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a model ran in: image, Python, frameworks, driver, system, limits."""
    packages = mapping(manifest.get("environment")).get("packages")
    versions = dict(
        str(line).lower().split("==", 1)
        for line in (packages if isinstance(packages, list) else [])
        if str(line).count("==") == 1
    )
    cards = manifest.get("gpus")
    drivers = {
        str(mapping(card).get("driver") or "") for card in (cards if isinstance(cards, list) else [])
    } - {""}
    host, limits = mapping(manifest.get("host")), mapping(manifest.get("limits"))
    memory, cpus = host.get("memory_bytes"), host.get("cpus")
    size = [f"{cpus} processors"] if is_number(cpus) else []
    size += [show_bytes(memory)] if memory is not None and is_number(memory) else []
    return [
        ("Image", str(mapping(manifest.get("image")).get("reference") or "")),
        ("Python", str(mapping(manifest.get("environment")).get("python") or "")),
        ("Frameworks", ", ".join(f"{name} {versions[name]}" for name in FRAMEWORKS if name in versions)),
        ("NVIDIA driver", ", ".join(sorted(drivers))),
        ("System", ", ".join(filter(None, (str(host.get("os") or ""), str(host.get("kernel") or ""))))),
        ("Machine", ", ".join(size)),
        ("Limits", _limits(limits)),
    ]


def _limits(limits: Mapping[str, Any]) -> str:
    words = []
    if is_number(limits.get("timeout_s")):
        words.append(f"time {show_seconds(limits['timeout_s'])}")
    if is_number(limits.get("memory_bytes")):
        words.append(f"memory {show_bytes(limits['memory_bytes'])}")
    if is_number(limits.get("cpus")):
        words.append(f"processors {limits['cpus']:g}")
    if limits.get("network") == "none":
        words.append("no network")
    return ", ".join(words)


def words(value: Any) -> list[str]:
    """Return a list of texts as it is, an empty one for anything else."""
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return [str(word) for word in value] if is_list else []
