"""Checks that a job can get GPUs on this host: card, driver, nvidia-smi, memory, and the engine."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any, Optional, Union

from train_classifier.core.errors import ExitCode, NoGpu, NotReady
from train_classifier.worker.checks import engine_check
from train_classifier.worker.checks.finding import Finding, fail, from_error, ok, skip, warn
from train_classifier.worker.gpus import cdi, devices
from train_classifier.worker.gpus.devices import Discovery
from train_classifier.worker.system.host import Host

DRIVER_ROLE = "run the role nvidia_driver on this host"
#: Errors of the card, not of a program (NVIDIA, XID errors).
CARD_FAULTS = {
    48: "uncorrectable memory error",
    63: "memory rows remapped",
    64: "memory rows could not be remapped",
    74: "NVLink error",
    79: "the card fell off the bus",
}
_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")


def text_of(path: Path) -> Optional[str]:
    """Return a small file's text, None when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def cards(root: Path) -> list[str]:
    """Return the PCI addresses of NVIDIA's display controllers (vendor 10de, class 0300 and 0302)."""
    addresses = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        kind = text_of(device / "class") or ""
        if text_of(device / "vendor") == "0x10de" and kind[:6] in ("0x0300", "0x0302"):
            addresses.append(device.name)
    return addresses


def loaded_driver(root: Path) -> Optional[str]:
    """Return the version of the kernel module that is loaded."""
    for path in ("proc/driver/nvidia/version", "sys/module/nvidia/version"):
        match = _VERSION.search(text_of(root / path) or "")
        if match:
            return match[1]
    return None


