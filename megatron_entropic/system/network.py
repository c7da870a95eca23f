"""This machine's network addresses and interfaces, by where they lead."""

import socket

import psutil


def address_toward(host: str) -> str:
    """This machine's address on the way to `host`, in digits; loopback for loopback. Sends nothing.

    Raises OSError naming `host` when its name or the route to it is unknown.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise OSError(error.errno, f"{host} cannot be reached from {socket.gethostname()}: {error.strerror or error}") from error


def interfaces() -> dict[str, list[str]]:
    """Addresses (IPv4 and IPv6) of every network interface, by its name; only of those that have one."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = {
        name: [entry.address.split("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def interface_of(address: str) -> str | None:
    """Name of the interface that has `address`, or None."""
    return next((name for name, addresses in interfaces().items() if address in addresses), None)


def address_of(interface: str) -> str:
    """The first address of an interface. Raises ValueError naming the interfaces there are."""
    found = interfaces()
    if interface not in found:
        raise ValueError(f"{socket.gethostname()} has no interface {interface!r} with an address; it has {', '.join(sorted(found))}")
    return found[interface][0]
