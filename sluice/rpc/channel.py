"""Client side: one channel per peer, made inside the event loop that uses it."""

import grpc

from sluice.rpc.limits import CHANNEL_OPTIONS


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to `host:port` with Sluice's limits and keepalive. Close it with `await channel.close()`."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
