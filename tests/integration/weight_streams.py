"""A source's gRPC server in a thread of its own, as a learner has it, and faults in what the server sends."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc

from services.learner.control.thread import ControlThread
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.server import RpcServer, make_server
from sluice.weights.links import Links
from sluice.weights.streams import WeightStreams


@contextlib.contextmanager
def serving(
    links: Links, *, credentials: Credentials = NO_CREDENTIALS, passing: Callable[[str], None] | None = None
) -> Iterator[RpcServer]:
    """Serves what `links` offers; `passing` is called with the epoch before each piece leaves."""
    thread, streams = ControlThread(), (WeightStreams if passing is None else _faulty(passing))(links.offered)
    server: list[RpcServer] = []

    async def start() -> None:
        made = make_server(streams.add_to, services=[streams.name], credentials=credentials)
        links.rpc_port = await made.start(bind="127.0.0.1", port=0)
        server.append(made)

    thread.call(start())
    try:
        yield server[0]
    finally:
        streams.close()
        thread.close(lambda: server[0].stop(grace_s=0))


def _faulty(passing: Callable[[str], None]) -> type[WeightStreams]:
    class Faulty(WeightStreams):
        async def FetchWeights(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            async with contextlib.aclosing(super().FetchWeights(request, context)) as sent:
                async for piece in sent:
                    passing(request.epoch)
                    yield piece

    return Faulty
