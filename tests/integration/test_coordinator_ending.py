"""How a run and its coordinator end: who is told, who is waited for, and for how long. Real gRPC and a real Redis."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sluice.config.load import parse_config
from sluice.rpc.channel import open_channel
from sluice.rpc.credentials import load_credentials
from sluice.rpc.tokens import make_tokens
from sluice.testing.fakes import FakeService
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc
from tests.integration.coordinator_cases import Cast, Coordinator, Serve, state_is

pytestmark = pytest.mark.integration


async def test_a_finished_run_hands_a_learner_that_fell_behind_its_batches_before_it_may_leave(
    serve: Serve, cast: Cast
) -> None:
    async with serve() as run:
        await end_of_a_run(run, cast)
        cast.learner.incarnation, cast.learner.version = "learner-b", 2
        await cast.learner.register(run)
        await cast.learner.train(run, range(2, 3))
        assert (await cast.learner.batch(run, 3))[0].not_ready.ended


async def beat(run: Coordinator, service: FakeService, *, draining: bool) -> bool:
    """Says that a service is alive, or leaves; returns whether it is told that the run has ended."""
    request = pb.HeartbeatRequest(service_id=service.service_id, incarnation=service.incarnation, draining=draining)
    return (await run.stub.Heartbeat(request, timeout=5)).run_ended


async def test_services_are_told_of_the_end_and_the_coordinator_ends_when_they_have_left(
    serve: Serve, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    async with serve() as run:
        await cast.register(run)
        assert not await beat(run, cast.rollout, draining=False)
        assert parse_config((tmp_path / "run" / "config.yaml").read_text(), where="run").run.total_steps == 3
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert await beat(run, cast.rollout, draining=False)
        for service in (cast.rollout, cast.reward, cast.learner):
            await beat(run, service, draining=True)
        async with asyncio.timeout(10):
            assert await run.task == 0


async def test_a_coordinator_that_a_launcher_started_stays_until_the_launcher_ends_it(
    serve: Serve, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.01)
    async with serve(stay=True) as run:
        await end_of_a_run(run, cast)
        for service in (cast.rollout, cast.reward, cast.learner):
            await beat(run, service, draining=True)
        assert not (await asyncio.wait([run.task], timeout=0.5))[0]
        assert state_is(pb.RUN_STATE_FINISHED)(await run.status())


async def test_a_coordinator_waits_for_a_learner_that_exports_and_for_a_silent_rollout_only_a_while(
    serve: Serve, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LINGER_S", 0.1)
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    async with serve() as run:
        await end_of_a_run(run, cast)
        await beat(run, cast.reward, draining=True)
        assert not (await asyncio.wait([run.task], timeout=0.5))[0], "the learner has not said farewell"
        await beat(run, cast.learner, draining=True)
        async with asyncio.timeout(10):
            assert await run.task == 0


async def end_of_a_run(run: Coordinator, cast: Cast) -> None:
    """Three steps, and its end, which the learner hears of."""
    await cast.register(run)
    await cast.learner.train(run, range(3))
    await cast.learner.batch(run, 3)
    await run.until(state_is(pb.RUN_STATE_FINISHED))


async def test_a_finished_coordinator_waits_for_a_service_that_still_loads_its_model(
    serve: Serve, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    make_tokens(tmp_path / "tokens", private_network=False)
    async with (
        serve(credentials=tmp_path / "tokens", launch__ready_timeout_s=0.2) as run,
        calling_as(run, tmp_path / "tokens" / "reward") as as_reward,
        calling_as(run, tmp_path / "tokens" / "rollout") as as_rollout,
    ):
        await as_rollout.stub.GetConfig(pb.GetConfigRequest(), timeout=5)
        await cast.reward.register(as_reward)
        await run.until(state_is(pb.RUN_STATE_FAILED))
        await beat(as_reward, cast.reward, draining=True)
        assert not (await asyncio.wait({run.task}, timeout=1.0))[0]
        await cast.rollout.register(as_rollout)
        assert await beat(as_rollout, cast.rollout, draining=True)
        async with asyncio.timeout(10):
            await run.task


@contextlib.asynccontextmanager
async def calling_as(run: Coordinator, folder: Path) -> AsyncIterator[Coordinator]:
    """The same coordinator, called with the credentials of a role."""
    channel = open_channel(run.address, credentials=load_credentials(folder))
    try:
        yield dataclasses.replace(run, stub=coordinator_pb2_grpc.CoordinatorServiceStub(channel))
    finally:
        await channel.close()


async def test_a_coordinator_that_finds_a_failed_run_has_not_failed_itself(
    serve: Serve, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.api.linger.LAST_CALLS_S", 0.1)
    codes = []
    for changes in ({"launch__ready_timeout_s": 0.2}, {}):
        async with serve(**changes) as run:
            await cast.reward.register(run)
            await run.until(state_is(pb.RUN_STATE_FAILED))
            await beat(run, cast.reward, draining=True)
            async with asyncio.timeout(10):
                codes.append(await run.task)
    assert codes == [1, 0]
