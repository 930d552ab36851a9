"""How a service joins a run: fetches the configuration, registers, heartbeats, registers again with a new coordinator.

Waits: for the coordinator, at most `patience_s` from the first call that failed; then `Unavailable` ends the service, which the
launcher restarts. A coordinator that was restarted answers `known = false`, and the service registers again by itself.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import structlog

from sluice.clock import Clock, SystemClock
from sluice.errors import Busy, DiskFull, Unavailable
from sluice.rpc.channel import open_channel, traced
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.error_status import error_of
from sluice.rpc.gate import PUSHBACK
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
_RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass(kw_only=True, slots=True)
class Registration:
    """One service's standing with the coordinator. Use inside one event loop.

    `describe` makes the RegisterRequest, anew at every registration, so that the request states the current version;
    `beat` makes the HeartbeatRequest.
    """

    coordinator: str
    describe: Callable[[], pb.RegisterRequest]
    beat: Callable[[], pb.HeartbeatRequest]
    credentials: Credentials = field(default=NO_CREDENTIALS, repr=False)
    patience_s: float = 120.0
    clock: Clock = field(default_factory=SystemClock)
    on_registered: Callable[[pb.RegisterResponse], Awaitable[None]] | None = None
    registered: pb.RegisterResponse | None = None
    run_dir: str = ""
    """The run directory on the coordinator's machine; known after `fetch_config`."""
    run_name: str = ""
    """The name that no other run has; known after `fetch_config`."""
    run_ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the answer to a heartbeat says that the run has ended; a service that serves only the run may then leave."""
    _channel: grpc.aio.Channel | None = field(default=None, repr=False)

    @property
    def stub(self) -> "pb_grpc.CoordinatorServiceAsyncStub":
        """The coordinator's stub on this registration's channel."""
        if self._channel is None:
            self._channel = open_channel(self.coordinator, credentials=self.credentials)
        return pb_grpc.CoordinatorServiceStub(self._channel)  # type: ignore[return-value]

    async def fetch_config(self) -> str:
        """The run's resolved configuration as YAML; waits for the coordinator up to `patience_s`."""
        response = await self.patiently(
            lambda: self.stub.GetConfig(pb.GetConfigRequest(), timeout=CALL_TIMEOUT_S), "GetConfig"
        )
        self.run_dir, self.run_name = response.run_dir, response.unique_name
        return response.yaml

    def trace(self) -> None:
        """From now on calls carry their task's place in a trace; to be called once, after `fetch_config`."""
        assert self._channel is not None
        self._channel = traced(self._channel)

    async def register(self) -> pb.RegisterResponse:
        """Registers, waiting for the coordinator up to `patience_s`, and as long as it takes for room on its disk and for the
        repair of its Redis.

        Raises the coordinator's refusal as a SluiceError.
        """
        self.registered = await self._register()
        log.info("registered", service_id=self.registered.service_id, coordinator=self.coordinator)
        if self.on_registered is not None:
            await self.on_registered(self.registered)
        return self.registered

    async def _register(self) -> pb.RegisterResponse:
        while True:
            try:
                return await self.patiently(
                    lambda: self.stub.Register(self.describe(), timeout=CALL_TIMEOUT_S), "Register"
                )
            except DiskFull as full:  # an answer that the coordinator gives only after some seconds
                log.warning("waiting_to_register", reason=str(full))

    async def keep_alive(self) -> None:
        """Heartbeats until cancelled. Raises Unavailable after `patience_s` of silence."""
        if self.registered is None:
            await self.register()
        while True:
            assert self.registered is not None
            await asyncio.sleep(self.registered.heartbeat_interval_s)
            answer = await self.patiently(lambda: self.stub.Heartbeat(self.beat(), timeout=CALL_TIMEOUT_S), "Heartbeat")
            if answer.run_ended:
                self.run_ended.set()
            if not answer.known:
                await self.register()

    async def patiently(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """Repeats `call` with jittered backoff while the coordinator cannot be reached, up to `patience_s`.

        The patience counts from the first failure: a call may take long before it fails, and this process may have stood
        still meanwhile. A coordinator that is busy is there, and takes no patience. Raises DiskFull at once: the caller decides
        what to do meanwhile.
        """
        pause_s, give_up_s, told_before = 0.1, float("inf"), ""
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                told = error_of(error, peer=f"coordinator {self.coordinator}")
                if isinstance(told, DiskFull) or (error.code() not in _RETRYABLE and not _paced(error)):
                    raise told from error
                is_busy = isinstance(told, Busy)
                if is_busy and str(told) != told_before:
                    told_before = str(told)
                    log.warning("coordinator_is_busy", call=what, reason=told_before)
                give_up_s = float("inf") if is_busy else min(give_up_s, self.clock.now() + self.patience_s)
                if self.clock.now() >= give_up_s:
                    raise Unavailable(
                        f"{what}: the coordinator at {self.coordinator} did not answer for {self.patience_s:.0f} s"
                        f" ({error.details() or error.code().name})"
                    ) from error
            await self.clock.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, 2.0)

    async def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None


def _paced(error: grpc.aio.AioRpcError) -> bool:
    """Whether the gate refused the call only because the caller exceeds its rate, and named a time to try again."""
    return any(key == PUSHBACK for key, _ in error.trailing_metadata() or ())
