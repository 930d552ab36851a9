"""A port for a server whose address must be known before it starts. Where a server can tell its port, port 0 is better."""

import contextlib
import random
import socket

_TRIES = 50


def free_port(host: str = "") -> int:
    """A port that nobody listens on, below those that Linux gives to outgoing connections: no client takes the port."""
    for port in random.sample(range(20_000, 30_000), _TRIES):
        with contextlib.suppress(OSError), socket.create_server((host, port)):
            return port
    raise AssertionError(f"no free port in {_TRIES} tries")
