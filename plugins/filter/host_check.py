"""Filters of the role host_check: driver state and worker's answer as rows of one table."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: The check that proves that jobs can compute; skipped or with a warning it proves nothing.
FRAMEWORK = "gpu-in-framework"
SITE = "ansible-playbook site.yml --limit HOST"
REBOOT = f"reboot the host: {SITE} -e nvidia_driver_reboot_ok=true"
GRAVITY = ("skip", "ok", "not proven", "warn", "fail")


def _row(name: str, status: str, message: str, hint: str = "") -> dict:
    return {"name": name, "status": status, "message": message, "hint": hint}


def driver_rows(state: dict, expected: int = 0) -> list[dict]:
    """Rows from `nvidia_driver_status`; `expected` is how many cards the host must have at least."""
    cards, driver = state["cards"], state["loaded"] or state["installed"]
    if len(cards) < expected or (not cards and driver):
        driver = f"the driver {driver} is installed" if driver else "no driver is installed"
        message = (
            f"{len(cards)} NVIDIA cards on the PCI bus, {max(expected, 1)} expected; {driver}: a card is gone"
        )
        hint = (
            "dmesg | grep -i xid (79: fell off the bus); power the host off and on; if it happens again, "
            "replace the card or use another slot"
        )
        return [_row("card", "fail", message, hint)]
    if not cards:
        return [_row("card", "skip", "no NVIDIA card: this host trains on its CPU")]
    names = ", ".join(f"{card['slot']} {card['id']} {card['architecture']}" for card in cards)
    rows = [_row("card", "ok", names)]
    if state["nouveau"]:
        rows.append(_row("nouveau", "fail", "nouveau is loaded and holds the card", REBOOT))
    rows.append(_driver_row(state))
    free = sorted(set(state["packages"]) - set(state["held"]))
    # Who installed another driver decides whether it is held.
    if free and state["ours"]:
        message = f"{len(free)} driver packages are not held ({free[0]} …): an upgrade may break the driver"
        rows.append(_row("hold", "warn", message, SITE))
    if state["reboot_wished"]:
        hint = (
            "when the host is not busy: ansible-playbook playbooks/update.yml --limit HOST -e "
            "nvidia_driver_reboot_ok=true"
        )
        rows.append(_row("reboot", "warn", f"a reboot is pending: {state['reboot_wished']}", hint))
    return rows


def _driver_row(state: dict) -> dict:
    """The row of the driver of a host with cards: what is loaded and works decides, not what is installed."""
    loaded, installed = state["loaded"], state["installed"]
    if state["answers"] and state["mismatch"]:
        # nvidia-smi lists every card, so its libraries fit the module that is loaded.
        message = (
            f"{loaded} is loaded and serves every card; the next boot loads {installed}, which is installed"
        )
        return _row("driver", "warn", message, f"to run the installed one: {REBOOT}")
    if not installed and state["next"] and not state["answers"]:
        message = f"{state['next']} is installed for the kernel of the next boot, not for {state['kernel']}"
        return _row("driver", "fail", message, REBOOT)
    if state["serves"] and not state["mismatch"] and not (state["packaged"] and installed):
        # A driver that the machine's provider brought, outside of packages and of the kernel's modules.
        replace = f"to replace it: {SITE} -e nvidia_driver_replace=true"
        return _row("driver", "ok", f"{loaded}, {state['origin']}: left as it is ({replace})")
    if not installed:
        return _row("driver", "fail", f"no NVIDIA module is installed for the kernel {state['kernel']}", SITE)
    if state["mismatch"]:
        message = f"module loaded {loaded}, installed {installed}: driver/library version mismatch"
        return _row("driver", "fail", message, REBOOT)
    if not loaded and state["secure_boot"]:
        return _row(
            "driver",
            "fail",
            f"{installed} is installed, not loaded, and Secure Boot is on: the kernel refuses "
            "a module that is not signed by an enrolled key",
            "see Secure Boot in docs/hosts.md",
        )
    if not loaded:
        return _row(
            "driver", "fail", f"{installed} is installed but not loaded", f"modprobe nvidia, or {REBOOT}"
        )
    return _row("driver", "ok", f"loaded {loaded} equals installed")


def engine_rows(daemon: dict) -> list[dict]:
    """A row for the engine's configuration; `daemon` is the result of parsing it."""
    if daemon.get("rc", 0) == 0:
        return []
    reason = (daemon.get("stderr_lines") or ["not JSON"])[-1]
    return [
        _row(
            "daemon.json",
            "fail",
            f"the engine's configuration is not valid JSON: {reason}",
            "python3 -m json.tool /etc/docker/daemon.json names the line; correct it before the "
            "engine restarts",
        )
    ]


