"""A run that outlives its coordinators, on a Redis that can be put back to an earlier moment."""

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest
import redis.asyncio as aioredis

from services.coordinator.storage.identity import IDENTITY_FILE
from services.learner.checkpoint import folders
from sluice.run_dir.checkpoints import STATE
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Coordinator, coordinator, small_config


class Scene:
    """The run, its services and its Redis."""

    def __init__(self, *, model: Path, run_dir: Path, redis_url: str) -> None:
        self.model, self.run_dir, self.redis_url = model, run_dir, redis_url
        self.redis = aioredis.Redis.from_url(redis_url)
        self.cast = Cast(model)
        self.settings: dict[str, Any] = {}
        """Changes of the configuration, as `small_config` takes them."""
        self.rollout, self.reward, self.learner = self.cast.rollout, self.cast.reward, self.cast.learner

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[None]:
        """The services answer meanwhile."""
        async with self.cast.standing():
            yield
        await self.redis.aclose()

    def serve(self, steps: int = 5, **how: bool) -> AbstractAsyncContextManager[Coordinator]:
        config = small_config(self.model, run__total_steps=steps, **self.settings)
        return coordinator(config, self.run_dir, self.redis_url, **how)

    async def register(self, to: Coordinator) -> None:
        await self.cast.register(to)

    async def finish(self, run: Coordinator, steps: range) -> pb.GetStatusResponse:
        """Trains the rest; the ledger closes and no group was trained twice."""
        await self.learner.train(run, steps)
        await self.learner.batch(run, steps.stop)
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert status.ledger.closed
        assert len(set(self.learner.ids)) == len(self.learner.ids) == 4 * steps.stop
        rows = pq.read_table(self.run_dir / "ledger").to_pylist()
        assert len({row["group_id"] for row in rows}) == len(rows)
        trained = {row["group_id"]: row["step"] for row in rows if row["term"] == "trained"}
        stated = {group_id: step.step for step in self.learner.trained for group_id in step.group_ids}
        assert trained.items() <= stated.items()
        return status

    async def remember(self) -> dict[Any, Any]:
        """Redis at one moment: the coordinator goes on meanwhile."""
        keys = await self.redis.keys()
        async with self.redis.pipeline(transaction=True) as together:
            for key in keys:
                together.dump(key)
            values = await together.execute()
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    async def forget(self, since: dict[Any, Any]) -> None:
        """Redis is what it was then, as after losing the end of its append-only file."""
        await self.redis.flushall()
        for key, value in since.items():
            await self.redis.restore(key, 0, value)

    @property
    def keys(self) -> str:
        """What the run's keys in Redis are called."""
        return json.loads((self.run_dir / IDENTITY_FILE).read_text())["keys"]

    @property
    def repairs(self) -> list[dict[str, Any]]:
        path = self.run_dir / "repairs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_checkpoint(run_dir: Path, number: int, lineage: str) -> None:
    partial = folders.partial_of(run_dir / "checkpoints", number)
    folders.begin(partial)
    (partial / STATE).write_text(json.dumps({"step": number, "lineage": lineage, "trained": []}))
    folders.seal(partial, number)


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""
