"""Filters of the role nvidia_driver: which cards are on the bus, and which driver serves them all."""

from __future__ import annotations

import re

NVIDIA = "0x10de"
# PCI classes: 0300xx VGA controller, 0302xx 3D controller, 0680xx other bridge (an NVSwitch).
CARD_CLASSES = ("0x0300", "0x0302")
BRIDGE_CLASS = "0x0680"
# Whatever is installed from these source packages is the driver and is held, not just what the role names.
SOURCES = re.compile(
    r"nvidia-(graphics-drivers|open-gpu-kernel-modules|persistenced|modprobe|kernel|driver|fabricmanager)"
    r"|fabric-?manager|linux-restricted-(modules|signatures)"
)


def _architecture(device: int, table: list[dict]) -> dict:
    for row in table:
        if row["first"] <= device <= row["last"]:
            return row
    newest = max(row["last"] for row in table)
    if device > newest:
        return {
            "name": "newer than this role knows",
            "module": "open",
            "first_branch": 580,
            "last_branch": None,
        }
    if device < min(row["first"] for row in table):
        return {"name": "older than Maxwell", "module": "none", "first_branch": None, "last_branch": 470}
    return {"name": "unknown", "module": "unknown", "first_branch": None, "last_branch": None}


def cards(lines: list[str], table: list[dict]) -> list[dict]:
    """NVIDIA's cards among lines of `slot vendor device class`, each with its architecture of `table`."""
    found = []
    for line in lines:
        fields = line.split()
        if len(fields) != 4:
            continue
        slot, vendor, device, pci_class = (field.lower() for field in fields)
        if vendor == NVIDIA and pci_class.startswith(CARD_CLASSES):
            row = _architecture(int(device, 16), table)
            found.append(
                {
                    "slot": slot,
                    "id": f"10de:{device.removeprefix('0x')}",
                    "architecture": row["name"],
                    "module": row["module"],
                    "first_branch": row["first_branch"],
                    "last_branch": row["last_branch"],
                }
            )
    return found


def switches(lines: list[str]) -> list[str]:
    """The slots of NVIDIA's NVSwitch bridges among lines of `slot vendor device class`."""
    rows = [line.lower().split() for line in lines]
    return [row[0] for row in rows if len(row) == 4 and row[1] == NVIDIA and row[3].startswith(BRIDGE_CLASS)]


def status(lines: list[str], table: list[dict], kernel: str, reboot_file: str) -> dict:
    """What the probe of tasks/inspect.yml saw, as `nvidia_driver_status`."""
    seen: dict[str, list[str]] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        seen.setdefault(word, []).append(rest.strip())
    loaded, installed = seen.get("loaded", [""])[0], seen.get("installed", [""])[0]
    mismatch = bool(loaded and installed and loaded != installed)
    nouveau = "nouveau" in seen
    pending = []
    if mismatch:
        pending.append(
            f"the loaded kernel module is {loaded}, the installed driver {installed} "
            "(what nvidia-smi calls a driver/library version mismatch)"
        )
    if nouveau and installed:
        pending.append("nouveau is loaded and holds the card; it is blacklisted from the next boot on")
    if "reboot" in seen:
        packages = seen["reboot"][0]
        pending.append(f"{reboot_file} asks for it" + (f" ({packages})" if packages else ""))
    packages = [fields for fields in (line.split() for line in seen.get("package", [])) if len(fields) == 3]
    return {
        "cards": cards(seen.get("pci", []), table),
        "switches": switches(seen.get("pci", [])),
        "loaded": loaded,
        "installed": installed,
        "mismatch": mismatch,
        "nouveau": nouveau,
        "secure_boot": "1" in seen.get("secureboot", []),
        "kernel": kernel,
        "kernel_running": seen.get("running", [""])[0] == kernel,
        "reboot_pending": pending,
        "packages": sorted({name for _, source, name in packages if SOURCES.match(source)}),
        "held": sorted({name.partition(":")[0] for name in seen.get("held", [])}),
    }


def plan(
    cards: list[dict], distribution_branch: int, source: str = "auto", branch: int = 0, module: str = "auto"
) -> dict:
    """The driver that serves every card: `{source, branch, module, problem}`; problem a sentence or empty.

    `distribution_branch` is what the host's distribution packages; `branch` 0 leaves the choice here.
    """
    answer = {"source": source, "branch": branch, "module": module, "problem": ""}

    def refuse(sentence: str) -> dict:
        return {**answer, "problem": sentence}

    def named(some: list[dict]) -> str:
        return ", ".join(f"{card['slot']} ({card['id']}, {card['architecture']})" for card in some)

    old = [card for card in cards if card["module"] == "none"]
    if old:
        return refuse(
            f"The card {named(old)} needs the driver branch 470 or older, which no longer gets fixes: "
            "take it out, "
            "or leave this host out of the inventory."
        )
    unknown = [card for card in cards if card["module"] == "unknown"]
    if unknown and module == "auto":
        return refuse(
            f"The card {named(unknown)} is not in this role's table: set nvidia_driver_module to open or "
            "proprietary (and nvidia_driver_branch) for this host."
        )
    only_proprietary = [card for card in cards if card["module"] == "proprietary"]
    only_open = [card for card in cards if card["module"] == "open"]
    if only_proprietary and only_open:
        return refuse(
            f"No driver serves all cards of this host: {named(only_proprietary)} needs the "
            "proprietary module, "
            f"{named(only_open)} the open one. Take one of them out."
        )
    least = max([card["first_branch"] or 0 for card in cards], default=0)
    most = min([card["last_branch"] or 9999 for card in cards], default=9999)

    if answer["source"] == "auto":
        wanted = branch or distribution_branch
        serves = least <= wanted <= most and wanted == distribution_branch
        answer["source"] = "distribution" if serves else "cuda_repository"
    if not answer["branch"]:
        # 580 is the last branch for Maxwell, Pascal and Volta, and new enough for every card in the table.
        answer["branch"] = distribution_branch if answer["source"] == "distribution" else 580
    if answer["source"] == "distribution" and answer["branch"] != distribution_branch:
        return refuse(
            f"This distribution packages the driver branch {distribution_branch}, not "
            f"{answer['branch']}: set "
            "nvidia_driver_source to cuda_repository, or leave nvidia_driver_branch out."
        )
    if answer["branch"] < least:
        return refuse(
            f"The branch {answer['branch']} does not know the card {named(cards)}: it needs {least} "
            "or newer. Set "
            "nvidia_driver_source to cuda_repository and leave nvidia_driver_branch out."
        )
    if answer["branch"] > most:
        return refuse(
            f"The branch {answer['branch']} no longer serves the card {named(cards)}: the last that "
            f"does is {most}. "
            f"Set nvidia_driver_branch to {most}."
        )
    if module == "auto":
        if only_proprietary:
            answer["module"] = "proprietary"
        elif only_open:
            answer["module"] = "open"
        else:
            # Before 560 NVIDIA called the open module a preview on some cards.
            answer["module"] = "open" if answer["branch"] >= 560 else "proprietary"
    elif module == "open" and only_proprietary:
        return refuse(
            f"The open kernel module does not serve {named(only_proprietary)}: set "
            "nvidia_driver_module to auto."
        )
    elif module == "proprietary" and only_open:
        return refuse(
            f"The proprietary kernel module does not serve {named(only_open)}: set "
            "nvidia_driver_module to auto."
        )
    return answer


class FilterModule:
    """What Ansible asks a filter plugin for."""

    def filters(self) -> dict:
        return {"nvidia_driver_status": status, "nvidia_driver_plan": plan}
