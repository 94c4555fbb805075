"""People without Docker rights on the nodes of a cluster, whose jobs the service account runs there."""

import grp
import os

from train_classifier.core.job import JobSpec
from train_classifier.core.options import show_option
from train_classifier.worker.system.host import Host


def has_caller(host: Host) -> bool:
    """Tell whether the caller, on a submit host, is one of them."""
    try:
        group = grp.getgrnam(host.slurm_people or "")
    except KeyError:
        return False
    return group.gr_gid in (os.getegid(), *os.getgroups())


def problems(spec: JobSpec) -> list[str]:
    """Return a sentence for each option that they cannot have."""
    asked = {"nodes": (spec.nodes or 1) > 1, "requeue": spec.requeue}
    return [
        f"{show_option(name)} needs Docker rights on the nodes, which this account does not have: "
        "there the service account runs its jobs"
        for name, is_asked in asked.items()
        if is_asked
    ]
