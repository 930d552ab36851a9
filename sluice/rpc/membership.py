"""Membership of one process in a run: the process registers under a name, sends heartbeats, and says when it leaves.

   membership = Membership(options, describe=..., beat=...)
   membership.serves(port=18051, metrics_port=19051)
   await membership.stay()     # registered and alive until a signal or the end of the run
   await membership.leave()    # the coordinator knows at once, and not after a heartbeat timeout

who waits   for what                                      unblocked by
`stay`      a signal, the run's end, one of `ends`        each of the three; the coordinator's silence (Unavailable)
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog

from sluice import PROTOCOL_VERSION
from sluice.addresses import joined
from sluice.rpc.registration import Registration
from sluice.rpc.server import stop_on_signals
from sluice.rpc.service import ServiceOptions
from sluice.v1 import coordinator_pb2 as pb

log = structlog.get_logger(__name__)

LEAVE_TIMEOUT_S = 2.0
"""Limit of the last heartbeat. Chosen: a last heartbeat that is not heard costs the coordinator one heartbeat timeout."""


class Membership:
    """Identity, registration and heartbeats of one service process. Use inside one event loop."""

    def __init__(
        self,
        options: ServiceOptions,
        *,
        describe: Callable[[], pb.RegisterRequest],
        beat: Callable[[], pb.HeartbeatRequest],
        name: str = "",
    ) -> None:
        """`describe` and `beat` state what only the service knows: its role, its capacity, its weights and its load.
        `describe` and `beat` are called anew every time. `name` is the service's id unless the options give an id;
        without `name` and an option the coordinator chooses an id."""
        self._options, self._describe, self._beat = options, describe, beat
        self._name = options.service_id or name
        self._incarnation = uuid.uuid4().hex
        self._address = self._metrics_address = ""
        self._leaving = False
        self.registration = Registration(
            coordinator=options.coordinator,
            describe=self._request,
            beat=self._heartbeat,
            credentials=options.credentials,
        )

    @property
    def service_id(self) -> str:
        """The service's id; empty before the coordinator has chosen one."""
        registered = self.registration.registered
        return registered.service_id if registered else self._name

    def serves(self, *, port: int, metrics_port: int | None) -> None:
        """Notes the ports at which this process serves; to be called before registering."""
        host = self._options.advertise
        self._address = joined(host, port)
        self._metrics_address = "" if metrics_port is None else joined(host, metrics_port)

    async def stay(self, *ends: Awaitable[Any]) -> None:
        """Registers and heartbeats until a signal, the end of the run, or until one of `ends` is over."""
        stop = asyncio.Event()
        await self.registration.register()
        stop_on_signals(stop)
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self.registration.keep_alive())
            waits = [group.create_task(event.wait()) for event in (stop, self.registration.run_ended)]
            await asyncio.wait([*waits, *map(asyncio.ensure_future, ends)], return_when=asyncio.FIRST_COMPLETED)
            for task in (beating, *waits):
                task.cancel()

    async def stay_beside(self) -> None:
        """Registers and heartbeats until cancelled: for a process that is in a run a second time, in another role."""
        await self.registration.keep_alive()

    async def leave(self) -> None:
        """Tells the coordinator that this process leaves, because its work is done or somebody ends it."""
        self._leaving = True
        try:
            await self.registration.stub.Heartbeat(self._heartbeat(), timeout=LEAVE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:  # the coordinator will notice by itself
            log.info("leaving_not_heard", code=error.code().name)

    def _request(self) -> pb.RegisterRequest:
        request = self._describe()
        request.service_id = self.service_id
        request.address = self._address
        request.protocol_version = PROTOCOL_VERSION
        request.incarnation = self._incarnation
        request.metrics_address = self._metrics_address
        request.host = self._options.host
        return request

    def _heartbeat(self) -> pb.HeartbeatRequest:
        request = self._beat()
        request.service_id = self.service_id
        request.incarnation = self._incarnation
        request.draining |= self._leaving
        return request
