"""Filters of the role nvidia_driver: which cards are on the bus, and which driver serves them all."""

from __future__ import annotations

import re
from collections.abc import Sequence

NVIDIA = "0x10de"
# PCI classes: 0300xx VGA controller, 0302xx 3D controller, 0680xx other bridge (an NVSwitch).
CARD_CLASSES = ("0x0300", "0x0302")
BRIDGE_CLASS = "0x0680"
# A package that brings kernels, by its name: linux-image-amd64, but not linux-image-6.12.43+deb13-amd64.
META = re.compile(r"linux-image-(?!\d|extra|unsigned|.*-dbg)[a-z0-9.-]+")
# A kernel's name ends in its flavour: 6.1.0-25-cloud-amd64, 6.12.43+deb13-amd64, 6.8.0-1044-azure-fde.
FLAVOUR = re.compile(r"\d[\d.]*(?:[+~][^-]*)?(?:-\d[^-]*)*-([a-z].*)")
# A package with one kernel.
KERNEL = re.compile(r"linux-image-(?:unsigned-)?(\d.*)")
# Whatever is installed from these source packages is the driver and is held, not just what the role names.
SOURCES = re.compile(
    r"nvidia-(graphics-drivers|open-gpu-kernel-modules|persistenced|modprobe|kernel|driver|fabricmanager)"
    r"|fabric-?manager"
)
# These bring no driver, whatever their source package: libraries for containers, tools, package sources.
NO_DRIVER = re.compile(
    r"cuda-compat-|nvidia-(container|cuda|docker|detect|settings|driver-assistant|driver-local-repo)"
)
# A package that brings the kernel module: whoever installed it chose the driver.
MODULE = re.compile(r"nvidia-.*dkms.*|nvidia-(open-)?kernel-\d.*")
# Systems that bring a driver of their own, by a package.
LAMBDA_STACK = re.compile(r"lambda-(stack|server)(-.*)?")
# What `apt-get -s` says: `Inst NAME [OLD] (NEW …)` and `Remv NAME [OLD]`, where NAME may end in `:i386`.
STEP = re.compile(r"(Inst|Remv) (\S+?)(?::\w+)?(?: \[([^\]]+)\])?(?: \((\S+) .*)?(?: .*)?")


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
    result = []
    for line in lines:
        fields = line.split()
        if len(fields) != 4:
            continue
        slot, vendor, device, pci_class = (field.lower() for field in fields)
        if vendor == NVIDIA and pci_class.startswith(CARD_CLASSES):
            row = _architecture(int(device, 16), table)
            result.append(
                {
                    "slot": slot,
                    "id": f"10de:{device.removeprefix('0x')}",
                    "architecture": row["name"],
                    "module": row["module"],
                    "first_branch": row["first_branch"],
                    "last_branch": row["last_branch"],
                }
            )
    return result


def switches(lines: list[str]) -> list[str]:
    """The slots of NVIDIA's NVSwitch bridges among lines of `slot vendor device class`."""
    rows = [line.lower().split() for line in lines]
    return [row[0] for row in rows if len(row) == 4 and row[1] == NVIDIA and row[3].startswith(BRIDGE_CLASS)]


def kernels(named: str, newest: str) -> list[str]:
    """The kernels that need the module: the one that runs, and the one that the next boot takes."""
    return [kernel for kernel in dict.fromkeys([named, newest]) if kernel]


def header_packages(kernels: list[str], images: list[str]) -> list[str]:
    """The packages of headers for `kernels`, and those that bring the headers of each later kernel.

    `images` are the installed packages `linux-image-*`. One without a version (linux-image-amd64,
    linux-image-generic-hwe-24.04) brings new kernels; the package linux-headers-* of the same end brings
    their headers. Without any the flavour at the end of a kernel's name decides.
    """
    versions = [f"linux-headers-{kernel}" for kernel in kernels]
    metas = sorted(name.replace("image", "headers", 1) for name in images if META.fullmatch(name))
    if not metas and kernels and (flavour := _flavour(kernels[0])):
        metas = [f"linux-headers-{flavour}"]
    return versions + metas


