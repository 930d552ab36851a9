"""The HTTP server of the metrics endpoint, which strangers reach as well: few connections, and each for a short time.

A new connection takes the place of the oldest one when there are too many, because an honest scrape takes milliseconds: so
strangers that hold connections neither use up threads nor keep Prometheus out.
"""

import contextlib
import socket
import ssl
import time
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog

log = structlog.get_logger(__name__)

MOST_CONNECTIONS = 16
"""Chosen: a Prometheus and its replica need two. At most as many threads again are still ending."""

LIMIT_S = 10.0
"""Limit of a connection from its first byte to its last; Prometheus itself waits no longer by default."""

POLL_S = 0.05
"""What the end of a service waits for its metrics endpoint at most. Chosen: nobody notices it, nor 20 wake-ups a second."""


class BoundedServer(ThreadingMixIn, WSGIServer):
    """A thread a connection, within both limits."""

    daemon_threads = True
    request_queue_size = 64
    tls: ssl.SSLContext | None = None
    """To be set before the server serves; None: plain HTTP."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lock = Lock()
        self._since: dict[socket.socket, float] = {}
        """Connections whose thread has not ended, oldest first."""
        self._told: set[socket.socket] = set()
        """Those among them that were cut off."""
        super().__init__(*args, **kwargs)

    def server_bind(self) -> None:
        """As the base's, without asking the resolver for the machine's name: the answer may take long, and nobody needs it."""
        TCPServer.server_bind(self)
        host, port, *_ = self.server_address
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """The next connection. The connection's own thread makes the TLS handshake, with the first byte that is read."""
        connection, client_address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, client_address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Makes room for the connection; False when so many threads are ending that there is none."""
        with self._lock:
            served = [held for held in self._since if held not in self._told]
            self._cut(served[: max(0, len(served) + 1 - MOST_CONNECTIONS)])
            if len(self._since) >= 2 * MOST_CONNECTIONS:
                return False
            self._since[request] = time.monotonic()
            return True

    def serve_forever(self, poll_interval: float = POLL_S) -> None:
        """As the base's; `shutdown` waits for the next poll."""
        super().serve_forever(poll_interval)

    def service_actions(self) -> None:
        """Cuts off connections that take too long; called at every poll."""
        with self._lock:
            overdue = time.monotonic() - LIMIT_S
            self._cut([held for held, since in self._since.items() if since < overdue and held not in self._told])

    def shutdown_request(self, request: Any) -> None:
        """Is called by a connection's thread at its end."""
        with self._lock:
            self._since.pop(request, None)
            self._told.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away or was cut off is not worth a line at the usual level."""
        log.debug("scrape_broken", client=str(client_address), exc_info=True)

    def _cut(self, connections: list[socket.socket]) -> None:
        """Wakes their threads, which then end."""
        for connection in connections:
            self._told.add(connection)
            with contextlib.suppress(OSError):  # the caller has hung up
                connection.shutdown(socket.SHUT_RDWR)


class BoundedServerV6(BoundedServer):
    """The same on IPv6."""

    address_family = socket.AF_INET6


PEER_NAMES = "sluice.peer_names"
"""In a request's environment: the DNS names of the caller's certificate, which TLS has verified; none without TLS."""


class QuietHandler(WSGIRequestHandler):
    """Answers one request a connection."""

    def get_environ(self) -> dict[str, Any]:
        """As the base's, with PEER_NAMES."""
        shown = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        names = [name for kind, name in (shown or {}).get("subjectAltName", ()) if kind == "DNS"]
        return {**super().get_environ(), PEER_NAMES: names}

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: a scrape is not worth a line."""
