"""Which network interface leads to the other machines of the learner.

By default gloo listens on the address that the host name resolves to: loopback on many distributions, a container bridge
on others. Linux and IPv4 only; elsewhere, or with several addresses on one interface, set GLOO_SOCKET_IFNAME.
"""

import fcntl
import ipaddress
import socket
import struct

from sluice.errors import ConfigError

_SIOCGIFADDR = 0x8915
"""<linux/sockios.h>: the address of an interface."""


def interface_towards(endpoint: str) -> str:
    """The interface from which this machine reaches `endpoint` (HOST:PORT), or that has address HOST. Raises ConfigError."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # sends nothing: the kernel only picks the route
            address = probe.getsockname()[0]
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"the learner's meeting point must be HOST:PORT that this machine has a route to, got {endpoint}: {error}; "
            "name node 0 by an address that all machines of the learner have a route to"
        ) from error
    if ipaddress.ip_address(address).is_loopback and not _is_meant_as_loopback(host):
        raise ConfigError(
            f"the learner's meeting point must be an address that other machines reach, got {host}, which is {address} "
            "on this machine; give its IP address in launch.learner_rdzv_endpoint"
        )
    for _, name in socket.if_nameindex():
        if _address(name) == address:
            return name
    raise ConfigError(
        f"no interface of this machine has {address}, from which it reaches {endpoint}: set GLOO_SOCKET_IFNAME"
    )


def _is_meant_as_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(interface: str) -> str | None:
    """The interface's first IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            answer = fcntl.ioctl(handle.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