def _flavour(kernel: str) -> str:
    """The flavour of a kernel by its name; empty for a kernel that somebody made."""
    match = FLAVOUR.fullmatch(kernel)
    return match[1] if match else ""


def kernel_packages(installed: Sequence[str]) -> list[str]:
    """The packages among `installed` that bring the next kernel: linux-image-generic, linux-generic, ….

    Without one of their names ending in a version, they go by the flavours of the images.
    """
    flavours = [name.removeprefix("linux-image-") for name in installed if META.fullmatch(name)]
    names = {
        f"linux-{part}{flavour}"
        for flavour in flavours
        for part in ("", "image-", "headers-", "modules-extra-")
    }
    return sorted(names & set(installed))


def signed_modules(prefix: str, kernels: list[str], images: list[str], flavour: str) -> list[str]:
    """The packages of signed modules, named `prefix-KERNEL`: of `kernels`, and of kernels to come.

    The packages for kernels to come have the flavours of the installed kernel metapackages, because one of
    another flavour would bring a second kernel. Without such a metapackage no kernel is to come, and none of
    these packages is needed. `flavour`: the administrator's choice instead.
    """
    flavours = {name.removeprefix("linux-image-") for name in images if META.fullmatch(name)}
    if flavour:
        flavours = {flavour}
    # linux-image-virtual brings the generic kernel, with fewer of its modules.
    flavours = {re.sub(r"^virtual\b", "generic", name) for name in flavours}
    return [f"{prefix}-{name}" for name in [*kernels, *sorted(flavours)]]


def foreign_kernels(added: list[str], status: dict, flavour: str = "") -> list[str]:
    """The kernels among the packages that apt would add whose flavour no installed kernel has.

    `flavour`: the administrator's own choice of a flavour.
    """
    names = [*status["kernels"], *(match[1] for match in map(KERNEL.fullmatch, status["images"]) if match)]
    flavours = {_flavour(name) for name in names}
    return [
        name
        for name in added
        if (match := KERNEL.fullmatch(name))
        and _flavour(match[1]) not in flavours
        and not (flavour and _flavour(match[1]) == re.sub(r"-(hwe|lts|edge|\d+\.\d).*", "", flavour))
    ]


def to_hold(status: dict) -> list[str]:
    """The packages that must be held and are not.

    Signed modules follow the kernel metapackage. Held without it, the next kernel would come without a
    module, so both are held together.
    """
    packages = list(status["packages"])
    if status["signed"]:
        packages += status["kernel_packages"]
    return [name for name in packages if name not in status["held"]]


def change(
    lines: list[str],
    status: dict,
    missing: list[str],
    state: str = "present",
    version: str = "",
    signed: dict | None = None,
) -> dict:
    """What apt would do to the driver, from the lines of its simulation.

    `removed` and `replaced` name installed packages, `added` new ones, `superseded` those of `removed` that
    an update of the role's own driver leaves behind. `touches`: a driver that is there would change.
    `consent`: the administrator must have asked for that. `signed` is as in `status`.
    """
    removed, replaced, added = [], [], []
    for match in filter(None, map(STEP.fullmatch, lines)):
        action, name, old, new = match.groups()
        if action == "Remv":
            removed.append(name)
        elif not old:
            added.append(name)
        elif name in status["packages"]:
            replaced.append(f"{name} {old} by {new}")
    moves_within = (state == "latest" or version) and status["ours"]
    # The signed modules of older kernels go with the version of the driver that they are of.
    superseded = []
    if signed and moves_within:
        of_kernel = re.compile(re.escape(signed["package"]) + r".*-\d+\.\d+\.\d+-.*")
        if any(map(of_kernel.fullmatch, added)):
            superseded = sorted(filter(of_kernel.fullmatch, set(removed)))
    driver = sorted(set(removed) & set(status["packages"]) - set(superseded))
    # A driver that no package brought would be hidden by packages beside it.
    over = bool(
        status["loaded"]
        and not status["packages"]
        and [name for name in missing if not name.startswith("linux-headers-")]
    )
    return {
        "superseded": superseded,
        "removed": sorted(set(removed)),
        "replaced": replaced,
        "added": sorted(set(added)),
        "touches": bool(driver or replaced or over or superseded),
        "consent": bool(driver or over or (replaced and not moves_within)),
    }


