"""How the containers of a job on several nodes meet: addresses, and the variables that frameworks read."""

import array
import dataclasses
import fcntl
import json
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from train_classifier.core.errors import NotReady
from train_classifier.worker.slurm import commands
from train_classifier.worker.system.host import Account

#: Ports above those that Linux gives to outgoing connections by itself; JAX takes the same ones under Slurm.
FIRST_PORT = 61440
PORTS = 4096
#: ioctl(2), netdevice(7).
SIOCGIFADDR = 0x8915


@dataclasses.dataclass(frozen=True)
class Rendezvous:
    """The nodes of a job by their ranks, with the addresses at which they reach each other."""

    nodes: Sequence[str]
    addresses: Sequence[str]
    port: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return dataclasses.asdict(self)


def arrange(account: Account, nodes: Sequence[str], own: str, number: str) -> Rendezvous:
    """Find the addresses of the nodes, this one first. Raises NotReady."""
    nodes = [own, *(name for name in nodes if name != own)]
    output = commands.run(account, ["scontrol", "show", "node", "--oneliner", ",".join(nodes)])
    addresses = []
    for name in nodes[1:]:
        match = re.search(rf"^NodeName={re.escape(name)} .*?\bNodeAddr=(\S+)", output, re.MULTILINE)
        text = match[1] if match else name
        try:
            addresses.append(str(socket.getaddrinfo(text, None, type=socket.SOCK_DGRAM)[0][4][0]))
        except OSError as error:
            raise NotReady(
                f"node {name} of the job is not found under its address {text}: {error}",
                "each node must know the names of the others",
            ) from error
    # Its own name often stands for the loopback address.
    return Rendezvous(nodes, [local_address(addresses[0]), *addresses], FIRST_PORT + int(number) % PORTS)


def local_address(peer: str) -> str:
    """Return the address from which this host reaches another one; nothing is sent. Raises NotReady."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect((peer, 9))
            return str(datagrams.getsockname()[0])
    except OSError as error:
        raise NotReady(f"this node does not reach another node of the job at {peer}: {error}") from error


def interface_of(address: str) -> Optional[str]:
    """Return the name of the network interface that has an address; None when there is none."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address).hex()
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
        return next((line.split()[-1] for line in lines if line.startswith(packed)), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(datagrams, SIOCGIFADDR, request)
            except OSError:
                # It has no address of this family.
                continue
            if socket.inet_ntoa(request.tobytes()[20:24]) == address:
                return name
    return None


def variables(meeting: Rendezvous, rank: int, slurm: Mapping[str, str]) -> dict[str, str]:
    """Return what the model of a rank gets, by the names of torch, TensorFlow, JAX and Slurm.

    Each node has one process.
    """
    count = str(len(meeting.nodes))
    names = ",".join(meeting.nodes)
    peer = meeting.addresses[0 if rank else 1]
    interface = interface_of(local_address(peer))
    workers = [
        f"[{address}]:{meeting.port}" if ":" in address else f"{address}:{meeting.port}"
        for address in meeting.addresses
    ]
    task = {"type": "worker", "index": rank}
    return {
        "MASTER_ADDR": meeting.addresses[0],
        "MASTER_PORT": str(meeting.port),
        "WORLD_SIZE": count,
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "NODE_RANK": str(rank),
        "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task}),
        # Without these a library takes the address of the host's own name, which often is the loopback one.
        **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
        **{name: slurm[name] for name in ("SLURM_JOB_ID", "SLURM_JOB_PARTITION") if name in slurm},
        "SLURM_JOB_NODELIST": names,
        "SLURM_NODELIST": names,
        "SLURM_STEP_NODELIST": names,
        "SLURM_JOB_NUM_NODES": count,
        "SLURM_NNODES": count,
        "SLURM_NTASKS": count,
        "SLURM_NPROCS": count,
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURMD_NODENAME": meeting.nodes[rank],
    }
