"""Client side: one channel per peer, made inside the event loop that uses the channel."""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from sluice.limits import CHANNEL_OPTIONS
from sluice.rpc.access import Role
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.credentials_port import Metadata, Options
from sluice.rpc.traced import outgoing

AnyChannel = TypeVar("AnyChannel", grpc.Channel, grpc.aio.Channel)


def open_channel(
    address: str, *, credentials: Credentials = NO_CREDENTIALS, to: Role = Role.COORDINATOR, options: Options = ()
) -> grpc.aio.Channel:
    """A channel to a server of role `to` at `host:port`, with Sluice's limits; `await channel.close()` closes the channel.

    Raises ConfigError when these credentials must not be shown at this address.
    """
    metadata = credentials.metadata(address, to)
    options = _of(credentials, to, options)
    tls = credentials.channel_tls()
    channel = grpc.aio.secure_channel(address, tls, options) if tls else grpc.aio.insecure_channel(address, options)
    return _Showing(channel, lambda: metadata) if metadata else channel  # type: ignore[return-value]


def open_blocking_channel(
    address: str, *, credentials: Credentials, to: Role = Role.COORDINATOR, options: Options = ()
) -> grpc.Channel:
    """`open_channel` for code without an event loop."""
    metadata = credentials.metadata(address, to)
    options = _of(credentials, to, options)
    tls = credentials.channel_tls()
    channel = grpc.secure_channel(address, tls, options) if tls else grpc.insecure_channel(address, options)
    return _Showing(channel, lambda: metadata) if metadata else channel  # type: ignore[return-value]


def traced(channel: AnyChannel) -> AnyChannel:
    """The channel, whose calls carry the place of their task in a trace, where it has one: for a process that keeps traces."""
    return _Showing(channel, outgoing)  # type: ignore[return-value]


def _of(credentials: Credentials, to: Role, options: Options) -> Options:
    """Sluice's options, those of the caller before them, and those of the credentials before all: of two options of one name
    gRPC takes the first."""
    return tuple(dict([*CHANNEL_OPTIONS, *options, *credentials.channel_options(to)]).items())


class _Showing:
    """A channel whose every call carries what `metadata` returns then. gRPC's call credentials would do the same, but insist on
    TLS; interceptors would wrap every stream."""

    def __init__(self, channel: Any, metadata: Callable[[], Metadata]) -> None:
        self._channel, self._metadata = channel, metadata

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As the channel's."""
        return self._with_metadata(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As the channel's."""
        return self._with_metadata(self._channel.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As the channel's."""
        return self._with_metadata(self._channel.stream_stream(*args, **kwargs))

    def close(self, *args: Any) -> Any:
        """As the channel's; to be awaited where the channel's `close` is a coroutine."""
        return self._channel.close(*args)

    def _with_metadata(self, call: Any) -> Any:
        return lambda *args, metadata=(), **kwargs: call(*args, **kwargs, metadata=(*self._metadata(), *metadata))
