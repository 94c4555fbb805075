"""What a node of a Slurm cluster has, from the lines of a probe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

#: Slurm rejects a node with less memory than its line says, and what the kernel reports differs a little
#: from boot to boot.
MEMORY_STEP_MIB = 256
HARDWARE = ("CPUs", "Boards", "SocketsPerBoard", "CoresPerSocket", "ThreadsPerCore")


def card_type(model: str) -> str:
    """Return a card's model as a type of GRES: `NVIDIA GeForce RTX 4090` is `rtx_4090`."""
    text = re.sub(r"^(?:nvidia|geforce|tesla|\s)+", "", model.lower())
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_") or "gpu"


def _numbers(text: str) -> dict[str, str]:
    """The numbers in what `slurmd -C` printed."""
    return dict(re.findall(r"(\w+)=(\d{1,12})(?!\S)", text, re.ASCII))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _cards(lines: Iterable[str]) -> list[dict[str, str]]:
    """The cards in the order of their device files, as /proc has them, else as nvidia-smi does."""
    cards: dict[str, dict[int, dict[str, str]]] = {"proc": {}, "smi": {}}
    for line in lines:
        source, _, rest = line.partition(" ")
        fields = [field.strip() for field in rest.split(",", 2)]
        if source in cards and len(fields) == 3 and fields[0].isdigit():
            number, uuid, model = int(fields[0]), fields[1], fields[2]
            cards[source][number] = {
                "file": f"/dev/nvidia{number}",
                "uuid": uuid,
                "type": card_type(model),
            }
    best = cards["proc"] or cards["smi"]
    return [best[number] for number in sorted(best)]


def description(lines: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node as slurm.conf and gres.conf need it; `problem` says why it cannot be one, if so.

    `lines` are the probe's: `name NAME`, `address ADDRESS`, `version slurm-wlm 24.11.5`, `hardware` and what
    `slurmd -C` printed, `pci N`, and for each card `proc MINOR, UUID, MODEL` or `smi INDEX, UUID, MODEL`.
    `settings` has `address`, `cpus`, `reserved_mib`, `gpus` (`auto`, or device files) and `more`.
    """
    answers = dict(line.split(" ", 1) for line in lines if " " in line)
    hardware = _numbers(answers.get("hardware", ""))
    # Root of a node must not write the controller's slurm.conf or exports by what the node answers.
    reached = answers.get("address", "") if _is_address(answers.get("address", "")) else ""
    detected = _cards(lines)
    if settings["gpus"] == "auto":
        cards = detected
    else:
        by_file = {card["file"]: card for card in detected}
        cards = [by_file.get(file, {"file": file, "uuid": "", "type": "gpu"}) for file in settings["gpus"]]
    total = int(hardware.get("RealMemory", "0"))
    memory = (total - int(settings["reserved_mib"])) // MEMORY_STEP_MIB * MEMORY_STEP_MIB
    keys = {name: hardware[name] for name in HARDWARE if name in hardware}
    if int(settings["cpus"]):
        keys = {"CPUs": str(settings["cpus"])}
    keys["RealMemory"] = str(memory)
    keys |= {str(name): str(value) for name, value in settings["more"].items()}
    pci = int(answers.get("pci", "0"))
    problem = ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", answers.get("name", "")):
        problem = (
            f"its name is {answers.get('name', '')!r}, and Slurm takes letters, digits and hyphens: "
            "hostnamectl set-hostname NAME, and run again."
        )
    elif not settings["address"] and not reached:
        problem = (
            "there is no way from it to the controller: set slurm_controller_address to an address that "
            "nodes reach, or slurm_node_address."
        )
    elif hardware and memory <= 0:
        problem = (
            f"of its {total} MiB of memory slurm_node_memory_reserved_mib keeps "
            f"{settings['reserved_mib']}: lower it, and run again."
        )
    elif settings["gpus"] == "auto" and pci > len(detected):
        problem = (
            f"it has {pci} NVIDIA cards, and the driver shows {len(detected)}: jobs would lose the others. "
            "Look at nvidia-smi there (role nvidia_driver), or name the device files that Slurm may use "
            "(slurm_node_gpus)."
        )
    return {
        "name": answers.get("name", ""),
        "address": settings["address"] or reached,
        "version": (re.findall(r"[\d.]+", answers.get("version", "")) or [""])[-1],
        "keys": keys,
        "cards": cards,
        "problem": problem,
    }


def registered(answer: Mapping[str, Any], node: Mapping[str, Any], controller: str) -> str:
    """Return why a node does not work, from what `scontrol show node` said; empty where it does.

    A node that is drained is registered: whoever drained it had a reason.
    """
    output = " ".join(str(answer.get("stdout") or "").split())
    if answer.get("rc", 0) or "NodeName=" not in output:
        refusal = " ".join(str(answer.get("stderr") or output or "nothing").split())
        return (
            f"{controller} does not know the node {node['name']} ({refusal}). Run site.yml for both; "
            "journalctl -u slurmctld there, and -u slurmd here, have the logs."
        )
    state = re.search(r" State=(\S+)", output)
    reason = re.search(r" Reason=(.*?)(?: \[|$)", output)
    text = state[1] if state else ""
    if "INVALID_REG" in text:
        return f"{controller} refuses it: {reason[1] if reason else text}. slurm.conf says more than it has."
    if text.endswith("*") or "NOT_RESPONDING" in text or "UNKNOWN" in text:
        return (
            f"slurmd runs, and {controller} does not reach it at {node['address']}, port 6818 ({text}): "
            "look for a firewall, or set slurm_node_address."
        )
    return ""


def account_problem(here: str, there: str, controller: str) -> str:
    """Return why jobs would run as another account on a node, from lines of passwd(5); empty if they do not.

    Slurm goes by numbers. An account that the controller lacks has no jobs.
    """
    node, submitters = (
        dict(line.split(":")[0:3:2] for line in lines.splitlines() if line.count(":") > 2)
        for lines in (here, there)
    )
    different = [
        f"{name} (number {number} on {controller}, {node.get(name, 'missing')} here)"
        for name, number in submitters.items()
        if node.get(name) != number
    ]
    if not different:
        return ""
    return (
        f"Slurm knows accounts by their numbers, which differ: {', '.join(different)}. Give each the same on "
        "every host (usermod -u NUMBER NAME, while it runs nothing), and run again."
    )


def mount_unit(path: str) -> str:
    """Return the name of systemd's unit that mounts a folder: `srv-train\\x2dclassifier.mount`."""
    parts = [part for part in path.split("/") if part]
    escaped = [
        re.sub(
            r"[^A-Za-z0-9:_.]", lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), part
        )
        for part in parts
    ]
    return re.sub(r"^\.", r"\\x2e", "-".join(escaped)) + ".mount"


class FilterModule:
    """The filters of the role slurm_node."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "slurm_node_account_problem": account_problem,
            "slurm_node_description": description,
            "slurm_node_mount_unit": mount_unit,
            "slurm_node_registered": registered,
        }