def mirror(lines: list[str]) -> str:
    """The first of the lines of apt's sources that is Debian's own archive, not its security updates.

    Cloud images name a list of mirrors (mirror+file:/etc/apt/mirrors/debian.list) instead of a server.
    """
    for line in lines:
        for address in re.findall(r"[a-z+]+:/[^\s\]]+", line):
            if re.search(r"/debian/?$|^mirror\+.*/debian\.list$", address):
                return address.rstrip("/")
    return ""


def _origin(packages: list[str], names: list[str], runfile: bool) -> str:
    """How the driver came, by the packages that bring the module (`names`): libraries alone are no driver."""
    if names:
        more = len(packages) - 1
        return f"from the package {names[0]}" + (f" and {more} more" if more else "")
    return "from NVIDIA's installer" if runfile else "not installed by packages we know"


def _system(named: list[str], installed: Sequence[str]) -> str:
    """The name of a system that brings its own driver (`named` by the probe, or by a package); else empty."""
    if any(LAMBDA_STACK.fullmatch(name) for name in installed):
        return "Lambda Stack"
    return named[0] if named else ""


def status(
    lines: list[str], table: list[dict], kernel: str, reboot_file: str, signed: dict | None = None
) -> dict:
    """Return `nvidia_driver_status` from the lines of the probe in tasks/inspect.yml.

    `signed`: the modules that the distribution signs, by the beginning of their packages' names (`package`)
    and by their source packages (`source`, an expression); empty where there are none.
    """
    answers: dict[str, list[str]] = {}
    for line in lines:
        word, _, value = line.partition(" ")
        answers.setdefault(word, []).append(value.strip())
    loaded, installed = answers.get("loaded", [""])[0], answers.get("installed", [""])[0]
    mismatch = bool(loaded and installed and loaded != installed)
    nouveau = "nouveau" in answers
    pending = []
    if mismatch:
        pending.append(
            f"the loaded kernel module is {loaded}, the installed driver {installed} "
            "(what nvidia-smi calls a driver/library version mismatch)"
        )
    if nouveau and installed:
        pending.append("nouveau is loaded and holds the card; it is blacklisted from the next boot on")
    newest, newest_has = answers.get("newest", [""])[0], answers.get("next", [""])[0]
    if newest_has and not installed and newest != kernel:
        pending.append(
            f"the driver {newest_has} is installed for the kernel {newest}, which the next boot takes, "
            f"and not for {kernel}"
        )
    wished = ""
    if "reboot" in answers:
        names = answers["reboot"][0]
        wished = f"{reboot_file} asks for it" + (f" ({names})" if names else "")
    rows = [fields for fields in (line.split() for line in answers.get("package", [])) if len(fields) == 3]
    packages = sorted(
        {
            name
            for _, source, name in rows
            if (SOURCES.match(source) or (signed and re.match(signed["source"], source)))
            and not NO_DRIVER.match(name)
        }
    )
    signed_packages = [name for name in packages if signed and name.startswith(signed["package"])]
    modules = [name for name in packages if name in signed_packages or MODULE.fullmatch(name)]
    held_packages = sorted({name.partition(":")[0] for name in answers.get("held", [])})
    brought = set(answers.get("brought", []))
    is_ours = bool(brought & set(modules))
    on_bus = cards(answers.get("pci", []), table)
    served = {slot.lower() for slot in answers.get("served", [])}
    answered = max((int(count) for count in answers.get("listed", []) if count.isdigit()), default=0)
    unserved = [card["slot"] for card in on_bus if card["slot"] not in served]
    return {
        "cards": on_bus,
        "switches": switches(answers.get("pci", [])),
        "loaded": loaded,
        "installed": installed,
        "mismatch": mismatch,
        "nouveau": nouveau,
        "secure_boot": "1" in answers.get("secureboot", []),
        "kernel": kernel,
        "kernel_running": answers.get("running", [""])[0] == kernel,
        # An update of the role's driver is for the kernel of the next boot.
        "kernels": [newest] if is_ours and newest_has and not installed else kernels(kernel, newest),
        "next": newest_has if newest != kernel else "",
        "images": sorted(answers.get("image", [])),
        "kernel_packages": kernel_packages([name for *_, name in rows]),
        # Whether the loaded driver serves every card: by its own list, or by that of nvidia-smi.
        "answers": bool(loaded and on_bus and answered >= len(on_bus)),
        "serves": bool(loaded and on_bus and (not unserved or answered >= len(on_bus))),
        "unserved": unserved,
        # Whether this role brought the driver, and how it came if not.
        "ours": is_ours,
        "brought": sorted(brought),
        "origin": _origin(packages, modules, "runfile" in answers),
        "packaged": bool(modules),
        "runfile": "runfile" in answers and not modules,
        # DGX OS, Lambda Stack: their driver is theirs.
        "system": _system(answers.get("system", []), [name for *_, name in rows]),
        # Reboots that the driver needs; one that only the distribution asks for disturbs no card.
        "reboot_pending": pending,
        "reboot_wished": wished,
        "packages": packages,
        "signed": signed_packages,
        "held": held_packages,
        # Holds of an administrator, which this role neither releases nor passes over.
        "held_by_others": sorted((set(held_packages) & set(packages)) - set(answers.get("holds", []))),
        "held_by_us": sorted(set(held_packages) & set(answers.get("holds", []))),
    }


