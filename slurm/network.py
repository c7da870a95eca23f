"""The address at which the other nodes of a job find this one."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Sequence

from slurm.allocation import ClusterError, ask

_SIOCGIFADDR = 0x8915


def own_address(nodes: Sequence[str], interface: str | None) -> str:
    """The IPv4 address of `interface`, else the one on the way to the job's last node. Raises ClusterError."""
    if interface:
        return interface_address(interface)
    if len(nodes) == 1:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((node_address(nodes[-1]), 9))
        except OSError as error:
            raise ClusterError(f"{nodes[-1]}: cannot be reached from {nodes[0]}: {error}") from error
        return str(probe.getsockname()[0])


def interface_address(interface: str) -> str:
    """The IPv4 address of a network interface of this machine. Raises ClusterError naming the interfaces there are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            request = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError as error:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise ClusterError(
                f"--interface={interface}: {socket.gethostname()} has no such interface with an address; it has {names}"
            ) from error


def node_address(node: str) -> str:
    """Address of a node: its name, if that means anything here, else the address by which SLURM knows it."""
    try:
        return socket.gethostbyname(node)
    except OSError:
        fields = dict(field.split("=", 1) for field in ask("scontrol", "show", "node", "-o", node).split() if "=" in field)
        return fields.get("NodeAddr", node)


def master_port(job_id: str) -> int:
    """A port of the job's own, the same at every start: for the rendezvous, and for what preflight tries on every node."""
    return 20000 + int(job_id) % 20000
