"""What each card of this host does now, which job has it, and who waits for one; for `top`."""

import csv
import os
import subprocess
from typing import Any, Optional

from train_classifier.core.errors import TrainClassifierError
from train_classifier.worker.gpus import devices, gpu_queue
from train_classifier.worker.gpus.tickets import QueueEntry
from train_classifier.worker.system.host import Host

FIELDS = ("uuid", "utilization.gpu", "memory.used", "temperature.gpu", "power.draw", "power.limit")
KEYS = ("use_percent", "memory_used_mib", "temperature_c", "power_w", "power_limit_w")


def look(request: dict[str, Any], host: Host) -> dict[str, Any]:
    """Return {"cards", "queue", "problem"}; what cannot be read is None.

    The queue's tickets are files that every user of Docker can write: what they say is for people.
    """
    discovery = devices.discover(host)
    entries: list[QueueEntry] = []
    problem = None if discovery.gpus else discovery.problem
    if discovery.gpus and os.path.isdir(host.queue_dir):
        try:
            entries = gpu_queue.snapshot(host.queue_dir)
        except TrainClassifierError as error:
            problem = error.reason
    holders = {uuid: entry for entry in entries if entry.state == "granted" for uuid in entry.gpus}
    readings = _readings(host) if discovery.gpus else {}
    cards = []
    for gpu in discovery.gpus:
        entry = holders.get(gpu.uuid)
        others = devices.show_users(gpu) if entry is None else None
        cards.append(
            {
                "index": gpu.index,
                "uuid": gpu.uuid,
                "name": gpu.name,
                "memory_total_mib": gpu.memory_total_mib,
                **readings.get(gpu.uuid, dict.fromkeys(KEYS)),
                "job": _job(entry) if entry else None,
                "others": others or None,
            }
        )
    waiting = [entry for entry in entries if entry.state != "granted"]
    return {"cards": cards, "queue": [_job(entry) for entry in waiting], "problem": problem}


def _job(entry: QueueEntry) -> dict[str, Any]:
    return {
        "id": entry.job,
        "model": entry.model,
        "user": entry.user,
        "gpus": entry.want,
        "state": entry.state,
        "since": entry.since,
    }


def _readings(host: Host) -> dict[str, dict[str, Optional[float]]]:
    """Return what nvidia-smi reads of each card, by UUID; a value that a card does not report is None."""
    try:
        query = "--query-gpu=" + ",".join(FIELDS)
        done = devices.run_nvidia_smi(host, query, "--format=csv,noheader,nounits")
    except (OSError, subprocess.TimeoutExpired):
        return {}
    readings = {}
    for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True):
        if len(row) == len(FIELDS):
            readings[row[0].strip()] = dict(zip(KEYS, map(_value, row[1:])))
    return readings


def _value(text: str) -> Optional[float]:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None
