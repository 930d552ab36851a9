"""The methods that servers, gates and channels call on credentials of every kind: tokens, certificates or none."""

import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from sluice.rpc.access import Role

Options = Sequence[tuple[str, int | str]]
Metadata = Sequence[tuple[str, str]]


class CallContext(Protocol):
    """The part of grpc.aio.ServicerContext that says who calls; metrics_gate.py has the same of an HTTP request."""

    def invocation_metadata(self) -> Iterable[Any] | None:
        """Pairs of name and value that the caller sent before the request."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """The facts about the caller that TLS verified."""
        ...


class Credentials(Protocol):
    """One process's credentials: the credentials that the process shows, and the check of credentials shown to it."""

    def check_listens(self, bind: str) -> None:
        """Raises ConfigError when these credentials do not suffice to listen on `bind`."""
        ...

    def server_tls(self) -> grpc.ServerCredentials | None:
        """TLS for a listening server; None: plain TCP."""
        ...

    def http_tls(self) -> ssl.SSLContext | None:
        """TLS for a listening HTTP server, which then asks callers for a certificate; None: plain HTTP."""
        ...

    def caller(self, context: CallContext) -> Role | None:
        """The caller's role; None: anybody on this machine. Raises Unauthenticated, whose message holds no secret."""
        ...

    def channel_tls(self) -> grpc.ChannelCredentials | None:
        """TLS for a channel; None: plain TCP."""
        ...

    def channel_options(self, to: Role) -> Options:
        """Channel options that make sure that the other end has role `to`."""
        ...

    def metadata(self, address: str, to: Role) -> Metadata:
        """The metadata of every call. Raises ConfigError when the metadata must not be sent to `address`."""
        ...
