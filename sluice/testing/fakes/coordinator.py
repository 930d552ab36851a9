"""A coordinator that hands every service a configuration and the learner prepared batches, and takes notes of the calls.

This coordinator decides nothing and has no state but its notes. GetBatch waits for `allow`, at most as long as the caller
asks.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import Fenced
from sluice.run_dir.batch_file import digest_of
from sluice.run_dir.stored_group import StoredGroups
from sluice.testing.fakes.service import Server
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc

Batches = Callable[[int], Sequence[common.Group]]
"""Step -> the groups of its batch."""


class FakeCoordinator(Server, coordinator_pb2_grpc.CoordinatorServiceServicer):
    """Has batches for steps below `ready`; says that the run has ended at step `end`."""

    service_name = "sluice.v1.CoordinatorService"

    def __init__(
        self,
        *,
        config: Config,
        run_dir: Path = Path(),
        batches: Batches = lambda step: (),
        ready: int = 0,
        end: int = 10_000,
    ) -> None:
        self.config, self.run_dir, self.batches, self.ready, self.end = config, run_dir, batches, ready, end
        self.heartbeat_interval_s = 0.1
        self.run_ended = False
        """Whether answers to heartbeats say that the run has ended."""
        self.rollbacks: list[pb.RolledBack] = []
        self.recorded: dict[int, str] = {}
        """Digest by step: the `recorded_digest` in the answer to a commit."""
        self.commits: list[pb.CommitStepRequest] = []
        self.checkpoints: list[pb.CommitCheckpointRequest] = []
        self.registrations: list[pb.RegisterRequest] = []
        """Once cleared, the answer to the next heartbeat says that the service is not known."""
        self.beats: list[pb.HeartbeatRequest] = []
        self.heard_s = 0.0
        """Monotonic time of the last heartbeat or registration."""
        self.meetings: dict[str, str] = {}
        """Where the learner's machines meet, by round."""
        self.fence = 0
        self._changed = asyncio.Condition()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds this servicer."""
        coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(self, server)

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
        """Waits until the notes fulfil a condition, such as `lambda: len(fake.commits) == 2`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    async def allow(self, *, ready: int | None = None, end: int | None = None) -> None:
        """Makes more batches ready, or ends the run."""
        self.ready = self.ready if ready is None else ready
        self.end = self.end if end is None else end
        await self._notify()

    async def GetConfig(self, request: pb.GetConfigRequest, context: Any) -> pb.GetConfigResponse:
        return pb.GetConfigResponse(yaml=dump_config(self.config))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(run_dir=str(self.run_dir), rollbacks=self.rollbacks)

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        self.fence += 1
        self.registrations.append(request)
        self.heard_s = time.monotonic()
        await self._notify()
        role = pb.ServiceRole.Name(request.role).removeprefix("SERVICE_ROLE_").lower()
        return pb.RegisterResponse(
            service_id=request.service_id or f"{role}-0",
            heartbeat_interval_s=self.heartbeat_interval_s,
            fence=self.fence,
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        self.beats.append(request)
        self.heard_s = time.monotonic()
        await self._notify()
        return pb.HeartbeatResponse(known=bool(self.registrations), run_ended=self.run_ended)

    async def GetBatch(self, request: pb.GetBatchRequest, context: Any) -> AsyncIterator[pb.GetBatchResponse]:
        self._check(request.fence)
        try:
            async with asyncio.timeout(request.wait_s), self._changed:
                await self._changed.wait_for(lambda: request.step < self.ready or request.step >= self.end)
        except TimeoutError:
            yield pb.GetBatchResponse(not_ready=pb.BatchNotReady(reason="nothing yet"))
            return
        if request.step >= self.end:
            yield pb.GetBatchResponse(not_ready=pb.BatchNotReady(reason="the run has ended", ended=True))
            return
        groups, stored = self.batches(request.step), StoredGroups()
        payloads = [stored.pack(group.SerializeToString()) for group in groups]
        header = pb.BatchHeader(step=request.step, groups=len(groups), digest=digest_of(payloads))
        yield pb.GetBatchResponse(header=header)
        for group, payload in zip(groups, payloads, strict=True):
            yield pb.GetBatchResponse(stored_group=payload) if request.as_stored else pb.GetBatchResponse(group=group)

    async def CommitStep(self, request: pb.CommitStepRequest, context: Any) -> pb.CommitStepResponse:
        self._check(request.fence)
        recorded = self.recorded.setdefault(request.step, request.weights_digest)
        self.commits.append(request)
        await self._notify()
        return pb.CommitStepResponse(recorded_digest=recorded)

    async def CommitCheckpoint(self, request: pb.CommitCheckpointRequest, context: Any) -> pb.CommitCheckpointResponse:
        self._check(request.fence)
        self.checkpoints.append(request)
        await self._notify()
        return pb.CommitCheckpointResponse()

    async def MeetLearner(self, request: pb.MeetLearnerRequest, context: Any) -> pb.MeetLearnerResponse:
        if request.endpoint:
            self.meetings[request.round] = request.endpoint
            await self._notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(request.wait_s), self._changed:
                await self._changed.wait_for(lambda: request.round in self.meetings)
        return pb.MeetLearnerResponse(endpoint=self.meetings.get(request.round, ""))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _check(self, fence: int) -> None:
        if fence != self.fence:
            raise Fenced(f"fence {fence} is not {self.fence}")
