"""The cluster as slurm.conf and gres.conf write it, and what changes with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

#: Slurm's releases in their order. A controller works with slurmd of its own and of the two before it.
RELEASES = (
    "20.11",
    "21.08",
    "22.05",
    "23.02",
    "23.11",
    "24.05",
    "24.11",
    "25.05",
    "25.11",
)


def nodes(
    names: Sequence[str], described: Mapping[str, Any], recorded: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the cluster's nodes by their names in the inventory.

    A node that this play did not look at (`--limit`, or unreachable) is as it was recorded; one of which
    nothing is known is left out.
    """
    known = {**recorded, **{name: one for name, one in described.items() if one}}
    return {name: known[name] for name in names if known.get(name, {}).get("name")}


def same_names(cluster: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names that two hosts of the inventory have."""
    every = [one["name"] for one in cluster.values()]
    return sorted({name for name in every if every.count(name) > 1})


def removed(config: str, cluster: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the nodes of a slurm.conf that the cluster has no longer."""
    there = re.findall(r"^NodeName=([^\s,\[]+)", config, re.MULTILINE)
    return sorted(set(there) - {one["name"] for one in cluster.values()})


def node_lines(cluster: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line of slurm.conf for each node."""
    lines = []
    for one in cluster.values():
        keys = {"NodeName": one["name"], "NodeAddr": one["address"], **one["keys"]}
        if one["cards"]:
            types = [card["type"] for card in one["cards"]]
            keys["Gres"] = ",".join(f"gpu:{kind}:{types.count(kind)}" for kind in dict.fromkeys(types))
        lines.append(" ".join(f"{name}={value}" for name, value in {**keys, "State": "UNKNOWN"}.items()))
    return lines


def gres_lines(cluster: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line of gres.conf for each card. An index in Slurm is a card's place among these."""
    return [
        f"NodeName={one['name']} Name=gpu Type={card['type']} File={card['file']}"
        for one in cluster.values()
        for card in one["cards"]
    ]


def shares(cluster: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return what a job gets that asks for GPUs alone: a share that leaves the node's other GPUs usable.

    DefMemPerCPU in MiB, and DefCpuPerGPU of the node that has fewest for each of its GPUs.
    """
    memory, cpus = [], []
    for one in cluster.values():
        count = int(one["keys"].get("CPUs", 1))
        memory.append(int(one["keys"]["RealMemory"]) // count)
        if one["cards"]:
            cpus.append(max(1, count // len(one["cards"])))
    values = {"DefMemPerCPU": min(memory)} if memory else {}
    return {**values, "DefCpuPerGPU": min(cpus)} if cpus else values


def partition_lines(
    partitions: Mapping[str, Mapping[str, Any] | None], cluster: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return a line of slurm.conf for each partition.

    `nodes` names hosts of the inventory; the other keys are Slurm's own.
    """
    lines = []
    for name, keys_of_slurm in partitions.items():
        settings = dict(keys_of_slurm or {})
        hosts = settings.pop("nodes", None)
        unknown = [host for host in hosts or () if host not in cluster]
        members = [one["name"] for host, one in cluster.items() if hosts is None or host in hosts]
        if unknown and not members:
            raise AnsibleFilterError(
                f"the partition {name} names {', '.join(unknown)}, which are no nodes of the inventory"
            )
        keys = {"Nodes": ",".join(members) or "ALL", "State": "UP", "MaxTime": "INFINITE", **settings}
        chosen = [one for host, one in cluster.items() if hosts is None or host in hosts]
        keys = {**shares(dict(enumerate(chosen))), **keys}  # type: ignore[arg-type]
        lines.append(" ".join([f"PartitionName={name}", *(f"{key}={value}" for key, value in keys.items())]))
    return lines


def release(version: str) -> str:
    """Return the release of a version of Slurm: `24.11` of `24.11.5`."""
    return ".".join(version.split(".")[:2])


def version_problem(node: str, controller: str) -> str:
    """Return why slurmd of one version does not work with a controller of another, else empty."""
    if not node or not controller or release(node) == release(controller):
        return ""
    order = {name: position for position, name in enumerate(RELEASES)}
    older = order.get(release(controller), -1) - order.get(release(node), 99)
    if 0 < older <= 2:
        return ""
    return (
        f"its slurmd is {node} and the controller has {controller}; Slurm works with nodes of its own "
        "release and of the two before it. Give both the same release of the distribution."
    )


def versions(cluster: Mapping[str, Mapping[str, Any]], controller: str) -> list[dict[str, str]]:
    """Return for each node its `name`, and the `problem` of its version."""
    return [
        {"name": name, "problem": version_problem(one.get("version", ""), controller)}
        for name, one in cluster.items()
    ]


class FilterModule:
    """The filters of the role slurm_controller."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "slurm_controller_gres_lines": gres_lines,
            "slurm_controller_node_lines": node_lines,
            "slurm_controller_nodes": nodes,
            "slurm_controller_partition_lines": partition_lines,
            "slurm_controller_removed": removed,
            "slurm_controller_same_names": same_names,
            "slurm_controller_versions": versions,
        }
