"""The door of a metrics endpoint: the run's own credentials say who may read, as at the gRPC port beside it.

With tokens a request shows `Authorization: Bearer TOKEN`; with certificates the endpoint is HTTPS and asks for a client's
certificate. Without credentials everybody on this machine may read, and nobody else reaches the port.
"""

import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from sluice.clock import SystemClock
from sluice.errors import Unauthenticated
from sluice.rpc.access import READS_METRICS
from sluice.rpc.certificates import NAMES
from sluice.rpc.credentials_port import Credentials
from sluice.rpc.gate import LOGGED_PER_S
from sluice.rpc.pace import Pace
from sluice.telemetry.bounded_http import PEER_NAMES
from sluice.telemetry.prometheus import App

log = structlog.get_logger(__name__)

UNAUTHENTICATED, DENIED = "401 Unauthorized", "403 Forbidden"


class MetricsGate:
    """Asks by one process's credentials; implements telemetry.prometheus.Guard."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._logged = Pace(clock=SystemClock(), calls_per_s=LOGGED_PER_S, burst_s=5.0)
        self._lock = threading.Lock()
        """Guards `_logged`: every request has a thread of its own."""

    def tls(self) -> ssl.SSLContext | None:
        """Guard.tls."""
        return self._credentials.http_tls()

    def guarded(self, app: App) -> App:
        """Guard.guarded."""

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            refusal = self._refusal(_Request(environ))
            if refusal is None:
                return app(environ, start_response)
            status, why = refusal
            self._log(environ["REMOTE_ADDR"], status, why)
            asks = [("WWW-Authenticate", "Bearer")] if status == UNAUTHENTICATED else []
            start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *asks])
            return [f"{why}\n".encode()]

        return answer

    def _refusal(self, request: "_Request") -> tuple[str, str] | None:
        """HTTP's status and the reason; None for who may read."""
        try:
            role = self._credentials.caller(request)
        except Unauthenticated as error:
            return UNAUTHENTICATED, str(error)
        if role is not None and role not in READS_METRICS:
            return DENIED, f"metrics are for the roles {' and '.join(sorted(READS_METRICS))}, not for {role}"
        return None

    def _log(self, caller: str, status: str, why: str) -> None:
        with self._lock:
            too_many = self._logged.take(caller) > 0.0
        if not too_many:
            log.warning("scrape_refused", caller=caller, status=status, why=why)


class _Request:
    """An HTTP request as a CallContext."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._environ = environ

    def invocation_metadata(self) -> Iterable[Any]:
        """CallContext.invocation_metadata: the one header that counts."""
        shown = self._environ.get("HTTP_AUTHORIZATION")
        return () if shown is None else (("authorization", shown),)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """CallContext.auth_context."""
        return {NAMES: [name.encode() for name in self._environ[PEER_NAMES]]}
