"""Who may see the pages, decided before a byte of a request is read.

On loopback nobody has to show anything, and only pages that this machine's own browser asks for by a loopback name are served:
another site's page, or a name that was pointed at 127.0.0.1, gets nothing. Beyond loopback a link has one of two tokens: the
operator's, which permits actions, or the reader's. The token moves from the link into a cookie.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from sluice.addresses import host_of, is_loopback

COOKIE = "sluice-token"
ROLE = "sluice.role"
"""Key of a request's scope: `operator` or `reader`."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; form-action 'self'"
)
"""No request leaves for another host, whatever a page holds."""

_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """The two tokens of one process; new at every start."""

    operator: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    reader: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def role_of(self, token: str) -> str | None:
        """`operator`, `reader`, or None for a token that is neither."""
        shown = token.encode("utf-8", "replace")
        for role, known in (("operator", self.operator), ("reader", self.reader)):
            if secrets.compare_digest(shown, known.encode()):
                return role
        return None


MOST_PAGES = 100
"""Open at once, and of those that were left in the last seconds. Chosen: some dozen people with a few tabs each; a page costs
about a megabyte, and one of a live run is drawn anew every second."""

_NO_PAGES = ("/assets/", "/_nicegui")
"""What pages that are open already ask for."""


class Gate:
    """ASGI middleware. `tokens` is None on loopback; `pages` counts the pages that are open."""

    def __init__(self, app: Any, *, tokens: Tokens | None, port: int, pages: Callable[[], int] = lambda: 0) -> None:
        self._app, self._tokens, self._pages = app, tokens, pages
        self._cookie = f"{COOKIE}-{port}"  # cookies know no ports

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serves, refuses, or moves a token from the link into the cookie."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if why := _foreign(scope, headers, loopback_only=self._tokens is None):
            await _refuse(scope, send, 403, why)
            return
        role = "operator"
        if self._tokens is not None:
            query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
            if scope["type"] == "http" and (token := query.pop("token", "")) and self._tokens.role_of(token):
                await _move(scope, send, f"{self._cookie}={token}", query)
                return
            known = self._tokens.role_of(_cookie(headers, self._cookie))
            if known is None:
                await _refuse(
                    scope, send, 401, "open the link that `sluice ui` has printed: it holds the token of this run"
                )
                return
            role = known
        if scope["type"] == "http" and not scope["path"].startswith(_NO_PAGES) and self._pages() >= MOST_PAGES:
            full = (
                f"{MOST_PAGES} pages are open here, which is the most; close some, and load this one again in a minute"
            )
            await _refuse(scope, send, 503, full)
            return
        scope[ROLE] = role
        await self._app(scope, receive, _with_headers(send))


def _foreign(scope: dict[str, Any], headers: dict[str, str], *, loopback_only: bool) -> str:
    """Why a request is not served; empty for one that may be."""
    host = headers.get("host", "")
    if loopback_only and not is_loopback(host_of(host)):
        return f"this page is served to this machine alone, as http://localhost, not as {host[:100]!r}"
    if (origin := headers.get("origin", "")) and urlsplit(origin).netloc != host:
        return "another site's page may not ask here"
    return ""


def _cookie(headers: dict[str, str], name: str) -> str:
    """Its value, or nothing. http.cookies would give up every cookie at one of another program that it cannot read."""
    cookies = (one.strip().partition("=") for one in headers.get("cookie", "").split(";"))
    return next((value for known, _, value in cookies if known == name), "")


async def _move(scope: dict[str, Any], send: Any, cookie: str, query: dict[str, str]) -> None:
    path = scope["path"] if scope["path"].startswith("/") and not scope["path"].startswith("//") else "/"
    place = quote(path) + (f"?{urlencode(query)}" if query else "")
    kept = f"{cookie}; Path=/; HttpOnly; SameSite=Lax"
    headers = [(b"location", place.encode()), (b"set-cookie", kept.encode()), (b"referrer-policy", b"no-referrer")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: dict[str, Any], send: Any, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why[:100]})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"sluice: {why}\n".encode()})


def _with_headers(send: Any) -> Any:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return sending
