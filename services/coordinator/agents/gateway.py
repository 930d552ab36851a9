"""The coordinator's HTTP port for agents that bring their own loop (docs/environments.md).

 POST /v1/episodes            the next episode, and its key; waits for one
 POST /v1/chat/completions    a turn, as OpenAI's API has it
 POST /inference/v1/generate  a turn, token ids in and out, as vLLM has it
 POST /v1/episodes/finish     the episode's score, or why the agent gave up
 GET  /v1/models              the one model

Bounds: MOST_CONNECTIONS; a request's headers as aiohttp bounds them, a connection's first ones within HEAD_S, a body BODY_BYTES
within BODY_S. A caller is checked before the body is read. A caller that goes away ends its request.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import structlog
from aiohttp import web

from services.coordinator.agents import answers, forms
from services.coordinator.agents.asking import Ask, Refused, Said
from services.coordinator.agents.desk import AgentDesk
from services.coordinator.agents.door import Door
from services.coordinator.agents.session import AgentSession
from services.coordinator.episodes.wanted_episode import Limits
from sluice.addresses import joined
from sluice.errors import LaunchError

log = structlog.get_logger(__name__)

BODY_BYTES: Final = 8 << 20
BODY_S: Final = 30.0
HEAD_S: Final = 10.0
"""Without it connections of nobody in particular would take all places; between requests aiohttp has a limit of its own."""
MOST_CONNECTIONS: Final = 4_096
PARSED_HERE_BYTES: Final = 64 << 10
"""A larger body is parsed in a thread: JSON takes some 10 ms a megabyte."""

# aiohttp logs a traceback for every request that is no HTTP, at no bounded rate, and from callers without credentials.
_SILENT = logging.getLogger(f"{__name__}.http")
_SILENT.setLevel(logging.CRITICAL + 1)

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What agents are told of the run."""

    model: str
    limits: Limits
    temperature: float
    vocabulary: int
    text_of: Callable[[np.ndarray], str]
    """The text of token ids, special ones too."""


