"""This machine's own address, by the words of `network.bind` and `network.advertise`.

 words               the address
 auto                the one from which this machine reaches its peer; loopback for a peer on loopback
 ib0                 that of an interface
 10.1.0.0/16         this machine's in a network
 10.1.0.7, node7     as given
Words are resolved where a process starts, so that one configuration serves every node.
"""

import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable

from sluice.addresses import AUTO, EVERY_ADDRESS, host_of, is_address, is_loopback, loopback
from sluice.errors import ConfigError
from sluice.interfaces import Interfaces, in_words, interfaces, route_to

NAME_PATIENCE_S = 60.0
"""How long `auto` waits for a peer whose name does not resolve or to which no route leads. Chosen: above the start of a
network or of a peer's container, below what a service waits for its coordinator (Registration.patience_s)."""

_ELSEWHERE = ("203.0.113.1", "2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849), which only a default route leads to."""

BIND, ADVERTISE = "network.bind (--bind)", "network.advertise (--advertise)"


def own_address(words: str, *, auto: Callable[[], str], key: str) -> str:
    """The address or host that `words`, the value of `key`, stand for on this machine; `auto` finds the one of that word.

    Raises ConfigError, whose line names the interfaces that there are.
    """
    if words == AUTO:
        return auto()
    if is_address(words):
        return words
    there = interfaces()
    if found := _found(words, there):
        return found
    raise ConfigError(
        f"{key}: must be auto, an interface, a CIDR, an address or a host that {socket.gethostname()} has, got {words}; "
        f"there are {in_words(there)}"
    )


def advertised_address(words: str, *, bind: str, auto: Callable[[], str]) -> str:
    """Where others reach a server that listens on `bind`, an address or a host already, which `auto` stands for unless it
    is every address. Raises ConfigError."""
    if words == AUTO and bind not in EVERY_ADDRESS:
        return bind
    return own_address(words, auto=auto, key=ADVERTISE)


def address_towards(endpoint: str, *, patience_s: float = NAME_PATIENCE_S) -> str:
    """The address from which this machine reaches HOST:PORT; loopback for a peer there, and for none.

    Raises ConfigError when no route leads to the peer.
    """
    host = host_of(endpoint)
    if not host or is_loopback(host):
        return loopback()
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            source = route_to(host)
        except OSError as error:
            if time.monotonic() > give_up_s:
                raise ConfigError(
                    f"{BIND}: auto is the address from which this machine reaches {endpoint}, and no route leads there: "
                    f"{error}; name an interface or an address, there are {in_words(interfaces())}"
                ) from error
            time.sleep(min(0.5, patience_s))
        else:
            return loopback() if is_loopback(source) else source


def network_address() -> str:
    """This machine's address on the network of other machines: of the default route, else of the only interface, else
    loopback. Raises ConfigError without a default route where several interfaces qualify."""
    for elsewhere in _ELSEWHERE:
        with contextlib.suppress(OSError):
            return route_to(elsewhere)
    there = {name: found for name, found in interfaces().items() if found and not is_loopback(found[0])}
    if len(there) > 1:
        raise ConfigError(
            f"network.bind: auto finds no default route on {socket.gethostname()}, and several interfaces, "
            f"{in_words(there)}; name the one that leads to the other nodes"
        )
    return next(iter(there.values()))[0] if there else loopback()


def _found(words: str, there: Interfaces) -> str:
    """The address of an interface, in a CIDR, or a host's name; empty for what this machine has not."""
    if "/" in words:
        network = ipaddress.ip_network(words, strict=False)
        addresses = sorted((address for found in there.values() for address in found), key=is_loopback)
        return next((address for address in addresses if ipaddress.ip_address(address) in network), "")
    if words in there:
        return next(iter(there[words]), "")
    return words if "." in words or _resolves(words) else ""  # a name with dots may be known elsewhere only


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 1)
    except OSError:
        return False
    return True