def kept(status: dict, host: str) -> str:
    """Why a driver that this role did not install stays, as a sentence with the way to replace it."""
    count = len(status["cards"])
    cards = "the card" if count == 1 else f"all {count} cards"
    replace = (
        f"To replace it: ansible-playbook site.yml --limit {host} -e nvidia_driver_replace=true "
        "(nvidia_driver_replace: true)"
    )
    if status["serves"]:
        by = f"{status['system']}, " if status["system"] else ""
        driver = f"{status['loaded']} ({by}{status['origin']})"
        text = f"the loaded driver {driver} serves {cards} and is left as it is"
    else:
        driver = status["loaded"] or status["installed"]
        state = f"has the driver {driver}, which does not serve {cards}" if driver else "has no driver now"
        text = (
            f"this host runs {status['system']}, which brings its own driver, and {state}: nothing is changed"
        )
    return f"{text}. {replace}"


def plan(
    cards: list[dict],
    distribution_branch: int,
    source: str = "auto",
    branch: int = 0,
    module: str = "auto",
    *,
    switches: Sequence[str] = (),
    fabric: bool = True,
    version: str = "",
) -> dict:
    """The driver that serves every card: `{source, branch, module, problem}`; problem a sentence or empty.

    `distribution_branch` is what the host's distribution packages, `fabric` whether it packages the fabric
    manager, without which no card behind NVSwitch bridges (`switches`) computes; `branch` 0 leaves the
    choice here. `version`: an exact one, which only NVIDIA's repository keeps.
    """
    problem = _version_problem(version, branch)
    if version and not problem:
        branch = int(version.split(".")[0])
        source = "cuda_repository" if source == "auto" else source
    least, most = _branches(cards)
    no_fabric = bool(switches) and not fabric
    if source == "auto":
        target = branch or distribution_branch
        serves = least <= target <= most and target == distribution_branch and not no_fabric
        source = "distribution" if serves else "cuda_repository"
    # 580 is the last branch for Maxwell, Pascal and Volta, and new enough for every card in the table.
    branch = branch or (distribution_branch if source == "distribution" else 580)
    problem = problem or _module_problem(cards, module)
    if not problem and source == "distribution" and no_fabric:
        problem = (
            f"This host has NVSwitch bridges ({', '.join(switches)}), and its distribution packages no "
            "fabric manager, without which their cards do not compute: set nvidia_driver_source to auto or "
            "cuda_repository."
        )
    packaged = distribution_branch if source == "distribution" else None
    problem = problem or _branch_problem(cards, branch, packaged)
    if module == "auto" and not problem:
        needed = {card["module"] for card in cards} & {"open", "proprietary"}
        # Before 560 NVIDIA called the open module a preview on some cards.
        module = needed.pop() if needed else "open" if branch >= 560 else "proprietary"
    return {"source": source, "branch": branch, "module": module, "problem": problem}


