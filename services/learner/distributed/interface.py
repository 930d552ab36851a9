"""Which network interface leads to the other machines of the learner.

By default gloo listens on the address that the host name resolves to: loopback on many distributions, a container bridge
on others. Linux only; elsewhere set GLOO_SOCKET_IFNAME.
"""

from sluice.addresses import host_of, is_loopback
from sluice.errors import ConfigError
from sluice.interfaces import interface_of, route_to


def interface_towards(endpoint: str) -> str:
    """The interface from which this machine reaches `endpoint` (HOST:PORT), or that has address HOST. Raises ConfigError."""
    host, (_, _, port) = host_of(endpoint), endpoint.rpartition(":")
    try:
        if not 0 < int(port) < 1 << 16:
            raise ValueError("a port is a number from 1 to 65535")
        address = route_to(host)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the learner's meeting point must be HOST:PORT that this machine has a route to, got {endpoint}: {error}; "
            "name node 0 by an address that all machines of the learner have a route to"
        ) from error
    if is_loopback(address) and not is_loopback(host):
        raise ConfigError(
            f"the learner's meeting point must be an address that other machines reach, got {host}, which is {address} "
            "on this machine; give its IP address in launch.learner_rdzv_endpoint"
        )
    if name := interface_of(address):
        return name
    raise ConfigError(
        f"no interface of this machine has {address}, from which it reaches {endpoint}: set GLOO_SOCKET_IFNAME"
    )
