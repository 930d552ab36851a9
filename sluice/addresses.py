"""Whether an address stays on this machine. Needs the standard library alone, because the configuration asks too."""

import ipaddress


def host_of(address: str) -> str:
    """The host of `host:port`, `[v6]:port` or of a bare host."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost counts as a name of the network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def stays_here(address: str) -> bool:
    """Whether bytes sent to `host:port` leave this machine not."""
    return address.startswith("unix:") or is_loopback(host_of(address))
