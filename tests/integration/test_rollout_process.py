"""`python -m services.rollout` as a process: configuration from the coordinator, registration, a push, SIGTERM."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sluice.config.schema import Config
from sluice.rpc.channel import open_channel
from sluice.testing.fakes import FakeCoordinator, serving
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import rollout_pb2, rollout_pb2_grpc
from tests.integration.scraping import asked_of, scrape
from tests.integration.service_process import flags, running

START_S = 90.0


@contextlib.asynccontextmanager
async def rollout_of(config: Config) -> AsyncIterator[tuple[FakeCoordinator, asyncio.subprocess.Process]]:
    coordinator = FakeCoordinator(config=config)
    async with serving(coordinator) as address:
        command = (sys.executable, "-m", "services.rollout", *flags(address))
        async with running(*command, stderr=asyncio.subprocess.PIPE) as process:
            yield coordinator, process


def config_for(model_path: Path, engine: str, *, max_response_length: int = 40) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(model_path), "dtype": "float32"},
            "data": {
                "train_files": ["mixadd3:train"],
                "max_prompt_length": 8,
                "max_response_length": max_response_length,
            },
            "rollout": {"engine": engine, "max_num_seqs": "auto", "kv_cache_bytes": 32 << 20},
            "launch": {"grace_s": 4.0},
        }
    )


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("transformers", marks=pytest.mark.integration),
        pytest.param("vllm", marks=[pytest.mark.e2e, pytest.mark.long]),
    ],
)
async def test_it_registers_what_it_serves_registers_again_when_forgotten_and_leaves_on_sigterm(
    model: Path, engine: str
) -> None:
    async with rollout_of(config_for(model, engine)) as (coordinator, process):
        await coordinator.until(lambda: bool(coordinator.registrations), timeout_s=START_S)
        request = coordinator.registrations[0]
        assert request.role == pb.SERVICE_ROLE_ROLLOUT
        assert request.engine.startswith(engine)
        assert request.device == "cpu"
        # An engine whose cache grows has a fixed number; one with a bounded cache begins with a group.
        capacity, stated = (256, 0) if engine == "transformers" else (1024, 20)
        assert (request.capacity, request.max_model_len) == (capacity, 48)
        await coordinator.until(lambda: bool(coordinator.beats), timeout_s=10.0)
        assert coordinator.beats[0].capacity == stated
        assert len(request.model_hash) == len(request.tokenizer_hash) == 64
        assert not request.HasField("version")
        found = await scrape(request.metrics_address)
        assert asked_of("rollout") <= set(found)
        assert {found[name]["service"] for name in asked_of("rollout")} == {"rollout"}

        channel = open_channel(request.address)
        stub = rollout_pb2_grpc.RolloutServiceStub(channel)
        info = await stub.GetInfo(rollout_pb2.RolloutServiceGetInfoRequest(), timeout=5.0)
        assert info.rollout_id == "rollout-0"
        await channel.close()

        coordinator.registrations.clear()  # the next heartbeat is told that nobody knows it
        await coordinator.until(lambda: bool(coordinator.registrations), timeout_s=10.0)
        again = coordinator.registrations[0]
        assert (again.service_id, again.incarnation) == ("rollout-0", request.incarnation)

        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15.0) == 0
        assert coordinator.beats[-1].draining


@pytest.mark.integration
async def test_a_context_that_is_too_short_ends_it_with_one_message(model: Path) -> None:
    config = config_for(model, "transformers", max_response_length=121)
    async with rollout_of(config) as (_, process):
        assert process.stderr is not None
        said = (await asyncio.wait_for(process.stderr.read(), START_S)).decode()
        assert await process.wait() == 2
        assert "data.max_prompt_length + data.max_response_length: must be <= 128" in said
        assert "Traceback" not in said
