"""The client for programs with an event loop.

who waits   for what                          unblocked by
a call      its answer                        the call's own time limit
watch()     the next event                    the event, STREAM_TIMEOUT_S, the end of the run
watch()     a coordinator that has gone away  the coordinator's return, PATIENCE_S
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from sluice.client import calls
from sluice.client.calls import Call, Event, Group, Prompt, RunState, Status
from sluice.client.local_launcher import LocalLauncher, started
from sluice.client.watching import PATIENCE_S, STREAM_TIMEOUT_S, Place
from sluice.rpc.channel import open_channel
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.error_status import error_of
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc

T = TypeVar("T")


class AsyncClient:
    """`Client` in an event loop: the same methods, awaited. `async with` or `await client.close()` closes the client."""

    def __init__(self, address: str, *, credentials: Credentials = NO_CREDENTIALS, retry_reads: bool = True) -> None:
        self.address = address
        options = (("grpc.service_config", calls.RETRIED_READS),) if retry_reads else ()
        self._channel = open_channel(address, credentials=credentials, options=options)
        self._stub: Any = coordinator_pb2_grpc.CoordinatorServiceStub(self._channel)
        self._launcher: LocalLauncher | None = None

    @classmethod
    async def start(
        cls,
        recipe: str | Path,
        *,
        overrides: Sequence[str] = (),
        run_dir: str | Path | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> Self:
        """Client.start."""
        launcher = await asyncio.to_thread(LocalLauncher, recipe, overrides=overrides, run_dir=run_dir)
        client = cls(launcher.address, credentials=credentials)
        client._launcher = launcher
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Client.close."""
        await self._channel.close()
        if self._launcher is not None:
            await asyncio.to_thread(self._launcher.end)

    async def wait(self, *, timeout_s: float | None = None) -> int:
        """Client.wait."""
        return await asyncio.to_thread(started(self._launcher).wait, timeout_s=timeout_s)

    async def _do(self, call: Call[T], **how: Any) -> T:
        try:
            answer = await getattr(self._stub, call.method)(call.request, timeout=call.timeout_s, **how)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, peer=self.address) from error
        return call.read(answer)

    async def watch(
        self, *, after_sequence: int = 0, process: str = "", launcher: bool = False
    ) -> AsyncIterator[Event]:
        """Client.watch. `launcher` marks the caller as the launcher, which starts and ends processes for `scale`."""
        place = Place(after_sequence=after_sequence, process=process, launcher=launcher)
        while not place.run_has_ended:
            stream = self._stub.WatchEvents(place.request(), timeout=STREAM_TIMEOUT_S)
            try:
                place.begin(await stream.initial_metadata())
                async for event in stream:
                    place.move(event)
                    yield event
            except grpc.aio.AioRpcError as error:
                if not place.run_has_ended and not place.is_broken(error):
                    raise error_of(error, peer=self.address) from error
            finally:
                stream.cancel()
            if place.run_has_ended or await self._has_ended():
                return

    async def _has_ended(self) -> bool:
        """Whether the run has ended; waits for a coordinator that is being restarted."""
        status = await self._do(calls.status(patience_s=PATIENCE_S), wait_for_ready=True)
        return RunState(status.state).final

    async def status(self) -> Status:
        """Client.status."""
        return await self._do(calls.status())

    async def pause(self) -> RunState:
        """Client.pause."""
        return await self._do(calls.pause())

    async def resume(self) -> RunState:
        """Client.resume."""
        return await self._do(calls.resume())

    async def drain(self, *, timeout_s: float = calls.LONG_CALL_TIMEOUT_S) -> RunState:
        """Client.drain."""
        return await self._do(calls.drain(timeout_s))

    async def stop(self, *, reason: str = "") -> RunState:
        """Client.stop."""
        return await self._do(calls.stop(reason))

    async def scale(self, role: str, replicas: int) -> int:
        """Client.scale."""
        return await self._do(calls.scale(role, replicas))

    async def report_places(self, places: Iterable[pb.Place], *, scaled: pb.ScaleOutcome | None = None) -> None:
        """For a launcher: where each of its services is, or why a service has no place. Holds for 30 s. `scaled`: what it has
        just done about a `scale` event."""
        await self._do(calls.report_places(places, scaled=scaled))

    async def save_checkpoint(self) -> pb.SaveCheckpointResponse:
        """Client.save_checkpoint."""
        return await self._do(calls.save_checkpoint())

    async def evaluate(
        self, set_name: str = "", *, prompts: int = 0, n: int = 0, timeout_s: float = calls.LONG_CALL_TIMEOUT_S
    ) -> pb.Evaluation:
        """Client.evaluate."""
        return await self._do(calls.evaluate(prompts, n, set_name, timeout_s=timeout_s))

    async def rollback(self, to: int, *, preview: bool = False) -> pb.RollbackResponse:
        """Client.rollback."""
        return await self._do(calls.rollback(to, preview=preview))

    async def submit(self, prompts: Iterable[Prompt]) -> list[str]:
        """Client.submit."""
        return await self._do(calls.submit(prompts))

    async def groups(self, *, state: str = "", limit: int = 100) -> list[pb.GroupSummary]:
        """Client.groups."""
        return await self._do(calls.groups(state, limit))

    async def group(self, group_id: str | int) -> Group:
        """Client.group."""
        return await self._do(calls.group(group_id))

    async def ledger(self) -> pb.Ledger:
        """Client.ledger."""
        return await self._do(calls.ledger())

    async def config(self) -> str:
        """Client.config."""
        return await self._do(calls.config())

    async def weights_version(self) -> common.PolicyVersion:
        """Client.weights_version."""
        return await self._do(calls.weights_version())

    async def answers(self) -> bool:
        """Whether the coordinator's event loop runs: asks the health service, which does not look at Redis."""
        check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            await check(health_pb2.HealthCheckRequest(), timeout=calls.CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return True
