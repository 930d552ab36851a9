"""Who may see the pages: on loopback this machine's own browser, beyond it who has a token."""

import asyncio
from typing import Any

import pytest

from sluice.ui.gate import MOST_PAGES, POLICY, ROLE, Gate, Tokens

TOKENS = Tokens(operator="o" * 32, reader="r" * 32)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope[ROLE].encode()})


def ask(
    tokens: Tokens | None,
    *,
    kind: str = "http",
    query: str = "",
    path: str = "/groups",
    method: str = "GET",
    pages: int = 0,
    **headers: str,
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    told = [(name.encode(), value.encode()) for name, value in ({"host": "127.0.0.1:8050"} | headers).items()]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": told, "method": method}
    asyncio.run(Gate(app, tokens=tokens, port=8050, pages=lambda: pages)(scope, None, send))
    return sent


def status(*args: Any, **how: Any) -> int:
    return ask(*args, **how)[0]["status"]


def test_on_loopback_nobody_shows_anything_and_every_answer_forbids_other_hosts() -> None:
    answer = ask(None)
    assert (answer[0]["status"], answer[1]["body"]) == (200, b"operator")
    assert (b"content-security-policy", POLICY.encode()) in answer[0]["headers"]
    assert "connect-src 'self'" in POLICY


def test_beyond_the_most_pages_a_new_one_is_told_so_and_the_open_ones_go_on() -> None:
    assert status(None, pages=MOST_PAGES - 1) == 200
    start, body = ask(None, pages=MOST_PAGES)
    assert start["status"] == 503
    assert (
        body["body"]
        == b"sluice: 100 pages are open here, which is the most; close some, and load this one again in a minute\n"
    )
    assert status(None, pages=MOST_PAGES, path="/assets/page.css") == 200
    assert status(TOKENS, pages=MOST_PAGES) == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8050", "", "10.0.0.1:8050"])
def test_a_name_that_was_pointed_at_this_machine_gets_nothing(host: str) -> None:
    assert status(None, host=host) == 403


@pytest.mark.parametrize("host", ["localhost:8050", "127.0.0.1", "[::1]:8050"])
def test_the_names_of_loopback_are_served(host: str) -> None:
    assert status(None, host=host) == 200


def test_another_sites_page_opens_no_socket_and_posts_nothing() -> None:
    assert ask(None, kind="websocket", origin="http://evil.example")[0]["type"] == "websocket.close"
    assert status(None, method="POST", origin="http://evil.example") == 403
    assert status(None, method="POST", origin="http://127.0.0.1:8050") == 200
    assert status(None, origin="http://evil.example") == 403


def test_beyond_loopback_a_token_is_asked_for_and_moves_from_the_link_into_a_cookie() -> None:
    assert status(TOKENS, host="10.0.0.1:8050") == 401
    assert status(TOKENS, host="10.0.0.1:8050", query="token=guessed") == 401
    assert ask(TOKENS, kind="websocket", host="10.0.0.1:8050")[0]["type"] == "websocket.close"
    moved = ask(TOKENS, host="10.0.0.1:8050", query=f"term=stale&token={TOKENS.reader}")[0]
    headers = dict(moved["headers"])
    assert (moved["status"], headers[b"location"]) == (303, b"/groups?term=stale")
    assert b"HttpOnly" in headers[b"set-cookie"]
    cookie = headers[b"set-cookie"].decode().partition(";")[0]
    assert ask(TOKENS, host="10.0.0.1:8050", cookie=cookie)[1]["body"] == b"reader"
    assert ask(TOKENS, cookie=f"sluice-token-8050={TOKENS.operator}", host="10.0.0.1:8050")[1]["body"] == b"operator"
    assert status(TOKENS, host="10.0.0.1:8050", cookie="sluice-token-8050=guessed") == 401


@pytest.mark.parametrize(
    ("path", "place"),
    [("//evil.example/x", b"/"), ("/\\evil.example", b"/%5Cevil.example"), ("/group/a\r\nb", b"/group/a%0D%0Ab")],
)
def test_a_link_leads_to_no_other_host(path: str, place: bytes) -> None:
    moved = ask(TOKENS, host="10.0.0.1:8050", path=path, query=f"token={TOKENS.reader}")[0]
    assert dict(moved["headers"])[b"location"] == place


def test_a_cookie_of_another_program_on_the_host_hides_no_token() -> None:
    cookie = f'seen={{"a": [1, 2]}}; sluice-token-8050={TOKENS.reader}; b='
    assert ask(TOKENS, host="10.0.0.1:8050", cookie=cookie)[1]["body"] == b"reader"