class Gateway:
    """Serves one run's desk."""

    def __init__(self, desk: AgentDesk, door: Door, facts: Facts) -> None:
        self._desk, self._door, self._facts = desk, door, facts
        self._unheard: set[object] = set()
        """Connections that have not sent a request's head yet, for HEAD_S at most."""

    @contextlib.asynccontextmanager
    async def serving(self, *, bind: str, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[str]:
        """Serves meanwhile; gives the address for agents. Raises LaunchError when the port is taken."""
        runner = web.AppRunner(
            self._app(), access_log=None, logger=_SILENT, handler_cancellation=True, shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            server = await self._listen(runner, bind, port, tls)
            try:
                bound = joined(bind, server.sockets[0].getsockname()[1])
                self._desk.address = f"{'https' if tls else 'http'}://{bound}/v1"
                yield self._desk.address
            finally:
                server.close()
        finally:
            await runner.cleanup()

    async def stay(self) -> None:
        """Keeps the agents' account in the fleet, until cancelled."""
        await self._desk.stay()

    async def _listen(self, runner: web.AppRunner, bind: str, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
        accept, loop = runner.server, asyncio.get_running_loop()
        assert accept is not None, "setup makes it"

        def protocol() -> asyncio.Protocol:
            if len(accept.connections) >= MOST_CONNECTIONS:
                return _Full()
            connection = accept()
            self._unheard.add(connection)
            loop.call_later(HEAD_S, end_if_unheard, connection)
            return connection

        def end_if_unheard(connection: web.RequestHandler) -> None:
            if connection in self._unheard:
                self._unheard.discard(connection)
                connection.force_close()

        try:
            return await loop.create_server(protocol, bind, port, ssl=tls)
        except OSError as error:
            raise LaunchError(
                f"cannot listen on {joined(bind, port)}: {error.strerror or error}; set network.gateway_port to a free "
                "port, 0 takes any"
            ) from error

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[self._errors])
        app.add_routes(
            [
                web.post("/v1/episodes", self._take),
                web.post("/v1/episodes/finish", self._finish),
                web.post("/v1/chat/completions", self._chat),
                web.post("/inference/v1/generate", self._generate),
                web.get("/v1/models", self._models),
            ]
        )
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error as OpenAI's clients read it."""
        self._unheard.discard(request.protocol)
        try:
            return await handler(request)
        except Refused as refused:
            self._door.note(request, refused)
            return web.json_response(answers.error_tree(refused), status=refused.status)
        except web.HTTPException as error:  # no such path or method, a body that is too large
            refused = Refused(error.status, "invalid_request", f"{request.method} {request.path[:80]}: {error.reason}")
            return web.json_response(answers.error_tree(refused), status=error.status)
        except Exception as error:
            log.error("agent_request_failed", path=request.path[:80], exc_info=error)
            refused = Refused(500, "internal_error", "a fault of the coordinator, whose log has the details")
            return web.json_response(answers.error_tree(refused), status=500)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self._door.check_may_take(request)
        asked = await _body(request, forms.read_json)
        take = forms.take_of(asked)
        session = await self._desk.take(take.environment, wait_s=take.wait_s)
        if session is None:
            return web.Response(status=204)
        facts = self._facts
        tree = answers.episode_tree(session, model=facts.model, limits=facts.limits, temperature=facts.temperature)
        return web.json_response(tree)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        session, facts = self._door.session(request), self._facts

        def read(body: bytes) -> tuple[dict[str, Any], Ask]:
            tree = forms.read_json(body)
            return tree, forms.chat_ask(tree, temperature=facts.temperature, body=body)

        tree, ask = await _body(request, read)
        said = await session.ask(ask)

        def write() -> dict[str, Any]:
            return answers.chat_tree(
                said, model=facts.model, episode=session.episode_id, asked=tree, text_of=facts.text_of
            )

        return await _written(said, write)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        session, facts = self._door.session(request), self._facts

        def read(body: bytes) -> Ask:
            return forms.generate_ask(
                forms.read_json(body), temperature=facts.temperature, vocabulary=facts.vocabulary, body=body
            )

        ask = await _body(request, read)
        said = await session.ask(ask)
        return await _written(said, lambda: answers.generate_tree(said, model=facts.model, episode=session.episode_id))

    async def _finish(self, request: web.Request) -> web.StreamResponse:
        session: AgentSession = self._door.session(request)
        tree = await _body(request, forms.read_json)
        session.end(forms.ended_of(tree, scores=session.scores))
        return web.json_response({"episode": session.episode_id})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._door.session(request)
        return web.json_response(answers.models_tree(self._facts.model, longest=self._facts.limits.episode_tokens))


async def _body(request: web.Request, read: Callable[[bytes], T]) -> T:
    """What `read` makes of the body. Raises Refused."""
    if request.content_type != "application/json":  # which no page of a browser sends without asking first
        raise Refused(
            415, "invalid_content_type", f"the body must be application/json, got {request.content_type[:80]}"
        )
    try:
        async with asyncio.timeout(BODY_S):
            body = await request.read()
    except TimeoutError:
        raise Refused(408, "timeout", f"the body took longer than {BODY_S:g} s to arrive") from None
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, "too_large", f"the body must have at most {BODY_BYTES} bytes") from None
    if len(body) <= PARSED_HERE_BYTES:
        return read(body)
    return await asyncio.to_thread(read, body)


async def _written(said: Said, write: Callable[[], dict[str, Any]]) -> web.Response:
    """An answer; a long turn's tree is made in a thread."""
    long = len(said.sample.token_ids) + len(said.context) > 2_000
    return await asyncio.to_thread(lambda: web.json_response(write())) if long else web.json_response(write())


class _Full(asyncio.Protocol):
    """Ends a connection for which there is no place."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
