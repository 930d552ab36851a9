"""A server of every service whose methods do nothing but answer, and folders of credentials to try on it."""

import contextlib
import datetime
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from sluice.rpc.access import SERVED_BY, Role
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.server import RpcServer, make_server
from sluice.rpc.tokens import make_tokens
from sluice.v1 import coordinator_pb2, environment_pb2, learner_pb2, reward_pb2, rollout_pb2, weight_pb2

FILES = (coordinator_pb2, rollout_pb2, reward_pb2, learner_pb2, environment_pb2, weight_pb2)


def methods() -> Iterator[tuple[str, str, MethodDescriptor]]:
    """(full name of the service, path of the method, its descriptor), all there are."""
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield service.full_name, f"/{service.full_name}/{method.name}", method


def make_folder(folder: Path, kind: str) -> Path:
    """Credentials of every role, by `sluice tokens` or `sluice certs`."""
    if kind == "tokens":
        make_tokens(folder, private_network=False)
    else:
        from sluice.rpc.certificate_authority import make_certificates

        make_certificates(folder, valid_for=datetime.timedelta(days=1), hosts=["127.0.0.1"])
    return folder


@contextlib.asynccontextmanager
async def answering(
    role: Role, *, credentials: Credentials = NO_CREDENTIALS, bind: str = "127.0.0.1", **changes: Any
) -> AsyncIterator[RpcServer]:
    """The services of `role`, each method of which answers with an empty response (a stream: with one)."""
    services = [name for name, served_by in SERVED_BY.items() if role in served_by]
    server = make_server(
        lambda grpc_server: _register(grpc_server, services), services=services, credentials=credentials, **changes
    )
    await server.start(bind=bind, port=0)
    try:
        yield server
    finally:
        await server.stop(grace_s=0)


async def call(channel: grpc.aio.Channel, path: str, method: MethodDescriptor, **how: Any) -> grpc.StatusCode:
    """The status of one call with an empty request."""
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    started = make(path)(b"", timeout=10, **how)
    try:
        if method.server_streaming:
            async for _ in started:
                pass
        else:
            await started
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _register(server: grpc.aio.Server, services: Sequence[str]) -> None:
    for service in services:
        handlers = {method.name: _answer(method) for name, _, method in methods() if name == service}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _answer(method: MethodDescriptor) -> grpc.RpcMethodHandler:
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

    async def one(_: Any, context: grpc.aio.ServicerContext) -> Any:
        return response()

    async def stream(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        yield response()

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, request.FromString, response.SerializeToString)
    return grpc.unary_unary_rpc_method_handler(one, request.FromString, response.SerializeToString)
