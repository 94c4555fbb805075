"""Make the test host `CONTAINER` a simulated GPU host, prepared for training, by means of tests/hosts.

Simulated: nvidia-smi, the CDI specification (its devices are harmless), a kernel module that is a version
and nothing else. Real: the engine, which hands devices to containers by CDI. It proves no CUDA:
gpu_check is device.
"""

import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.hosts import fleet, machine  # noqa: E402

VERSION = "550.163.01"


def module(version: str) -> bytes:
    """An ELF file with nothing but a .modinfo section: modinfo reads its version, no kernel would load it."""
    info = f"version={version}\0license=simulated\0name=nvidia\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    header = 64
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, header, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, header + len(info), len(names), 0, 0, 1, 0),
    ]
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, header + len(info) + len(names), 0, 64, 0, 0, 64, len(sections), 2
    )
    return elf + info + names + b"".join(sections)


def main(container: str) -> None:
    """Simulate."""
    host = machine.TestHost(name=container, container=container, directory=Path("/nonexistent"), port=0)
    fleet.simulate_gpus(host)
    # root: where the worker looks for the kernel's files.
    fleet.prepare(host, machine.make_image("slim"), gpu_check="device", root="/srv/simulated")
    host.shell(
        "cd /srv/simulated; mkdir -p sys/bus/pci sys/firmware/efi proc/driver; "
        "ln -sfn ../../../pci sys/bus/pci/devices; ln -sfn ../modules sys/module; "
        "ln -sfn ../../../efivars sys/firmware/efi/efivars; ln -sfn ../../proc/version.d proc/driver/nvidia; "
        "for name in etc var dev; do ln -sfn /$name $name; done; mkdir -p proc/version.d; "
        'mkdir -p "/lib/modules/$(uname -r)/updates"'
    )
    write_module(host, VERSION)
    host.write(
        "/srv/simulated/proc/version.d/version",
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}\n",
    )


def write_module(host: machine.TestHost, version: str) -> None:
    """Install the simulated module for the running kernel."""
    kernel = host.shell("uname -r").strip()
    path = f"/lib/modules/{kernel}/updates/nvidia.ko"
    code = f"import sys; open({path!r}, 'wb').write(bytes.fromhex(sys.stdin.read()))"
    host.exec("python3", "-c", code, input=module(version).hex())
    host.shell('cd "/lib/modules/$(uname -r)"; touch modules.order modules.builtin; PATH=$PATH:/sbin depmod')


main(sys.argv[1])
