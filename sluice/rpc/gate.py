"""The door of every server: who calls, whether the caller's role may, how often, and how long a request takes to arrive.

The gate decides before a byte of the request is read: unary requests are served as streams of one message, so that the
256 MB of a stranger's request are never read. A refused call is counted, logged at a bounded rate, and answered with the
reason and the fix; no token stands in log or answer.

 who waits     for what                   unblocked by
 a handler     the request's one message  the message, the caller's disconnecting, RECEIVE_S
 a handler     the caller to read         the caller's reading, the caller's disconnecting, SEND_S
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from sluice.clock import Clock
from sluice.errors import Expired, Forbidden, InvalidRequest, Overloaded, SluiceError, Unauthenticated
from sluice.rpc.access import ALLOWED, ANYONE, Role
from sluice.rpc.credentials import Credentials
from sluice.rpc.error_status import message_of, status_of, trailers_of
from sluice.rpc.pace import Pace

log = structlog.get_logger(__name__)

RECEIVE_S = 30.0
"""Time for a request to arrive: 256 MiB at 10 MB/s."""
SEND_S = 60.0
"""Time for the caller to read one response."""
LOGGED_PER_S = 1.0
"""Refusals of one caller that are written to the log."""
PUSHBACK = "grpc-retry-pushback-ms"
"""gRPC's metadata key for the time after which to try again."""

REASONS = ("unauthenticated", "denied", "paced", "malformed", "slow")

_caller: ContextVar[Role | None] = ContextVar("caller", default=None)


_send_limit_s: ContextVar[float] = ContextVar("send_limit_s", default=SEND_S)


def limit_sends(limit_s: float) -> None:
    """Gives the caller of the stream that this task serves `limit_s` to read a response, if that is less than SEND_S."""
    _send_limit_s.set(limit_s)


def caller() -> Role | None:
    """The role of the caller that this task serves; None on a server without credentials."""
    return _caller.get()


class _Refused(Exception):
    """A call that the gate refused: the reason for the count, the error for the caller."""

    def __init__(self, reason: str, error: SluiceError, *, wait_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.reason, self.error, self.wait_s = reason, error, wait_s


@dataclass(kw_only=True, slots=True)
class Gate(grpc.aio.ServerInterceptor):
    """The outermost interceptor of a server. Calls `count` with the reason of every refusal, one of REASONS."""

    credentials: Credentials
    clock: Clock
    calls_per_s: float
    count: Callable[[str], None]
    receive_s: float
    send_s: float
    _pace: Pace = field(init=False)
    _logged: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(clock=self.clock, calls_per_s=self.calls_per_s)
        self._logged = Pace(clock=self.clock, calls_per_s=LOGGED_PER_S, burst_s=5.0)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler, method), None, handler.response_serializer)
        if handler.unary_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(handler, method), None, handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(  # reflection
            self._conversation(handler, method), handler.request_deserializer, handler.response_serializer
        )

    def _unary(self, handler: Any, method: str) -> Callable[..., Any]:
        async def serve(_: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                self._admit(method, context)
                return await handler.unary_unary(await self._receive(handler, context), context)
            except _Refused as refused:
                await self._turn_away(method, context, refused)

        return serve

    def _stream(self, handler: Any, method: str) -> Callable[..., Any]:
        async def serve(_: Any, context: grpc.aio.ServicerContext) -> None:
            try:
                self._admit(method, context)
                request = await self._receive(handler, context)
                async with contextlib.aclosing(handler.unary_stream(request, context)) as responses:
                    async for response in responses:
                        await self._send(response, context)
            except _Refused as refused:
                await self._turn_away(method, context, refused)

        return serve

    def _conversation(self, handler: Any, method: str) -> Callable[..., Any]:
        async def serve(requests: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            try:
                self._admit(method, context)
            except _Refused as refused:
                await self._turn_away(method, context, refused)
            async for response in handler.stream_stream(requests, context):
                yield response

        return serve

    def _admit(self, method: str, context: grpc.aio.ServicerContext) -> None:
        if method in ANYONE:
            return
        try:
            role = self.credentials.caller(context)
        except Unauthenticated as error:
            raise _Refused("unauthenticated", error) from None
        _caller.set(role)
        allowed = ALLOWED.get(method)
        if allowed is None:
            raise _Refused("denied", Forbidden(f"{method}: sluice/rpc/access.py gives it to nobody"))
        if role is not None and role not in allowed:
            raise _Refused(
                "denied",
                Forbidden(
                    f"{method}: is for the role {_names(allowed)}, not for {role}", fix="call with such credentials"
                ),
            )
        if wait_s := self._pace.take(name_of(role, context)):
            raise _Refused(
                "paced",
                Overloaded(
                    f"{method}: more than {self.calls_per_s:g} calls/s (network.max_calls_per_s) from one caller",
                    fix=f"try again in {wait_s:.3f} s",
                ),
                wait_s=wait_s,
            )

    async def _receive(self, handler: Any, context: grpc.aio.ServicerContext) -> Any:
        """The one message of a unary request."""
        try:
            async with asyncio.timeout(self.receive_s):
                data = await context.read()
        except TimeoutError:
            raise _Refused("slow", Expired(f"the request took longer than {self.receive_s:g} s to arrive")) from None
        if data is grpc.aio.EOF:
            raise _Refused("malformed", InvalidRequest("the call carried no message", fix="send exactly one"))
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            raise _Refused(
                "malformed",
                InvalidRequest("the message is no protobuf of this method's request", fix="see docs/api.md"),
            ) from None

    async def _send(self, response: Any, context: grpc.aio.ServicerContext) -> None:
        limit_s = min(self.send_s, _send_limit_s.get())
        try:
            async with asyncio.timeout(limit_s):
                await context.write(response)
        except TimeoutError:
            raise _Refused("slow", Expired(f"the caller read nothing for {limit_s:g} s")) from None

    async def _turn_away(self, method: str, context: grpc.aio.ServicerContext, refused: _Refused) -> NoReturn:
        self.count(refused.reason)
        name = name_of(_caller.get(), context)
        if not self._logged.take(name):
            log.warning("call_refused", method=method, caller=name, reason=refused.reason, why=str(refused.error))
        pushback = ((PUSHBACK, str(round(1e3 * refused.wait_s) + 1)),) if refused.wait_s else ()
        await context.abort(
            status_of(refused.error), message_of(refused.error), (*pushback, *trailers_of(refused.error))
        )
        raise AssertionError("abort raises")


def name_of(role: Role | None, context: grpc.aio.ServicerContext) -> str:
    """The name of a caller for counting: one role on one machine, over all connections."""
    return f"{role or 'anybody'}@{context.peer().rpartition(':')[0]}"


def _names(roles: frozenset[Role]) -> str:
    return " or ".join(sorted(roles))
