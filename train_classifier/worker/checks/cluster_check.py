"""The check of a submit host of a Slurm cluster: what it needs itself, and what Slurm says of its nodes."""

import collections
import os
import platform
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import TrainClassifierError
from train_classifier.worker.checks import host_check
from train_classifier.worker.checks.finding import Finding, fail, from_error, ok, warn
from train_classifier.worker.slurm import commands, shared_folder
from train_classifier.worker.state.store import Store
from train_classifier.worker.system import program
from train_classifier.worker.system.host import Host
from train_classifier.worker.system.host_facts import host_facts

#: Most nodes that are named one by one.
MOST_NAMES = 8


def check(host: Host, request: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the submit host and its cluster, in the form of `host_check.check`."""
    requested, _ = host_check.requested_gpus(request)
    findings = [host_check.python(), host_check.tool("rsync", "rsync")]
    state, finding = _shared_folder(host)
    findings.append(finding)
    findings += [*host_check.disks(host, state, None), host_check.clock(), host_check.drain(host)]
    nodes, finding = _slurm(host)
    findings.append(finding)
    if (
        finding.status == "ok"
        and isinstance(requested, int)
        and requested > max(map(_gpus, nodes), default=0)
    ):
        most = max(map(_gpus, nodes), default=0)
        text = f"{requested} GPUs are asked for, no node of this cluster has more than {most}"
        findings.append(fail("gpu", text, "ask for fewer GPUs"))
    if request.get("deep"):
        findings += _node_states(nodes)
    return {
        "worker": program.PROGRAM.name,
        "python": platform.python_version(),
        "host": host_facts(),
        "engine": None,
        "gpus": [],
        "queued": None,
        "launcher": shared_folder.LAUNCHER,
        "state_dir": str(state) if state else None,
        "checks": [finding.to_dict() for finding in findings],
        "ready": all(finding.status != "fail" for finding in findings),
    }


def _shared_folder(host: Host) -> tuple[Optional[Path], Finding]:
    name = "shared-folder"
    try:
        path = host.state_dir({})
        shared_folder.make(host, Store(path))
    except TrainClassifierError as error:
        return None, from_error(name, error)
    if not os.access(path, os.W_OK | os.X_OK):
        return path, fail(name, f"{path} cannot be written to", "is the shared folder mounted read-only?")
    return path, ok(name, str(path))


def _slurm(host: Host) -> tuple[list[list[str]], Finding]:
    """Return name, state, GPUs and reason of each node, and whether Slurm answers."""
    command = ["sinfo", "--noheader", "--Node", "--format=%N|%T|%G|%E"]
    try:
        output = commands.run(host.caller(), command)
    except TrainClassifierError as error:
        return [], from_error("slurm", error)
    rows = (line.split("|", 3) for line in output.splitlines())
    # A node is listed once for each of its partitions.
    nodes = list({row[0]: row for row in rows if len(row) == 4}.values())
    if not nodes:
        return [], fail(
            "slurm", "this cluster of Slurm has no nodes", "add hosts to slurm_nodes, run site.yml"
        )
    return nodes, ok("slurm", f"Slurm answers; {show_nodes(nodes)}")


def show_nodes(nodes: list[list[str]]) -> str:
    """Return the state of each node in words; of many nodes, how many have each state."""
    if len(nodes) <= MOST_NAMES:
        return f"nodes: {', '.join(f'{row[0]} {row[1]}' for row in nodes)}"
    counts = collections.Counter(row[1] for row in nodes).most_common()
    return f"{len(nodes)} nodes: {', '.join(f'{count} {state}' for state, count in counts)}"


def _gpus(node: list[str]) -> int:
    """Return the number of GPUs in a node's resources: gpu:2, gpu:rtx:1(S:0),gpu:a100:1."""
    count = 0
    for resource in node[2].split(","):
        words = resource.partition("(")[0].split(":")
        if words[0] == "gpu":
            count += int(words[-1]) if words[-1].isdigit() else 1
    return count


def _node_states(nodes: list[list[str]]) -> list[Finding]:
    """Return a finding for each node that takes no jobs."""
    return [
        warn("slurm-node", f"node {name} is {state}: {reason}", f"scontrol show node {name}")
        for name, state, _, reason in nodes
        if any(word in state for word in ("down", "drain", "fail", "unknown", "inval")) or state.endswith("*")
    ]
