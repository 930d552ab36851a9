"""Who may use the gateway: the run's credentials to take episodes, an episode's key for everything else.

With tokens a request for an episode shows `Authorization: Bearer TOKEN`; with certificates the gateway is HTTPS and
asks for the caller's certificate. A key opens one episode, and nothing after the episode's end. Neither a token nor a
key is ever written to a log.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from aiohttp import web

from services.coordinator.agents.asking import Refused
from services.coordinator.agents.desk import AgentDesk
from services.coordinator.agents.session import AgentSession
from sluice.clock import Clock
from sluice.errors import Unauthenticated
from sluice.rpc.access import TAKES_EPISODES
from sluice.rpc.certificates import NAMES
from sluice.rpc.credentials_port import Credentials
from sluice.rpc.gate import LOGGED_PER_S
from sluice.rpc.pace import Pace

log = structlog.get_logger(__name__)

_BEARER = "Bearer "


class Door:
    """Checks requests before their bodies are read."""

    def __init__(self, credentials: Credentials, desk: AgentDesk, *, clock: Clock) -> None:
        self._credentials, self._desk = credentials, desk
        self._logged = Pace(clock=clock, calls_per_s=LOGGED_PER_S, burst_s=5.0)

    def check_may_take(self, request: web.Request) -> None:
        """Raises Refused for a caller who may not take episodes."""
        try:
            role = self._credentials.caller(_Caller(request))
        except Unauthenticated as error:
            raise Refused(401, "invalid_api_key", str(error)) from None
        if role is not None and role not in TAKES_EPISODES:
            may = " and ".join(sorted(TAKES_EPISODES))
            raise Refused(403, "forbidden", f"episodes are for the role {may}, not for {role}")

    def session(self, request: web.Request) -> AgentSession:
        """The episode whose key the request shows. Raises Refused."""
        shown = request.headers.get("Authorization", "")
        if not shown.startswith(_BEARER):
            raise Refused(401, "invalid_api_key", "show the episode's key: `Authorization: Bearer KEY`, or api_key=KEY")
        return self._desk.session(shown.removeprefix(_BEARER).strip())

    def note(self, request: web.Request, refused: Refused) -> None:
        """Logs who was turned away, at a bounded rate."""
        caller = request.remote or "unknown"
        if refused.status in (401, 403) and not self._logged.take(caller):
            log.warning("agent_refused", caller=caller, path=request.path[:80], code=refused.code)


class _Caller:
    """An HTTP request as a CallContext."""

    def __init__(self, request: web.Request) -> None:
        self._request = request

    def invocation_metadata(self) -> Iterable[Any]:
        """CallContext.invocation_metadata: the one header that counts, of which HTTP takes any bytes."""
        shown = self._request.headers.getall("Authorization", [])
        return [("authorization", value.encode("ascii", errors="replace").decode()) for value in shown]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """CallContext.auth_context."""
        shown = self._request.get_extra_info("peercert") or {}
        return {NAMES: [name.encode() for kind, name in shown.get("subjectAltName", ()) if kind == "DNS"]}
