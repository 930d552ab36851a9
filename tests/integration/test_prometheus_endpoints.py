"""What a real coordinator's endpoint shows Prometheus, and whom it sends Prometheus to."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.telemetry.catalogue import CATALOGUE
from sluice.testing.fakes import FakeReward, FakeRollout
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import reward_pb2, rollout_pb2
from tests.integration.coordinator_cases import Cast, Coordinator, coordinator, small_config
from tests.integration.scraping import asked_of, page, scrape

pytestmark = pytest.mark.integration

LEARNER_METRICS = {metric.name: 0.5 for metric in CATALOGUE if metric.source == "learner"}
"""What a learner reports of a step: test_learner_process holds a real one to it."""


class RewardOfParts(FakeReward):
    """Grades by two parts."""

    async def Score(self, request: Any, context: grpc.aio.ServicerContext) -> reward_pb2.ScoreResponse:
        response = await super().Score(request, context)
        for result in response.results:
            result.parts.update({"math": result.raw_score, "style.py:brevity": 0.25})
        return response


class RolloutThatMayFail(FakeRollout):
    """Once `applies_wrongly`, what it has applied is not what was sent."""

    applies_wrongly = False

    async def ApplyWeights(self, request: Any, context: grpc.aio.ServicerContext) -> rollout_pb2.ApplyWeightsResponse:
        response = await super().ApplyWeights(request, context)
        if self.applies_wrongly:
            response.digest = "something else"
        return response


@pytest.fixture
async def cast(model: Path) -> AsyncIterator[Cast]:
    async with Cast(model, rollout=RolloutThatMayFail, reward=RewardOfParts).standing() as made:
        made.learner.metrics = LEARNER_METRICS
        yield made


@pytest.fixture
def serve(model: Path, tmp_path: Path, redis_server: EmbeddedRedis) -> Callable[..., Any]:
    """A coordinator and the address of its metrics."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[tuple[Coordinator, str]]:
        with capture_logs() as logs:
            async with coordinator(small_config(model, **changes), tmp_path / "run", redis_server.url) as run:
                port = next(line["metrics_port"] for line in logs if line["event"] == "serving")
                yield run, f"127.0.0.1:{port}"

    return start


async def until(address: str, condition: Callable[[str], bool], *, path: str = "/metrics") -> str:
    """The first page that fulfils the condition: they follow the run by up to two seconds."""
    give_up = asyncio.get_running_loop().time() + 30.0
    while not condition(text := await page(address, path)):
        assert asyncio.get_running_loop().time() < give_up, text
        await asyncio.sleep(0.1)
    return text


async def test_the_coordinator_exports_all_that_rules_and_dashboard_ask_of_it(serve: Any, cast: Cast) -> None:
    async with serve() as (run, address):
        await cast.register(run)
        who = {"service_id": cast.rollout.service_id, "incarnation": cast.rollout.incarnation}
        await run.stub.Heartbeat(pb.HeartbeatRequest(**who, kv_use=0.5, preemptions=2), timeout=5)
        await cast.learner.train(run, range(2))
        await until(address, lambda text: 'sluice_run_trained_steps{service="coordinator"} 2.0' in text)
        found = await scrape(address)
        sampler = {"predicted_acceptance", "coverage", "chosen_fraction", "calibration_error"}
        unused = {"sluice_eval_tool_use", *(f"sluice_sampling_{name}" for name in sampler)}
        missing = (asked_of("coordinator") | asked_of("learner")) - set(found) - unused
        assert {name for name in missing if not name.startswith("sluice_episode_")} == set(), "no row here has episodes"
        assert {tuple(labels.items()) for name, labels in found.items() if name.startswith("sluice_")} == {
            (("service", "coordinator"),)
        }


async def test_parts_of_a_score_are_exported_under_their_names(serve: Any, cast: Cast) -> None:
    async with serve() as (run, address):
        await cast.register(run)
        await cast.learner.train(run, range(1))
        text = await until(address, lambda text: "sluice_reward_part_math" in text)
        assert 'sluice_reward_part_style_py_brevity{service="coordinator"} 0.25' in text
        assert not run.task.done()


async def test_quarantine_loss_and_waiting_are_seen_as_they_happen(serve: Any, cast: Cast) -> None:
    async with serve(coordinator__heartbeat_timeout_s=3.0, coordinator__heartbeat_interval_s=0.2) as (run, address):
        await cast.register(run)
        await run.until(lambda status: status.state == pb.RUN_STATE_RUNNING)
        cast.rollout.applies_wrongly = True
        await cast.learner.train(run, range(1))
        await until(address, lambda text: 'sluice_fleet_rollouts_quarantined{service="coordinator"} 1.0' in text)
        lost = 'sluice_fleet_services_lost{service="coordinator"} 3.0'  # nobody here sends heartbeats
        await until(address, lambda text: lost in text)


async def test_a_learner_that_waits_is_seen_waiting(serve: Any, cast: Cast) -> None:
    cast.reward.wrong = lambda number: True  # no group has signal
    async with serve() as (run, address):
        await cast.register(run)
        await run.until(lambda status: status.state == pb.RUN_STATE_RUNNING)
        for _ in range(3):  # each call starts anew, the wait does not
            assert [part.WhichOneof("part") for part in await cast.learner.batch(run, 0, wait_s=0.5)] == ["not_ready"]
        text = await until(address, lambda text: value(text, "sluice_learner_waiting_s") > 1.2)
        assert value(text, "sluice_sampling_gen_batches") > 1


async def test_targets_are_the_endpoints_of_those_who_are_here(serve: Any, cast: Cast) -> None:
    async with serve() as (run, address):
        assert json.loads(await page(address, "/targets")) == []
        await cast.reward.register(run, metrics_address="reward-7f:19052")
        await cast.rollout.register(run, metrics_address="[fd00::1]:19051")
        await cast.learner.register(run)  # network.metrics is off there
        found = json.loads(await until(address, lambda text: len(json.loads(text)) == 2, path="/targets"))
        assert found == [
            {
                "targets": ["reward-7f:19052"],
                "labels": {"run": "run", "role": "reward", "service_id": "reward-0"},
            },
            {
                "targets": ["[fd00::1]:19051"],
                "labels": {"run": "run", "role": "rollout", "service_id": "rollout-0"},
            },
        ]


async def test_an_address_that_prometheus_could_not_read_is_refused(serve: Any, cast: Any) -> None:
    async with serve() as (run, _):
        for address in ("reward", "reward:port", "http://reward:19052", "a b:1", "x" * 300 + ":1"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cast.reward.register(run, metrics_address=address)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "metrics_address must be HOST:PORT" in (caught.value.details() or "")


def value(text: str, name: str) -> float:
    """The coordinator's value of a gauge."""
    start = f'{name}{{service="coordinator"}} '
    return float(next(line for line in text.splitlines() if line.startswith(start)).removeprefix(start))
