"""Where a Ray cluster is: asked for a connection before Ray's own library, which would wait for minutes."""

import socket

from sluice.errors import ConfigError, LaunchError

REACH_S = 5.0
"""Limit for the other side to take a connection."""


def reach(address: str, *, variable: str, fix: str) -> None:
    """Returns when something at HOST:PORT takes a connection. Raises ConfigError for an address that is none, LaunchError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{variable} must be HOST:PORT, got {address}; {fix}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise LaunchError(
            f"no Ray cluster answers at {address} ({variable}): {error.strerror or error}; {fix}"
        ) from error
