"""The network interfaces of this machine, their addresses, and which of them leads where.

Standard library alone. Interfaces are read on Linux; elsewhere only routes are known.
"""

import array
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from sluice.addresses import is_loopback

Interfaces = Mapping[str, Sequence[str]]
"""Addresses by interface, IPv4 before IPv6; without link-local ones, which mean something on one cable only."""

NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"

_SIOCGIFCONF = 0x8912
"""<linux/sockios.h>: every IPv4 address with its interface."""

_IFREQ_BYTES, _MOST_ADDRESSES = 40, 1024
"""<linux/if.h> on 64-bit machines: a name of 16 bytes, and a union that begins with a sockaddr."""


def interfaces() -> Interfaces:
    """This machine's interfaces, those without an address included."""
    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    for name, address in [*_ipv4(), *_ipv6()]:
        if not ipaddress.ip_address(address).is_link_local:
            found.setdefault(name, []).append(address)
    return found


def with_addresses() -> list[str]:
    """The names of the interfaces that have an address."""
    return [name for name, addresses in interfaces().items() if addresses]


def interface_of(address: str) -> str:
    """The interface that has `address`; empty when none has."""
    return next((name for name, found in interfaces().items() if address in found), "")


def in_words(there: Interfaces) -> str:
    """`lo 127.0.0.1 ::1, eth0 10.0.0.2`."""
    return ", ".join(" ".join((name, *found)) for name, found in there.items() if found) or "none"


def route_to(host: str) -> str:
    """The source address of packets to `host`. Raises OSError without a route, and for a name that does not resolve."""
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # sends nothing: the kernel only picks the route
                return probe.getsockname()[0]
        except OSError as error:
            failure = error
    raise failure


def prefer_for_nccl(address: str) -> None:
    """Has NCCL take the interface of `address`, this process's advertised one, for what it does over sockets.

    By itself NCCL takes the first interface that is neither loopback nor Docker's, which may be a bridge that leads nowhere.
    What the user has set stays; on loopback, between processes of one machine, NCCL chooses.
    """
    if not is_loopback(address) and (name := interface_of(address)):
        os.environ.setdefault(NCCL_INTERFACE, f"={name}")


def _ipv4() -> list[tuple[str, str]]:
    room = array.array("B", bytes(_IFREQ_BYTES * _MOST_ADDRESSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            answer = fcntl.ioctl(handle, _SIOCGIFCONF, struct.pack("iP", len(room), room.buffer_info()[0]))
        except OSError:
            return []
    used = room.tobytes()[: struct.unpack("iP", answer)[0]]
    entries = [used[at : at + _IFREQ_BYTES] for at in range(0, len(used), _IFREQ_BYTES)]
    return [(_interface(entry[:16].partition(b"\0")[0].decode()), socket.inet_ntoa(entry[20:24])) for entry in entries]


def _interface(label: str) -> str:
    """An address that was added under a label stands there as eth0:LABEL."""
    return label.partition(":")[0]


def _ipv6() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [(row[5], str(ipaddress.IPv6Address(int(row[0], 16)))) for row in rows]