#: How apt names Docker's own repository, which does not mark security updates: each version may be one.
DOCKER_LABEL = "Docker CE:"


def held_rows(lines: list[str], old_lists_days: int = 14) -> list[dict]:
    """A row on the security updates of held packages; none on a host that holds nothing.

    `lines`: `held NAME`, `days N` (the age of apt's lists), and apt's simulation of their upgrade.
    """
    held = {name for word, _, name in (line.partition(" ") for line in lines) if word == "held"}
    days = next((int(line.split()[1]) for line in lines if line.startswith("days ")), 0)
    if not held:
        return []
    # Inst runc [1.1.5] (1.1.6 Debian-Security:13/stable-security [amd64])
    upgrades = (re.match(r"Inst (\S+) \[\S+\] \((\S+) (.*)\)", line) for line in lines)
    newer = {f"{row[1]} {row[2]}": row[3] for row in upgrades if row and row[1] in held}
    security = sorted(text for text, origin in newer.items() if "security" in origin.lower())
    possible = sorted(text for text, origin in newer.items() if DOCKER_LABEL in origin)
    if security or possible:
        messages = [f"held packages have security updates: {', '.join(security)}"] if security else []
        if possible:
            messages.append(
                "Docker's repository, which does not mark security updates, has newer versions: "
                + ", ".join(possible)
            )
        message = "; ".join(messages)
        return [_row("held-updates", "warn", message, "ansible-playbook playbooks/update.yml --limit HOST")]
    if days > old_lists_days:
        message = f"apt's lists are {days} days old: security updates of held packages are unknown"
        return [_row("held-updates", "warn", message, "on the host: apt-get update")]
    return [_row("held-updates", "ok", f"no security update is known for the {len(held)} held packages")]


#: What a node's state in Slurm means, where it takes no job. With `*` the controller does not reach it.
SLURM_STATES = {
    "down": "is down",
    "drained": "takes no new job",
    "draining": "takes no new job and still runs some",
    "inval": "has less than slurm.conf says",
    "unknown": "has not reported yet",
    "maint": "is in maintenance",
    "reboot": "waits for its reboot",
}


def slurm_rows(lines: list[str]) -> list[dict]:
    """Rows on munge and on the host as a node of Slurm; none without lines.

    `lines`: `munge ok` or its error; on a node also `slurmd STATE` of systemd, and `state STATE|REASON` of
    Slurm, or the error of sinfo.
    """
    answers = dict(line.split(" ", 1) for line in lines if " " in line)
    if not answers:
        return []
    if answers["munge"] == "ok":
        rows = [_row("munge", "ok", "munge works")]
    elif answers["munge"] == "is not installed":
        rows = [_row("munge", "fail", "munge, by which Slurm knows its hosts, is not installed", SITE)]
    else:
        hint = f"journalctl -u munge has its log; a clock that is minutes off does it, too. {SITE}"
        rows = [
            _row("munge", "fail", f"munge, by which Slurm knows its hosts, fails: {answers['munge']}", hint)
        ]
    if "slurmd" not in answers:
        return rows
    state, separator, reason = answers.get("state", "").partition("|")
    name = state.rstrip("*~#!%$@^-+")
    if answers["slurmd"] != "active":
        message = f"slurmd is {answers['slurmd']}"
        rows.append(_row("slurm-node", "fail", message, f"journalctl -u slurmd has its log; {SITE}"))
    elif not separator:
        message = f"Slurm does not know this node: {state or 'no answer'}"
        rows.append(_row("slurm-node", "fail", message, SITE))
    elif "*" in state:
        message = "slurmd runs, and the controller does not reach it (port 6818)"
        rows.append(_row("slurm-node", "fail", message, "look for a firewall, or set slurm_node_address"))
    elif name in SLURM_STATES:
        why = f": {reason}" if reason not in ("", "none") else ""
        hint = "once that is over, on the controller: scontrol update nodename=NODE state=resume"
        if reason.startswith("train-classifier: "):
            hint = (
                "once that is over, the health check lets it take jobs again within a minute; docs/cluster.md"
            )
        rows.append(_row("slurm-node", "fail", f"the node {SLURM_STATES[name]}{why}", hint))
    else:
        rows.append(_row("slurm-node", "ok", f"Slurm gives this node jobs ({name})"))
    return rows


