"""A real coordinator over gRPC, and small services that speak the real protocol to it: no engine, no training."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from services.coordinator.app.options import Options
from services.coordinator.app.serving import serve
from sluice import PROTOCOL_VERSION
from sluice.config.schema import Config
from sluice.model_identity import model_identity
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.rpc.channel import open_channel
from sluice.rpc.credentials import load_credentials
from sluice.rpc.server import RpcServer, make_server
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import (
    coordinator_pb2_grpc,
    learner_pb2,
    learner_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)

LINEAGE = "a"


def small_config(model: Path, **changes: Any) -> Config:
    """Batches of 4 groups of 2, three steps, evaluation of 3 prompts; changed by dotted names with __."""
    tree: dict[str, Any] = {
        "run": {"total_steps": 3},
        "model": {"path": str(model)},
        "data": {
            "train_files": ["mixadd3:train"],
            "val_files": ["mixadd3:fresh"],
            "train_batch_size": 4,
            "max_prompt_length": 16,
            "max_response_length": 8,
            "template": "none",
        },
        "rollout": {"n": 2},
        "learner": {"mini_batch_size": 4},
        "eval": {"prompts": 3, "n": 2, "every_steps": 0, "timeout_s": 20.0},
        "coordinator": {"heartbeat_timeout_s": 60.0},
    }
    for name, value in changes.items():
        section, key = name.split("__", 1)
        tree.setdefault(section, {})[key] = value
    return Config(**tree)


@dataclass(kw_only=True)
class Coordinator:
    """One coordinator process's worth of it, inside this event loop."""

    stub: Any
    address: str
    task: "asyncio.Task[int]"

    async def status(self) -> pb.GetStatusResponse:
        return await self.stub.GetStatus(pb.GetStatusRequest(), timeout=5)

    async def until(self, condition: Callable[[pb.GetStatusResponse], bool], *, within_s: float = 20.0) -> Any:
        """The first status that fulfils the condition; fails with the last one."""
        give_up = asyncio.get_running_loop().time() + within_s
        while not condition(status := await self.status()):
            assert asyncio.get_running_loop().time() < give_up, status
            await asyncio.sleep(0.02)
        return status


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Coordinator]]


@contextlib.asynccontextmanager
async def coordinator(
    config: Config,
    run_dir: Path,
    redis_url: str,
    *,
    reopen: bool = False,
    idle: bool = False,
    stay: bool = False,
    port: int = 0,
    credentials: Path | None = None,
) -> AsyncIterator[Coordinator]:
    """Serves until left; leaving is a SIGTERM, after which another one may go on with the same run."""
    await asyncio.to_thread(run_dir.mkdir, exist_ok=True)
    read_fd, write_fd = os.pipe()
    options = Options(
        run_dir=run_dir,
        redis_url=redis_url,
        bind="127.0.0.1",
        port=port,
        metrics_port=0,
        ready_fd=write_fd,
        reopen=reopen,
        idle=idle,
        stay=stay,
        credentials=load_credentials(credentials and credentials / "coordinator"),
    )
    task = asyncio.create_task(serve(config, options))
    with os.fdopen(read_fd) as ready:
        bound = await asyncio.to_thread(ready.read)
    if not bound:
        await task
    address = f"127.0.0.1:{bound}"
    channel = open_channel(address, credentials=load_credentials(credentials and credentials / "operator"))
    try:
        yield Coordinator(stub=coordinator_pb2_grpc.CoordinatorServiceStub(channel), address=address, task=task)
    finally:
        await channel.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass(kw_only=True)
class Service:
    """A fake's server and how it registers."""

    role: Any
    service_id: str
    incarnation: str
    model: Path
    version: int = 0
    lineage: str = LINEAGE
    max_model_len: int = 128
    changes: dict[str, Any] = field(default_factory=dict)
    server: RpcServer | None = None

    async def start(self) -> None:
        self.server = make_server(self._add, services=[])
        await self.server.start(bind="127.0.0.1", port=0)

    async def register(self, to: Coordinator, **changes: Any) -> pb.RegisterResponse:
        assert self.server is not None
        identity = model_identity(self.model)
        request = pb.RegisterRequest(
            role=self.role,
            service_id=self.service_id,
            address=f"127.0.0.1:{self.server.port}",
            protocol_version=PROTOCOL_VERSION,
            model_hash=identity.model_hash,
            tokenizer_hash=identity.tokenizer_hash,
            engine="fake",
            capacity=64,
            max_model_len=self.max_model_len,
            version=version(self.version, self.lineage),
            incarnation=self.incarnation,
            trained=self.stated(),
        )
        for name, value in changes.items():
            setattr(request, name, value)
        return await to.stub.Register(request, timeout=5)

    def stated(self) -> list[pb.TrainedStep]:
        """What a learner remembers of its steps; these fakes remember nothing."""
        return []

    def _add(self, server: grpc.aio.Server) -> None:
        raise NotImplementedError


