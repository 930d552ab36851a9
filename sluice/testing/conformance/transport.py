"""The contract of every server: the server answers, reports its health, and refuses messages over the limit."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sluice.errors import Unavailable
from sluice.limits import CHANNEL_OPTIONS, MAX_MESSAGE_BYTES
from sluice.testing.conformance.suite import Violation, require

CALL_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 10.0

# The last setting of a name counts: this end must be able to send messages that the other end has to refuse.
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.max_send_message_length", -1))


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that answers. Raises Unavailable when nothing answers."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await channel.channel_ready()
        except TimeoutError as error:
            raise Unavailable(
                f"{address}: nothing answers there within {CONNECT_TIMEOUT_S:.0f} s; start the server first, and give the "
                "HOST:PORT of its gRPC server"
            ) from error
        yield channel


async def check_health(channel: grpc.aio.Channel, service: str) -> None:
    """Raises Violation unless the server and `service` (its full proto name) say SERVING."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", service):
        request = health_pb2.HealthCheckRequest(service=name)
        status = (await stub.Check(request, timeout=CALL_TIMEOUT_S)).status
        said = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        require(said == "SERVING", f"{name or 'the server as a whole'} says {said}")


async def check_oversized(channel: grpc.aio.Channel, method: str) -> None:
    """Raises Violation unless the server refuses a message over the limit; the message's content does not matter."""
    call = channel.unary_unary(method)  # sends bytes without serialising
    sent = call(bytes(MAX_MESSAGE_BYTES + 1), timeout=CALL_TIMEOUT_S)
    await check_refusal(sent, grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message of {MAX_MESSAGE_BYTES + 1} bytes")


async def check_refusal(call: Awaitable[Any], code: grpc.StatusCode, what: str, *others: grpc.StatusCode) -> None:
    """Raises Violation unless the call fails with `code` (or one of `others`) and a message."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        said = f"{what}: {error.code().name}: {error.details()}"
        require(error.code() in (code, *others), said)
        require(bool(error.details()), f"{what}: {error.code().name} without a message that says what is wrong")
        return
    raise Violation(f"{what} was taken")
