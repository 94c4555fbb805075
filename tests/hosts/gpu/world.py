"""What a simulated GPU host has: two cards, their CDI specification and their device nodes."""

from __future__ import annotations

import json

UUIDS = ("GPU-5f9d8a3e-1c2b-4d5e-8f70-000000000000", "GPU-5f9d8a3e-1c2b-4d5e-8f70-000000000001")


def world(**changes: object) -> str:
    """The JSON the stand-in nvidia-smi answers from; `changes` replaces top-level keys (fail, apps, gpus)."""
    gpus = [
        {
            "index": index,
            "uuid": uuid,
            "name": "NVIDIA GeForce RTX 4090",
            "pci.bus_id": f"00000000:0{index + 1}:00.0",
            "memory.total": 24564,
            "memory.free": 24210,
            "memory.used": 354,
            "memory.reserved": 0,
            "utilization.gpu": 0,
            "utilization.memory": 0,
            "temperature.gpu": 41,
            "power.draw": "21.50",
            "power.limit": "450.00",
            "compute_cap": "8.9",
            "mig.mode.current": None,
            "persistence_mode": "Enabled",
            "ecc.errors.uncorrected.volatile.total": None,
        }
        for index, uuid in enumerate(UUIDS)
    ]
    known = {"driver_version": "550.163.01", "cuda_version": "12.4", "gpus": gpus, "apps": [], "fail": None}
    return json.dumps({**known, **changes})


def cdi() -> str:
    """The CDI specification: each card by index and by UUID, and `all`; harmless character devices (1:3)."""

    def node(index: int) -> dict[str, object]:
        return {"path": f"/dev/nvidia{index}", "type": "c", "major": 1, "minor": 3, "permissions": "rw"}

    devices: list[dict[str, object]] = []
    for index, uuid in enumerate(UUIDS):
        edits = {"deviceNodes": [node(index)]}
        devices += [{"name": str(index), "containerEdits": edits}, {"name": uuid, "containerEdits": edits}]
    every = [node(index) for index in range(len(UUIDS))]
    devices.append({"name": "all", "containerEdits": {"deviceNodes": every}})
    mounts = [
        {"hostPath": path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "bind"]}
        for path in ("/usr/bin/nvidia-smi", "/etc/simulated-gpus.json")
    ]
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "mounts": mounts},
    }
    return json.dumps(spec, indent=1)


def device_nodes() -> str:
    """tmpfiles.d lines that make the device nodes at each boot."""
    return "".join(f"c /dev/nvidia{index} 0666 root root - 1:3\n" for index in range(len(UUIDS)))