def _version_problem(version: str, branch: int) -> str:
    """Why no driver has this version, as a sentence; empty when one may."""
    if not version:
        return ""
    if not re.fullmatch(r"\d{3,}\.\d+(\.\d+)?", version):
        return f"nvidia_driver_version is {version}: it takes one exact version, such as 580.95.05."
    if branch and branch != int(version.split(".")[0]):
        return (
            f"nvidia_driver_version {version} is not of nvidia_driver_branch {branch}: leave one of them out."
        )
    return ""


def _branches(cards: list[dict]) -> tuple[int, int]:
    """The first and the last branch of the driver that serve every card."""
    least = max([card["first_branch"] or 0 for card in cards], default=0)
    return least, min([card["last_branch"] or 9999 for card in cards], default=9999)


def _branch_problem(cards: list[dict], branch: int, packaged: int | None) -> str:
    """Why this branch does not serve every card, as a sentence; empty when it does.

    `packaged`: the branch of the distribution, if the driver comes from there, else None.
    """
    least, most = _branches(cards)
    if packaged is not None and branch != packaged:
        return (
            f"This distribution packages the driver branch {packaged}, not {branch}: set "
            "nvidia_driver_source to cuda_repository, or leave nvidia_driver_branch out."
        )
    if branch < least:
        return (
            f"The branch {branch} does not know the card {_named(cards)}: it needs {least} or newer. Set "
            "nvidia_driver_source to cuda_repository and leave nvidia_driver_branch out."
        )
    if branch > most:
        return (
            f"The branch {branch} no longer serves the card {_named(cards)}: the last that does is {most}. "
            f"Set nvidia_driver_branch to {most}."
        )
    return ""


def _named(cards: list[dict]) -> str:
    return ", ".join(f"{card['slot']} ({card['id']}, {card['architecture']})" for card in cards)


def _module_problem(cards: list[dict], module: str) -> str:
    """Why no kernel module, or not this one, serves every card: a sentence, empty when one does."""
    named = {
        kind: _named([card for card in cards if card["module"] == kind])
        for kind in ("none", "unknown", "proprietary", "open")
    }
    if named["none"]:
        return (
            f"The card {named['none']} needs the driver branch 470 or older, which no longer gets fixes: "
            "take it out, or leave this host out of the inventory."
        )
    if named["unknown"] and module == "auto":
        return (
            f"The card {named['unknown']} is not in this role's table: set nvidia_driver_module to open or "
            "proprietary (and nvidia_driver_branch) for this host."
        )
    if named["proprietary"] and named["open"]:
        return (
            f"No driver serves all cards of this host: {named['proprietary']} needs the proprietary module, "
            f"{named['open']} the open one. Take one of them out."
        )
    other = {"open": "proprietary", "proprietary": "open"}.get(module)
    if other and named[other]:
        return f"The {module} kernel module does not serve {named[other]}: set nvidia_driver_module to auto."
    return ""


class FilterModule:
    """What Ansible asks a filter plugin for."""

    def filters(self) -> dict:
        return {
            "nvidia_driver_status": status,
            "nvidia_driver_plan": plan,
            "nvidia_driver_header_packages": header_packages,
            "nvidia_driver_signed_modules": signed_modules,
            "nvidia_driver_to_hold": to_hold,
            "nvidia_driver_foreign_kernels": foreign_kernels,
            "nvidia_driver_change": change,
            "nvidia_driver_kept": kept,
            "nvidia_driver_mirror": mirror,
        }
