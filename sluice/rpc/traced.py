"""Traces through gRPC: calls carry the caller's place as W3C's `traceparent`, and what serves such a call is a span.

Where a process keeps no traces neither side of this is there at all. A call that a gate refuses is no span.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import grpc

from sluice.rpc.error_status import known, status_of
from sluice.telemetry.traces.context import TRACEPARENT, TraceContext, current, enter, parsed
from sluice.telemetry.traces.span import SpanEvent, SpanRecord, Value
from sluice.telemetry.traces.tracer import Tracer

MOST_EVENTS = 128
"""Events of one span, OpenTelemetry's own limit."""


def outgoing() -> tuple[tuple[str, str], ...]:
    """The metadata by which a call carries this task's place."""
    place = current()
    return () if place is None else ((TRACEPARENT, place.traceparent),)


def traced_unary(inner: Callable[..., Any], method: str, tracer: Tracer) -> Callable[..., Any]:
    """A handler whose calls within a trace are spans."""

    async def serve(request: Any, context: grpc.aio.ServicerContext) -> Any:
        call = _Call.of(context, method, tracer)
        if call is None:
            return await inner(request, context)
        with call:
            return await inner(request, context)

    return serve


def traced_stream(inner: Callable[..., Any], method: str, tracer: Tracer) -> Callable[..., Any]:
    """`traced_unary` for a handler that answers with a stream."""

    async def serve(request: Any, context: grpc.aio.ServicerContext) -> Any:
        call = _Call.of(context, method, tracer)
        if call is None:
            async for response in inner(request, context):
                yield response
            return
        with call:
            async for response in inner(request, context):
                yield response

    return serve


def note(**values: Value) -> None:
    """Attributes for the span of the call that this task serves, `__` for a dot; nothing where the call is no span."""
    if (call := _serving.get()) is not None:
        call.attributes |= {name.replace("__", "."): value for name, value in values.items()}


def moment(name: str, **values: Value) -> None:
    """An event of that span, now."""
    call = _serving.get()
    if call is not None and len(call.events) < MOST_EVENTS:
        attributes = {key.replace("__", "."): value for key, value in values.items()}
        call.events.append(SpanEvent(name=name, time_s=time.time(), attributes=attributes))


class _Call:
    """One call within a trace, while it is served. The task that serves it ends with it, so nothing is undone behind it."""

    def __init__(self, parent: TraceContext, method: str, tracer: Tracer) -> None:
        self._parent, self._method, self._tracer = parent, method.lstrip("/"), tracer
        self._place, self._started = parent.child(), time.time()
        self.attributes: dict[str, Value] = {"rpc.system.name": "grpc", "rpc.method": self._method}
        self.events: list[SpanEvent] = []

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext, method: str, tracer: Tracer) -> "_Call | None":
        parent = _caller_of(context.invocation_metadata())
        return None if parent is None else cls(parent, method, tracer)

    def __enter__(self) -> None:
        enter(self._place)
        _serving.set(self)

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        code = _code(error)
        self.attributes["rpc.response.status_code"] = code
        self._tracer.end(
            SpanRecord(
                name=self._method,
                place=self._place,
                parent_id=self._parent.span_id,
                start_s=self._started,
                end_s=time.time(),
                kind="server",
                attributes=self.attributes,
                events=self.events,
                fault="" if error is None else f"{code}: {error}",
            )
        )


_serving: ContextVar[_Call | None] = ContextVar("serving", default=None)


def _caller_of(metadata: Iterable[Any] | None) -> TraceContext | None:
    for key, value in metadata or ():
        if key == TRACEPARENT:
            return parsed(value) if isinstance(value, str) else None
    return None


def _code(error: BaseException | None) -> str:
    if error is None:
        return grpc.StatusCode.OK.name
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return grpc.StatusCode.CANCELLED.name
    return status_of(known(error)).name
