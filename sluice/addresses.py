"""Which addresses stay on this machine, and how addresses are written.

Needs the standard library alone, because the configuration asks too.
"""

import ipaddress
import socket

AUTO = "auto"
"""As an address: the machine's own, found out where a process starts (sluice/own_address.py)."""

EVERY_ADDRESS = ("0.0.0.0", "::")
"""What a server listens on to be reached at each address of its machine."""


def host_of(address: str) -> str:
    """The host of `host:port`, `[v6]:port` or of a bare host."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def joined(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets: the form that gRPC and Prometheus take."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_address(host: str) -> bool:
    """Whether `host` is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost counts as a name of the network."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def stays_here(address: str) -> bool:
    """Whether bytes sent to `host:port` stay on this machine."""
    return address.startswith("unix:") or is_loopback(host_of(address))


def loopback() -> str:
    """The address at which this machine reaches itself: 127.0.0.1, or ::1 where there is IPv6 alone."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return "127.0.0.1"
    except OSError:
        return "::1"


def loopback_interface() -> str:
    """The interface that leads to this machine alone; empty without one.

    gloo wants it named in GLOO_SOCKET_IFNAME: its default is the machine's own name, which need not resolve.
    """
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")
