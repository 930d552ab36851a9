"""What servers, gates and channels ask of credentials, whatever these are: tokens, certificates or none."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from sluice.rpc.access import Role

Options = Sequence[tuple[str, int | str]]
Metadata = Sequence[tuple[str, str]]


class CallContext(Protocol):
    """The part of grpc.aio.ServicerContext that tells who calls."""

    def invocation_metadata(self) -> Iterable[Any] | None:
        """Pairs of name and value that the caller sent in front of its request."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS found out about it."""
        ...


class Credentials(Protocol):
    """One process's credentials: both what it presents and what it accepts."""

    def check_listens(self, bind: str) -> None:
        """Raises ConfigError when these do not suffice to listen on `bind`."""
        ...

    def server_tls(self) -> grpc.ServerCredentials | None:
        """What to listen with; None: plain TCP."""
        ...

    def caller(self, context: CallContext) -> Role | None:
        """Who calls; None: anybody on this machine. Raises Unauthenticated without the secret in its message."""
        ...

    def channel_tls(self) -> grpc.ChannelCredentials | None:
        """What to connect with; None: plain TCP."""
        ...

    def channel_options(self, to: Role) -> Options:
        """What makes sure that the other end is a `to`."""
        ...

    def metadata(self, address: str, to: Role) -> Metadata:
        """What goes with every call. Raises ConfigError when it must not be sent there."""
        ...
