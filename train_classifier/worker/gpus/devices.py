"""The host's GPUs: their list, their memory, and how a container gets exactly its own GPUs."""

import csv
import dataclasses
import os
import re
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from train_classifier.core import options
from train_classifier.core.errors import NoGpu
from train_classifier.core.options import show_option
from train_classifier.worker.containers import engine
from train_classifier.worker.gpus import cdi
from train_classifier.worker.system.host import Host, account_name

FIELDS = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version", "mig.mode.current")
REBOOT_AFTER_UPGRADE = (
    "reboot the host; the role nvidia_driver holds the packages so that this does not happen by itself"
)
#: A healthy driver answers within a second; without persistence it needs several.
TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True)
class Process:
    """A process that uses a GPU, of a job or not."""

    pid: int
    name: str
    memory_mib: Optional[int]


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One card. Memory in MiB; None where the driver reports [N/A]."""

    index: int
    uuid: str
    name: str
    memory_total_mib: Optional[int]
    memory_free_mib: Optional[int]
    driver: str
    mig: bool = False
    busy_by: tuple[Process, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON-ready data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Discovery:
    """The answer of nvidia-smi: the cards, or why there are none."""

    gpus: tuple[Gpu, ...] = ()
    #: None when the tool succeeded.
    problem: Optional[str] = None
    hint: Optional[str] = None
    #: The tool's own message.
    detail: Optional[str] = None


def _number(text: str) -> Optional[int]:
    """Return a number, None for [N/A], [Not Supported], [Unknown Error] and similar values."""
    try:
        return int(float(text.strip().split()[0]))
    except (IndexError, ValueError, OverflowError):
        return None


def run_nvidia_smi(host: Host, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the host's nvidia-smi. Raises OSError, and TimeoutExpired when the driver hangs."""
    return subprocess.run(
        [host.nvidia_smi, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
        encoding="utf-8",
        errors="replace",
    )


def explain(output: str) -> tuple[str, str]:
    """Return what happened and what to do, from the output of a failing nvidia-smi."""
    last = output.strip().splitlines()[-1] if output.strip() else "it printed nothing"
    if "Driver/library version mismatch" in output:
        return (
            "the NVIDIA driver was upgraded while the old one is loaded (driver/library version mismatch)",
            REBOOT_AFTER_UPGRADE,
        )
    if "No devices were found" in output:
        return "nvidia-smi finds no GPU", "see `dmesg | grep -i -e nvrm -e xid` on the host"
    if "fell off the bus" in output or "GPU is lost" in output:
        return (
            f"a GPU is lost: {last}",
            "power the host off and on; if it happens again, the card or its slot is faulty",
        )
    if "couldn't communicate with the NVIDIA driver" in output:
        return "the NVIDIA driver is not loaded", "run the role nvidia_driver on the host, then reboot it"
    return f"nvidia-smi failed: {last}", "run nvidia-smi on the host"


def discover(host: Host, processes: bool = True) -> Discovery:
    """Read the cards, and with `processes` their users, from nvidia-smi. A failing tool raises nothing."""
    query = ["--query-gpu=" + ",".join(FIELDS), "--format=csv,noheader,nounits"]
    try:
        result = run_nvidia_smi(host, *query)
    except FileNotFoundError:
        return Discovery((), "there is no nvidia-smi on this host", "run the role nvidia_driver on it")
    except PermissionError as error:
        return Discovery((), f"nvidia-smi cannot be run: {error}", "run the role nvidia_driver on this host")
    except subprocess.TimeoutExpired:
        return Discovery(
            (), f"nvidia-smi did not answer within {TIMEOUT_S:.0f} s", "reboot the host: its driver hangs"
        )
    if result.returncode != 0:
        return Discovery((), *explain(result.stdout), detail=result.stdout.strip()[-2000:] or None)
    gpus = []
    for row in csv.reader(result.stdout.splitlines(), skipinitialspace=True):
        values = [value.strip() for value in row]
        # A failing card has a line of error text among the valid lines.
        if len(values) != len(FIELDS) or _number(values[0]) is None or not values[1].startswith("GPU-"):
            continue
        index, uuid, name, total, free, driver, mig = values
        gpus.append(
            Gpu(
                _number(index) or 0,
                uuid,
                name,
                _number(total),
                _number(free),
                driver,
                mig.lower() == "enabled",
            )
        )
    if not gpus:
        detail = result.stdout.strip()[-2000:] or None
        return Discovery((), *explain(result.stdout or "No devices were found"), detail=detail)
    if processes:
        users = _processes(host)
        gpus = [dataclasses.replace(gpu, busy_by=tuple(users.get(gpu.uuid, ()))) for gpu in gpus]
    return Discovery(tuple(sorted(gpus, key=lambda gpu: gpu.index)))


def _processes(host: Host) -> dict[str, list[Process]]:
    """Return the processes on each card; none where the query is not supported."""
    users: dict[str, list[Process]] = {}
    try:
        query = "--query-compute-apps=gpu_uuid,pid,process_name,used_memory"
        result = run_nvidia_smi(host, query, "--format=csv,noheader,nounits")
    except (OSError, subprocess.TimeoutExpired):
        return users
    lines = result.stdout.splitlines() if result.returncode == 0 else ()
    for row in csv.reader(lines, skipinitialspace=True):
        if len(row) == 4 and row[0].startswith("GPU-") and _number(row[1]) is not None:
            process = Process(_number(row[1]) or 0, row[2].strip(), _number(row[3]))
            users.setdefault(row[0].strip(), []).append(process)
    return users


#: Follows the reason why `auto` uses the CPU.
ON_CPU = f": training on the CPU, as {show_option('gpus')} auto allows"


def gpu_count(requested: Union[int, str], discovery: Discovery) -> tuple[int, Optional[str]]:
    """Return the number of GPUs of a job, and for `auto` a message for people. Raises NoGpu.

    More GPUs than the host has are refused at once: the wait would never end.
    """
    if requested == "auto":
        if discovery.gpus:
            return 1, None
        return 0, f"no GPU on this host ({discovery.problem}){ON_CPU}"
    count = int(requested)
    if count == 0:
        return 0, None
    gpus = show_option("gpus")
    hint = f"ask for the CPU with {gpus} 0, or for whatever there is with {gpus} auto"
    if not discovery.gpus:
        raise NoGpu(f"no GPU: {discovery.problem}", f"{discovery.hint}; or {hint}", discovery.detail)
    if count > len(discovery.gpus):
        has = f"{len(discovery.gpus)} GPU" + ("s" if len(discovery.gpus) != 1 else "")
        raise NoGpu(
            f"{count} GPUs are asked for, this host has {has}",
            f"ask for fewer with {gpus}, or choose another host",
        )
    return count, None


def _floor(min_vram_mib: Optional[int]) -> int:
    """Return the MiB that a card must have: the default where the job names no number."""
    return int(options.default("min_vram")) if min_vram_mib is None else min_vram_mib


def big_enough(gpu: Gpu, min_vram_mib: Optional[int]) -> bool:
    """Tell whether a card's total memory reaches the minimum; unknown memory ([N/A]) is accepted."""
    return gpu.memory_total_mib is None or gpu.memory_total_mib >= _floor(min_vram_mib)


def free_enough(gpu: Gpu, min_vram_mib: Optional[int]) -> bool:
    """Tell whether the requested memory is free; without a requested number, always True."""
    return min_vram_mib is None or gpu.memory_free_mib is None or gpu.memory_free_mib >= min_vram_mib


#: The driver uses a part of a card's memory itself: a GTX 970 (4041 MiB) never has 4000 MiB free.
USABLE = 0.9


def require_free(
    count: int, discovery: Discovery, min_vram_mib: Optional[int], job_cards: Collection[str] = ()
) -> None:
    """Raise NoGpu when fewer than `count` cards have the minimum, or nearly all of their memory, free.

    Cards in `job_cards` belong to jobs, which may use their memory; unknown memory ([N/A]) is accepted.
    """
    floor = _floor(min_vram_mib)
    full = [
        gpu
        for gpu in discovery.gpus
        if gpu.uuid not in job_cards
        and gpu.memory_free_mib is not None
        and gpu.memory_free_mib < min(floor, (gpu.memory_total_mib or floor) * USABLE)
    ]
    if len(discovery.gpus) - len(full) < count:
        cards = ", ".join(
            f"GPU {gpu.index} ({gpu.name}) has {gpu.memory_free_mib} of {gpu.memory_total_mib} MiB free"
            + (f", used by {show_users(gpu)}" if gpu.busy_by else "")
            for gpu in full
        )
        raise NoGpu(
            f"{cards}; wanted {floor} MiB",
            "nvidia-smi on the host names who uses it; what a killed run left, kill by its pid",
        )


def require_vram(count: int, discovery: Discovery, min_vram_mib: Optional[int]) -> list[str]:
    """Raise NoGpu when fewer than `count` cards reach the minimum; return messages about unknown memory."""
    good = [gpu for gpu in discovery.gpus if big_enough(gpu, min_vram_mib)]
    if len(good) < count:
        floor = _floor(min_vram_mib)
        cards = ", ".join(
            f"GPU {gpu.index} ({gpu.name}) has {gpu.memory_total_mib} MiB" for gpu in discovery.gpus
        )
        plain = "" if min_vram_mib is not None else " (the default floor)"
        raise NoGpu(
            f"{count} of at least {floor} MiB{plain} asked for: {cards}",
            f"ask for less with {show_option('min_vram')}, or choose another host",
        )
    return [
        f"GPU {gpu.index} ({gpu.name}) does not report its memory ([N/A]): the floor could not be checked"
        for gpu in good
        if gpu.memory_total_mib is None
    ]


def show_users(gpu: Gpu) -> str:
    """Return the users of a card, for people: process names, pids, accounts."""
    return ", ".join(f"{process.name} ({_pid_and_owner(process)})" for process in gpu.busy_by)


def _pid_and_owner(process: Process) -> str:
    try:
        return f"pid {process.pid}, {account_name(os.stat(f'/proc/{process.pid}').st_uid)}"
    except OSError:
        return f"pid {process.pid}"


def describe_use(host: Host, uuids: Collection[str]) -> str:
    """Return a sentence about the memory of these cards and who uses it now, without names of processes."""
    sentences = []
    for gpu in discover(host).gpus:
        if gpu.uuid in uuids:
            size = "an unknown size" if gpu.memory_total_mib is None else f"{gpu.memory_total_mib} MiB"
            users = ", ".join(
                f"a process ({_pid_and_owner(process)})"
                + (f" with {process.memory_mib} MiB" if process.memory_mib else "")
                for process in gpu.busy_by
            )
            sharing = f"it is also used by {users}" if users else "nobody else uses it"
            sentences.append(f"GPU {gpu.index} ({gpu.name}) has {size} of memory, and {sharing}")
    return "; ".join(sentences)


def device_options(client: Any, gpus: Sequence[Gpu], root: Path = Path("/")) -> dict[str, Any]:
    """Return the keywords of docker's create that give a container exactly these cards.

    Raises NoGpu when the engine cannot do that (cdi.gpu_access).
    """
    from docker.types import DeviceRequest

    info = engine.retry(client.info)
    _, names = cdi.gpu_access(info, root)
    if names:
        chosen = []
        for card in gpus:
            name = next((name for name in (card.uuid, str(card.index)) if name in names), None)
            if name is None:
                folders = ", ".join(info["CDISpecDirs"])
                raise NoGpu(
                    f"no CDI specification in {folders} names GPU {card.index} ({card.uuid})",
                    "on the host: sudo nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml",
                )
            chosen.append(f"{cdi.KIND}={name}")
        return {"device_requests": [DeviceRequest(driver="cdi", device_ids=chosen)]}
    request = DeviceRequest(device_ids=[card.uuid for card in gpus], capabilities=[["gpu"]])
    options: dict[str, Any] = {"device_requests": [request]}
    if int(re.match(r"\d*", str(info.get("ServerVersion", "")))[0] or 0) < 25:  # type: ignore[index]
        # Without these nodes in the container's own list, a daemon-reload of systemd removes the GPU access.
        options["devices"] = [f"{node}:{node}:rw" for node in device_nodes(gpus, root)]
    return options


def driver_cards(root: Path = Path("/")) -> dict[str, str]:
    """Return the device node of each card by its UUID, in the order of their PCI addresses.

    The driver shows them all, also to a process that may use only some, and so sees only these by nvidia-smi.
    """
    nodes = {}
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        text = path.read_text(encoding="utf-8", errors="replace")
        uuid, minor = re.search(r"GPU UUID:\s*(\S+)", text), re.search(r"Device Minor:\s*(\d+)", text)
        if uuid and minor:
            nodes[uuid[1]] = f"/dev/nvidia{minor[1]}"
    return nodes


def device_nodes(gpus: Sequence[Gpu], root: Path = Path("/")) -> list[str]:
    """Return the device nodes that these cards need, those that exist."""
    known = driver_cards(root)
    nodes = [known.get(card.uuid, f"/dev/nvidia{card.index}") for card in gpus]
    nodes += [f"/dev/{name}" for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")]
    return [node for node in nodes if (root / node.lstrip("/")).exists()]
