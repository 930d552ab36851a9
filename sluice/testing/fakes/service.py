"""The base of every fake service: a server, and for all but the coordinator a registration with a coordinator."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import grpc

from sluice import PROTOCOL_VERSION
from sluice.model_identity import model_identity
from sluice.rpc.registration import Registration
from sluice.rpc.server import RpcServer, make_server
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb

LINEAGE = "a"
REGISTER_TIMEOUT_S = 5.0


def version(number: int, lineage: str = LINEAGE) -> common.PolicyVersion:
    """Version `number` of a run that was never rolled back."""
    return common.PolicyVersion(lineage=lineage, number=number)


def digest(number: int) -> str:
    """Stands for the weights of a version."""
    return f"weights-{number}"


class Server:
    """A servicer with a server of its own."""

    service_name: ClassVar[str]
    """The name of the service in the protos."""
    server: RpcServer | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds this servicer."""
        raise NotImplementedError

    def make_server(self) -> RpcServer:
        """The server, not yet started."""
        return make_server(self.add_to, services=[self.service_name])

    @property
    def address(self) -> str:
        """host:port of the server."""
        assert self.server is not None
        return f"127.0.0.1:{self.server.port}"

    async def start(self) -> None:
        """Serves on a free port."""
        self.server = self.make_server()
        await self.server.start(bind="127.0.0.1", port=0)

    async def stop(self) -> None:
        """Ends at once, without a word to anybody."""
        if self.server is not None:
            await self.server.stop(grace_s=0)
            self.server = None


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    """Serves until the context is left; gives the server's address."""
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


class Connection(Protocol):
    """An object with a stub of a coordinator."""

    @property
    def stub(self) -> Any: ...


class FakeService(Server):
    """A service that joins a run. `model` is the folder whose identity it states."""

    role: ClassVar["pb.ServiceRole.ValueType"]
    device: ClassVar[str] = ""
    """The device that a registration states."""

    def __init__(
        self, *, service_id: str, model: Path | None = None, capacity: int = 64, max_model_len: int = 128
    ) -> None:
        self.service_id, self.model, self.capacity, self.max_model_len = service_id, model, capacity, max_model_len
        self.incarnation = f"{service_id}-a"
        self.lineage = LINEAGE
        self._standing: Registration | None = None
        self._beating: asyncio.Task[None] | None = None

    def holds(self) -> common.PolicyVersion:
        """The version that a registration states."""
        return version(0, self.lineage)

    def stated(self) -> list[pb.TrainedStep]:
        """The trained steps that a learner's registration states."""
        return []

    def registration(self, **changes: Any) -> pb.RegisterRequest:
        """The request to register; `changes` replace fields."""
        assert self.model is not None
        identity = model_identity(self.model)
        request = pb.RegisterRequest(
            role=self.role,
            service_id=self.service_id,
            address=self.address,
            protocol_version=PROTOCOL_VERSION,
            model_hash=identity.model_hash,
            tokenizer_hash=identity.tokenizer_hash,
            engine="fake",
            device=self.device,
            gpus=pb.Gpus(),
            capacity=self.capacity,
            max_model_len=self.max_model_len,
            version=self.holds(),
            incarnation=self.incarnation,
            trained=self.stated(),
        )
        for name, value in changes.items():
            setattr(request, name, value)
        return request

    async def register(self, to: Connection, **changes: Any) -> pb.RegisterResponse:
        """Registers once, without heartbeats."""
        answer = await to.stub.Register(self.registration(**changes), timeout=REGISTER_TIMEOUT_S)
        self.registered(answer)
        return answer

    def registered(self, answer: pb.RegisterResponse) -> None:
        """Called with the answer to a registration."""

    async def join(self, coordinator: str) -> Registration:
        """Serves, registers and sends heartbeats until `stop`, as a real service does. Waits as Registration does."""
        await self.start()
        self._standing = Registration(
            coordinator=coordinator,
            describe=self.registration,
            beat=lambda: pb.HeartbeatRequest(service_id=self.service_id, incarnation=self.incarnation),
        )
        self.registered(await self._standing.register())
        self._beating = asyncio.create_task(self._standing.keep_alive(), name=f"beat-{self.service_id}")
        return self._standing

    async def stop(self) -> None:
        """Ends at once, without a word to anybody."""
        if self._beating is not None and self._standing is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            await self._standing.close()
            self._beating = None
        await super().stop()
