"""Server side: a grpc.aio server with health, reflection, a gate, limits, and one place where errors become statuses.

`RpcServer.start` binds and reports the port; `stop` turns health to NOT_SERVING, lets running calls end within the
grace time and closes. An app that ends on signals calls `stop_on_signals`.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from sluice.addresses import joined
from sluice.clock import SystemClock
from sluice.errors import LaunchError, SluiceError
from sluice.limits import MAX_CALLS_AT_ONCE, MAX_CALLS_PER_S, server_options
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.error_status import known, message_of, status_of, trailers_of
from sluice.rpc.gate import REASONS, RECEIVE_S, SEND_S, Gate
from sluice.rpc.traced import traced_stream, traced_unary
from sluice.telemetry.prometheus import Exporter
from sluice.telemetry.traces.tracer import OFF, Tracer

log = structlog.get_logger(__name__)


@dataclass(kw_only=True, slots=True)
class RpcServer:
    """One process's gRPC server."""

    server: grpc.aio.Server
    services: Sequence[str]
    credentials: Credentials = NO_CREDENTIALS
    refused: Counter[str] = field(default_factory=Counter)
    """Calls that the gate turned away, by reason (sluice.rpc.gate.REASONS)."""
    health: HealthServicer = field(default_factory=HealthServicer)
    port: int = 0

    async def start(self, *, bind: str, port: int) -> int:
        """Binds (0 takes any free port), serves and returns the port.

        Raises LaunchError when the port is taken, ConfigError when the credentials do not suffice for `bind`.
        """
        self.credentials.check_listens(bind)
        address, tls = joined(bind, port), self.credentials.server_tls()
        try:
            if tls is None:
                self.port = self.server.add_insecure_port(address)
            else:
                self.port = self.server.add_secure_port(address, tls)
        except RuntimeError as error:
            raise LaunchError(
                f"cannot listen on {address}: another process uses the port, or this machine has no such address; "
                "choose another port, of a coordinator network.coordinator_port (0 takes any free one), or another address "
                "(network.bind and network.advertise, --bind)"
            ) from error
        await self.server.start()
        for service in (*self.services, ""):
            await self.health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return self.port

    async def stop(self, *, grace_s: float) -> None:
        """Refuses new calls, gives running calls `grace_s`, then closes."""
        await self.health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


def make_server(
    register: Callable[[grpc.aio.Server], None],
    *,
    services: Sequence[str],
    credentials: Credentials = NO_CREDENTIALS,
    calls_per_s: float = MAX_CALLS_PER_S,
    exporter: Exporter | None = None,
    tracer: Tracer = OFF,
) -> RpcServer:
    """Builds a server; `register` adds the servicer, `services` are the full proto names to report as healthy.

    Without credentials it serves loopback only. `calls_per_s` is the limit of one caller; `exporter` counts refusals; calls
    within a trace are spans of `tracer`.
    """
    refused: Counter[str] = Counter()
    metrics = exporter.refusals(REASONS) if exporter else {}

    def count(reason: str) -> None:
        refused[reason] += 1
        if reason in metrics:
            metrics[reason].inc()

    gate = Gate(
        credentials=credentials,
        clock=SystemClock(),
        calls_per_s=calls_per_s,
        count=count,
        receive_s=RECEIVE_S,
        send_s=SEND_S,
    )
    server = grpc.aio.server(
        options=server_options(services),
        interceptors=[gate, _StatusInterceptor(tracer)],
        maximum_concurrent_rpcs=MAX_CALLS_AT_ONCE,
    )
    register(server)
    made = RpcServer(server=server, services=services, credentials=credentials, refused=refused)
    health_pb2_grpc.add_HealthServicer_to_server(made.health, server)
    reflection.enable_server_reflection(
        (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    return made


def stop_on_signals(stop: asyncio.Event) -> None:
    """Sets `stop` on SIGTERM and SIGINT of this process's event loop."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)


class _StatusInterceptor(grpc.aio.ServerInterceptor):
    """Turns every exception of a handler into the status of sluice.rpc.error_status; never lets UNKNOWN out. Traces calls."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

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
            unary = handler.unary_unary
            unary = traced_unary(unary, method, self._tracer) if self._tracer.on else unary
            return grpc.unary_unary_rpc_method_handler(
                _guard_unary(unary, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream:
            stream = handler.unary_stream
            stream = traced_stream(stream, method, self._tracer) if self._tracer.on else stream
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(stream, method), handler.request_deserializer, handler.response_serializer
            )
        return handler  # reflection's bidirectional stream


def _guard_unary(inner: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await inner(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the process boundary: every error becomes a status
            await _abort(context, error, method)

    return guarded


def _guard_stream(inner: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            async for response in inner(request, context):
                yield response
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the process boundary: every error becomes a status
            await _abort(context, error, method)

    return guarded


async def _abort(context: grpc.aio.ServicerContext, error: Exception, method: str) -> None:
    failed = known(error)
    status = status_of(failed)
    if status is grpc.StatusCode.INTERNAL and isinstance(error, SluiceError):
        # Said on purpose, of a user's code for example. A traceback with locals takes the event loop 0.1 s, and shows texts.
        log.error("rpc_failed", method=method, reason=str(error))
    elif status is grpc.StatusCode.INTERNAL:
        log.error("rpc_failed", method=method, exc_info=error)
    await context.abort(status, message_of(failed), trailers_of(failed))