class FakeRollout(Service, rollout_pb2_grpc.RolloutServiceServicer):
    """Answers every prompt with `n` samples of 3 tokens; the first of each group is right."""

    def _add(self, server: grpc.aio.Server) -> None:
        self.manifest = common.WeightManifest()
        self.generated: list[str] = []
        self.applied: list[int] = []
        self.die_on: str | None = None
        self.logprobs = [-0.1, -0.2, -0.3]
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(self, server)

    async def Generate(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.generated.append(request.request_id)
        if self.die_on is not None and request.request_id.startswith(self.die_on):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        for spec in request.samples:
            span = common.VersionSpan(version=self.manifest.version, start_token=0, end_token=3)
            yield rollout_pb2.GenerateResponse(
                sample=common.Sample(
                    index=spec.index,
                    token_ids=pack_ids([5, 6, 2]),
                    logprobs=pack_floats(self.logprobs),
                    spans=[span],
                    finish_reason=common.FINISH_REASON_STOP,
                    text="right" if spec.index == 0 else "wrong",
                    rollout_id=self.service_id,
                    seed=spec.seed,
                )
            )

    async def JoinEpoch(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return rollout_pb2.JoinEpochResponse()

    async def ReceiveWeights(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.manifest = request.manifest
        return rollout_pb2.ReceiveWeightsResponse()

    async def ApplyWeights(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.applied.append(request.version.number)
        return rollout_pb2.ApplyWeightsResponse(version=request.version, digest=self.manifest.digest)


class FakeReward(Service, reward_pb2_grpc.RewardServiceServicer):
    """Right is what says "right" or the gold answer; every fifth group is `wrong`, one sample of `nan_of` is NaN."""

    def _add(self, server: grpc.aio.Server) -> None:
        self.nan_of = ""
        self.wrong: Callable[[int], bool] = lambda number: number % 5 == 4
        """Of a training group's number."""
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self, server)

    async def Score(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        training = not request.group_id.startswith(("check", "eval"))
        wrong = training and self.wrong(int(request.group_id[-7:]))
        results = []
        for item in request.items:
            acc = float(not wrong and (item.text == "right" or request.ground_truth in item.text))
            raw = float("nan") if request.group_id == self.nan_of else acc
            results.append(
                common.SampleReward(
                    status=common.REWARD_STATUS_OK, raw_score=raw, acc=acc, shaped_reward=raw, grader="fake"
                )
            )
        return reward_pb2.ScoreResponse(results=results)


class FakeLearner(Service, learner_pb2_grpc.LearnerServiceServicer):
    """Publishes versions without training them."""

    def _add(self, server: grpc.aio.Server) -> None:
        self.fence = 0
        self.transfers = 0
        self.may_open = asyncio.Event()
        """Cleared: a learner that hangs."""
        self.may_open.set()
        learner_pb2_grpc.add_LearnerServiceServicer_to_server(self, server)

    async def register(self, to: Coordinator, **changes: Any) -> pb.RegisterResponse:
        response = await super().register(to, **changes)
        self.fence = response.fence
        return response

    async def OpenTransfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.transfers += 1
        await self.may_open.wait()
        manifest = common.WeightManifest(version=version(self.version, self.lineage), digest=digest(self.version))
        return learner_pb2.OpenTransferResponse(manifest=manifest, backend="file", file_path="-", new_epoch=True)

    async def SaveCheckpoint(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return learner_pb2.LearnerServiceSaveCheckpointResponse(
            path=f"step-{self.version}", version=version(self.version, self.lineage)
        )

    async def batch(self, to: Coordinator, step: int, *, wait_s: float = 20.0) -> list[pb.GetBatchResponse]:
        request = pb.GetBatchRequest(step=step, wait_s=wait_s, fence=self.fence)
        return [response async for response in to.stub.GetBatch(request, timeout=wait_s + 5)]

    async def commit(self, to: Coordinator, step: int, batch: list[pb.GetBatchResponse]) -> pb.CommitStepResponse:
        self.version = max(self.version, step + 1)
        request = pb.CommitStepRequest(
            step=step,
            version=version(step + 1, self.lineage),
            weights_digest=digest(step + 1),
            batch_digest=batch[0].header.digest,
            metrics={"loss/entropy_nats": 1.0},
            fence=self.fence,
        )
        return await to.stub.CommitStep(request, timeout=10)

    async def train(self, to: Coordinator, steps: range) -> None:
        """Gets, "trains" and commits every step."""
        for step in steps:
            await self.commit(to, step, await self.batch(to, step))


class Cast:
    """The other services of a run."""

    def __init__(self, model: Path) -> None:
        self.rollout = FakeRollout(
            role=pb.SERVICE_ROLE_ROLLOUT, service_id="rollout-0", incarnation="rollout-0-a", model=model
        )
        self.reward = FakeReward(
            role=pb.SERVICE_ROLE_REWARD, service_id="reward-0", incarnation="reward-0-a", model=model
        )
        self.learner = FakeLearner(
            role=pb.SERVICE_ROLE_LEARNER, service_id="learner", incarnation="learner-a", model=model
        )

    async def register(self, to: Coordinator) -> None:
        for service in (self.reward, self.rollout, self.learner):
            await service.register(to)


def version(number: int, lineage: str = LINEAGE) -> common.PolicyVersion:
    return common.PolicyVersion(lineage=lineage, number=number)


def digest(number: int) -> str:
    return f"weights-{number}"
