"""A real coordinator over gRPC, and fake services around it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.coordinator.app.options import Options
from services.coordinator.app.serving import serve
from sluice.config.schema import Config
from sluice.rpc.channel import open_channel
from sluice.rpc.credentials import load_credentials
from sluice.testing.fakes import FakeLearner, FakeReward, FakeRollout, serving
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc


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
    evaluate_only: bool = False,
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
        evaluate_only=evaluate_only,
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


class Cast:
    """The other services of a run; every fifth group has no signal."""

    def __init__(
        self, model: Path, *, rollout: type[FakeRollout] = FakeRollout, reward: type[FakeReward] = FakeReward
    ) -> None:
        self.rollout, self.learner = rollout(model=model), FakeLearner(model=model)
        self.reward = reward(model=model, wrong=lambda number: number % 5 == 4)

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator["Cast"]:
        """They answer meanwhile."""
        async with serving(self.rollout), serving(self.reward), serving(self.learner):
            yield self

    async def register(self, to: Coordinator) -> None:
        for service in (self.reward, self.rollout, self.learner):
            await service.register(to)


def state_is(state: "pb.RunState.ValueType") -> Callable[[pb.GetStatusResponse], bool]:
    """A condition on the run's state."""
    return lambda status: status.state == state


async def code_of(call: Any) -> grpc.StatusCode:
    """The code with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()