def worker_rows(task: dict, limit_s: float, drained: bool = False) -> list[dict]:
    """Rows from the worker's answer to `check`, or one that says why there is none; with the clock.

    `drained`: the caller drained the host itself, so that this is no failure.
    """
    if task.get("failed") or "answer" not in task:
        return [
            _row(
                "worker",
                "fail",
                task.get("msg", "no answer"),
                "the worker needs Python 3.9 or newer on the host",
            )
        ]
    answer = task["answer"]
    if "error" in answer:
        error = answer["error"]
        return [_row("worker", "fail", error["reason"], error.get("hint") or "")]
    rows = []
    for check in answer["checks"]:
        row = _row(check["name"], check["status"], check["message"], check.get("hint") or "")
        if row["name"] == FRAMEWORK and row["status"] in ("skip", "warn"):
            row["status"] = "not proven"
        if row["name"] == "drain" and row["status"] == "fail" and drained:
            row["status"] = "warn"
        rows.append(row)
    offset = task.get("clock_offset_s", 0.0)
    if abs(offset) > limit_s:
        rows = [row for row in rows if row["name"] != "clock"]
        rows.append(
            _row(
                "clock",
                "fail",
                f"the host's clock is {offset:+.0f} s off this controller's",
                "timedatectl set-ntp true on the host (package systemd-timesyncd or chrony)",
            )
        )
    return rows


def merge(own: list[dict], worker: list[dict]) -> list[dict]:
    """Return all rows; of two rows of one name the graver, because the worker checks the driver, too."""

    def gravity(rows: list[dict], name: str) -> int:
        return max((GRAVITY.index(row["status"]) for row in rows if row["name"] == name), default=-1)

    own_rows = [row for row in own if gravity(own, row["name"]) >= gravity(worker, row["name"])]
    return own_rows + [row for row in worker if gravity(worker, row["name"]) > gravity(own_rows, row["name"])]


def ready(rows: list[dict]) -> bool:
    """Whether no row failed."""
    return not any(row["status"] == "fail" for row in rows)


def results(checked: dict, active: list[str], batch: list[str], missing: dict) -> dict:
    """The results of the hosts that the table is about; of a host that was lost, `missing`.

    `checked` has None for each host of the play without a result. A host that is still in the play (`active`)
    but neither in this batch nor checked comes later (serial): it is no failure.
    """
    return {
        host: result or missing
        for host, result in checked.items()
        if result is not None or host in batch or host not in active
    }


def unwritable(path: str) -> str:
    """Why the table cannot be written to `path` on this controller, as a sentence; empty when it can."""
    target = Path(path).expanduser().absolute()
    if not path:
        return ""
    if target.is_dir():
        return f"host_check_json is {path}, which is a folder: name a file in it."
    if not target.parent.is_dir():
        return f"host_check_json is {path}, and there is no folder {target.parent}: make it first (mkdir -p)."
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return f"host_check_json is {path}, and this user may not write to {target.parent}: name another."
    return ""


class FilterModule:
    """What Ansible asks a filter plugin for."""

    def filters(self) -> dict:
        return {
            "host_check_driver_rows": driver_rows,
            "host_check_engine_rows": engine_rows,
            "host_check_held_rows": held_rows,
            "host_check_slurm_rows": slurm_rows,
            "host_check_worker_rows": worker_rows,
            "host_check_merge": merge,
            "host_check_ready": ready,
            "host_check_results": results,
            "host_check_unwritable": unwritable,
        }
