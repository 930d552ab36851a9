"""A coordinator that hands a learner the batches of tests/unit/learner/learner_cases.py over real gRPC, and takes notes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml

from services.learner.batches.batch import Batch, TrainSequence
from sluice.config.schema import Config
from sluice.errors import Fenced
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.rpc.server import RpcServer, make_server
from sluice.run_dir.batch_file import digest_of
from sluice.run_dir.stored_group import StoredGroups
from sluice.v1 import common_pb2, coordinator_pb2_grpc
from sluice.v1 import coordinator_pb2 as pb
from tests.unit.learner.learner_cases import make_batch, make_config, write_tiny_model


@dataclass(kw_only=True, slots=True)
class FakeCoordinator(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """Has batches for steps below `ready`; says `ended` at step `end`."""

    config: Config
    run_dir: Path
    ready: int = 0
    end: int = 10_000
    recorded: dict[int, str] = field(default_factory=dict)
    rollbacks: list[pb.RolledBack] = field(default_factory=list)
    commits: list[pb.CommitStepRequest] = field(default_factory=list)
    checkpoints: list[pb.CommitCheckpointRequest] = field(default_factory=list)
    registrations: list[pb.RegisterRequest] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    fence: int = 0
    heard_s: float = 0.0
    """Monotonic time of the last heartbeat or registration."""

    async def serve(self) -> RpcServer:
        """Serves on a free port."""

        def register(server: grpc.aio.Server) -> None:
            coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(self, server)

        server = make_server(register, services=["sluice.v1.CoordinatorService"])
        await server.start(bind="127.0.0.1", port=0)
        return server

    async def until(self, condition: str, *, timeout_s: float = 60.0) -> None:
        """Waits for an expression over this object's notes, such as `len(commits) == 2`."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(lambda: eval(condition, {"len": len}, _notes(self)))

    async def GetConfig(self, request: pb.GetConfigRequest, context: grpc.aio.ServicerContext) -> pb.GetConfigResponse:
        return pb.GetConfigResponse(yaml=yaml.safe_dump(self.config.model_dump(mode="json")))

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(run_dir=str(self.run_dir), rollbacks=self.rollbacks)

    async def Register(self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext) -> pb.RegisterResponse:
        self.fence += 1
        self.registrations.append(request)
        self.heard_s = time.monotonic()
        await self._notify()
        return pb.RegisterResponse(service_id=request.service_id, heartbeat_interval_s=0.2, fence=self.fence)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: grpc.aio.ServicerContext) -> pb.HeartbeatResponse:
        self.heard_s = time.monotonic()
        return pb.HeartbeatResponse(known=bool(self.registrations))

    async def GetBatch(
        self, request: pb.GetBatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetBatchResponse]:
        self._check(request.fence)
        try:
            async with asyncio.timeout(request.wait_s), self.changed:
                await self.changed.wait_for(lambda: request.step < self.ready or request.step >= self.end)
        except TimeoutError:
            yield pb.GetBatchResponse(not_ready=pb.BatchNotReady(reason="nothing yet"))
            return
        if request.step >= self.end:
            yield pb.GetBatchResponse(not_ready=pb.BatchNotReady(reason="the run has ended", ended=True))
            return
        batch = make_batch(step=request.step, groups=6, n=4)
        payloads = stored_groups(batch)
        header = pb.BatchHeader(step=batch.step, groups=len(payloads), digest=digest_of(payloads))
        yield pb.GetBatchResponse(header=header)
        assert request.as_stored
        for payload in payloads:
            yield pb.GetBatchResponse(stored_group=payload)

    async def CommitStep(
        self, request: pb.CommitStepRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitStepResponse:
        self._check(request.fence)
        recorded = self.recorded.setdefault(request.step, request.weights_digest)
        self.commits.append(request)
        await self._notify()
        return pb.CommitStepResponse(recorded_digest=recorded)

    async def CommitCheckpoint(
        self, request: pb.CommitCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitCheckpointResponse:
        self._check(request.fence)
        self.checkpoints.append(request)
        await self._notify()
        return pb.CommitCheckpointResponse()

    async def allow(self, *, ready: int | None = None, end: int | None = None) -> None:
        """Makes more batches ready, or ends the run."""
        self.ready = self.ready if ready is None else ready
        self.end = self.end if end is None else end
        await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _check(self, fence: int) -> None:
        if fence != self.fence:
            raise Fenced(f"fence {fence} is not {self.fence}")


@asynccontextmanager
async def serving_a_tiny_run(folder: Path, **learner: Any) -> AsyncIterator[tuple[FakeCoordinator, str]]:
    """A coordinator and its address: the base model is folder/base, the run folder/run; `learner` are settings."""
    model = write_tiny_model(folder / "base")
    (model / "tokenizer.json").write_text("{}")
    settings = {"mini_batch_size": 3, "max_tokens_per_micro_batch": 64, "lr": 1e-2} | learner
    fake = FakeCoordinator(config=make_config(model, learner=settings), run_dir=folder / "run")
    fake.run_dir.mkdir()
    server = await fake.serve()
    try:
        yield fake, f"127.0.0.1:{server.port}"
    finally:
        await server.stop(grace_s=0)


def stored_groups(batch: Batch) -> list[bytes]:
    """A batch as the coordinator stores it and hands it out."""
    stored = StoredGroups()
    return [stored.pack(group.SerializeToString()) for group in groups_to_wire(batch)]


def groups_to_wire(batch: Batch) -> list[common_pb2.Group]:
    """The messages behind a batch."""
    return [
        common_pb2.Group(
            group_id=group.group_id,
            prompt=common_pb2.Prompt(
                token_ids=pack_ids(group.sequences[0].token_ids[: group.sequences[0].prompt_tokens])
            ),
            samples=[_sample(index, sequence) for index, sequence in enumerate(group.sequences)],
            rewards=[
                common_pb2.SampleReward(status=common_pb2.REWARD_STATUS_OK, shaped_reward=sequence.reward)
                for sequence in group.sequences
            ],
        )
        for group in batch.groups
    ]


def _sample(index: int, sequence: TrainSequence) -> common_pb2.Sample:
    version = common_pb2.PolicyVersion(lineage="a", number=int(sequence.versions[0]))
    reason = common_pb2.FINISH_REASON_LENGTH if sequence.truncated else common_pb2.FINISH_REASON_STOP
    return common_pb2.Sample(
        index=index,
        token_ids=pack_ids(sequence.token_ids[sequence.prompt_tokens :]),
        logprobs=pack_floats(sequence.rollout_logprobs),
        spans=[common_pb2.VersionSpan(version=version, start_token=0, end_token=sequence.completion_tokens)],
        finish_reason=reason,
    )


def _notes(fake: FakeCoordinator) -> dict[str, object]:
    return {name: getattr(fake, name) for name in ("commits", "checkpoints", "registrations")}