def installed_driver() -> Optional[str]:
    """Return the version of the kernel module on the disk, for the running kernel."""
    tool = shutil.which("modinfo", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if tool is None:
        return None
    # Debian renames the module's file, and modinfo does not follow modprobe's configuration.
    for module in ("nvidia", "nvidia-current"):
        try:
            process = subprocess.run(
                [tool, "-F", "version", module], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        match = _VERSION.search(process.stdout)
        if process.returncode == 0 and match:
            return match[1]
    return None


def driver(root: Path, works: bool = False) -> Finding:
    """Check that the driver is loaded and is the one that is installed. `works`: nvidia-smi lists cards."""
    name = "driver"
    loaded, installed = loaded_driver(root), installed_driver()
    if loaded and installed and loaded != installed and works:
        # A provider's driver beside packages: its own libraries fit the module that is loaded.
        return warn(name, f"NVIDIA driver {loaded} is loaded and works; {installed} is installed beside it")
    if loaded and installed and loaded != installed:
        return fail(
            name,
            f"NVIDIA driver {installed} is installed, but {loaded} is loaded",
            devices.REBOOT_AFTER_UPGRADE,
            ExitCode.NO_GPU,
        )
    if loaded:
        return ok(name, f"NVIDIA driver {loaded} is loaded")
    if not cards(root):
        # A simulated or passed-through card has no PCI entry: then the answer of nvidia-smi counts.
        return skip(name, "no NVIDIA card on this host's PCI bus")
    if (root / "sys/module/nouveau").exists():
        return fail(
            name,
            "the card is driven by nouveau",
            f"{DRIVER_ROLE} (it disables nouveau), then reboot",
            ExitCode.NO_GPU,
        )
    if installed and secure_boot(root):
        return fail(
            name,
            f"NVIDIA driver {installed} is installed, but Secure Boot is on and refuses its module",
            "install signed modules (Ubuntu: linux-modules-nvidia-*) or enrol a key with mokutil; reboot",
            ExitCode.NO_GPU,
        )
    if installed:
        return fail(
            name, f"NVIDIA driver {installed} is installed but not loaded", "reboot the host", ExitCode.NO_GPU
        )
    return fail(name, "the host has an NVIDIA card but no driver", DRIVER_ROLE, ExitCode.NO_GPU)


def secure_boot(root: Path) -> bool:
    """Tell whether Secure Boot is on (EFI variable SecureBoot: four bytes of attributes, then 1)."""
    for path in (root / "sys/firmware/efi/efivars").glob("SecureBoot-*"):
        try:
            return path.read_bytes()[-1:] == b"\x01"
        except OSError:
            return False
    return False


def gpu_containers(info: Optional[dict[str, Any]], root: Path) -> Finding:
    """Check that the engine can give a GPU to a container."""
    name = "gpu-containers"
    if info is None:
        return skip(name, "the engine does not answer")
    try:
        access, _ = cdi.gpu_access(info, root)
    except NoGpu as error:
        return from_error(name, error)
    return ok(name, f"the engine gives GPUs to containers by {access}")


def obstacle(host: Host, min_vram_mib: Optional[int], discovery: Discovery) -> Optional[str]:
    """Return why a job that accepts the CPU cannot use the host's cards."""
    try:
        devices.require_vram(1, discovery, min_vram_mib)
        info, _ = engine_check.ask()
    except NoGpu as error:
        return error.reason
    except (OSError, ValueError, NotReady):
        return None
    finding = gpu_containers(info, host.root)
    return finding.message if finding.status == "fail" else None


def kernel_faults(root: Path) -> list[Finding]:
    """Return the faults of cards in the kernel's log since boot, if this user may read it."""
    try:
        descriptor = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    text = b""
    try:
        while True:
            try:
                record = os.read(descriptor, 8192)
            except BrokenPipeError:
                # Overwritten while it was read: continue with the next record.
                continue
            if not record:
                break
            if b"Xid" in record:
                text += record
    except OSError:
        pass
    finally:
        os.close(descriptor)
    faults: dict[tuple[str, int], None] = {}
    for match in re.finditer(rb"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)", text):
        if int(match[2]) in CARD_FAULTS:
            faults[(match[1].decode(), int(match[2]))] = None
    return [
        warn(
            "xid",
            f"the card at {address} reported Xid {code} since boot: {CARD_FAULTS[code]}",
            "take the host out of service and look at the card: dmesg | grep Xid",
        )
        for address, code in faults
    ]


def check(
    host: Host,
    requested: Union[int, str],
    min_vram_mib: Optional[int],
    info: Optional[dict[str, Any]],
    discovery: Discovery,
    job_cards: Optional[Collection[str]] = None,
) -> list[Finding]:
    """Return all findings about GPUs; with `auto` none of them stops a job.

    `job_cards` are the cards that jobs have: memory that other processes use is then a failure. With None
    this is not checked, for a job that can wait for the memory.
    """
    if requested == 0:
        return [skip("gpu", "no GPU is asked for")]
    findings = [driver(host.root, bool(discovery.gpus))]
    try:
        count, message = devices.gpu_count(requested, discovery)
        if message:
            findings.append(warn("gpu", message, discovery.hint))
        else:
            names = ", ".join(f"{card.index}: {card.name}" for card in discovery.gpus)
            findings.append(
                ok("gpu", f"{len(discovery.gpus)} GPU{'s' if len(discovery.gpus) != 1 else ''} ({names})")
            )
    except NoGpu as error:
        count = 0
        if not discovery.gpus and findings[0].status == "skip" and not cards(host.root):
            findings.append(fail("gpu", f"no GPU: {discovery.problem}", error.hint, ExitCode.NO_GPU))
        else:
            findings.append(from_error("gpu", error))
    if discovery.gpus:
        findings += _card_findings(host, count, min_vram_mib, info, discovery, job_cards)
    if requested == "auto":
        findings = [
            warn(finding.name, finding.message + (devices.ON_CPU if count else ""), finding.hint)
            if finding.status == "fail"
            else finding
            for finding in findings
        ]
    return findings


def _memory(card: devices.Gpu) -> str:
    free = "" if card.memory_free_mib is None else f" ({card.memory_free_mib} free)"
    return f"{card.memory_total_mib} MiB{free}"


def _card_findings(
    host: Host,
    count: int,
    min_vram_mib: Optional[int],
    info: Optional[dict[str, Any]],
    discovery: Discovery,
    job_cards: Optional[Collection[str]],
) -> list[Finding]:
    findings = []
    try:
        unknown = devices.require_vram(count, discovery, min_vram_mib)
        if job_cards is not None:
            devices.require_free(count, discovery, min_vram_mib, job_cards)
        findings += [warn("gpu-memory", sentence) for sentence in unknown]
        if not unknown:
            findings.append(ok("gpu-memory", ", ".join(_memory(card) for card in discovery.gpus)))
    except NoGpu as error:
        findings.append(from_error("gpu-memory", error))
    findings.append(gpu_containers(info, host.root))
    for card in discovery.gpus:
        if card.mig:
            findings.append(
                warn(
                    "mig",
                    f"GPU {card.index} is split by MIG, and slices cannot be handed out",
                    f"on the host: nvidia-smi -i {card.index} -mig 0",
                )
            )
    return findings + kernel_faults(host.root)
