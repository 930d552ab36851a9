"""The reward service over real gRPC: a server in this process, and the whole process against a coordinator's stand-in."""

import asyncio
import json
import math
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.reward.app import SERVICE_NAME, make_reward_server
from services.reward.routing import Router
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.pool import GraderPool
from sluice import PROTOCOL_VERSION
from sluice.config.schema import Config
from sluice.rpc.channel import open_channel
from sluice.telemetry.prometheus import Exporter
from sluice.testing.fakes import FakeCoordinator, serving
from sluice.testing.waiting import assert_eventually
from sluice.v1 import common_pb2, coordinator_pb2, reward_pb2, reward_pb2_grpc
from tests.integration.scraping import asked_of, scrape
from tests.integration.service_process import flags, running

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]

STOP, LENGTH = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH

CONFIG = {
    "model": {"path": "unused"},
    "data": {
        "train_files": ["mixadd3:train"],
        "train_batch_size": 4,
        "max_prompt_length": 16,
        "max_response_length": 72,
    },
    "learner": {"mini_batch_size": 4},
    "reward": {
        "workers": 1,
        "timeout_s": 1.0,
        "overlong_buffer": {"enable": True, "len": 24, "penalty_factor": 1.0},
        "routes": {"nasty": "integration.reward_nasty_verifier"},
    },
}


@pytest.fixture(autouse=True)
def _nasty_verifier_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))


@asynccontextmanager
async def reward_stub(routes=None):
    """A stub of a server in this process, as the app builds it; `routes` in the place of those of CONFIG."""
    limits = Limits(timeout_s=1.0, memory_bytes=2 << 30, recycle_after=1000, file_bytes=1 << 28, max_processes=256)
    async with GraderPool.open(workers=1, limits=limits) as pool:
        config = Config.model_validate(CONFIG)
        router = Router(config.reward.routes if routes is None else routes)
        server = await make_reward_server(config, router, pool, Exporter(service="reward"))
        port = await server.start(bind="127.0.0.1", port=0)
        channel = open_channel(f"127.0.0.1:{port}")
        try:
            yield reward_pb2_grpc.RewardServiceStub(channel)
        finally:
            await channel.close()
            await server.stop(grace_s=1.0)


def request(data_source, ground_truth, *texts, response_tokens=10, finish_reason=STOP):
    return reward_pb2.ScoreRequest(
        group_id="g0",
        data_source=data_source,
        ground_truth=ground_truth,
        items=[
            reward_pb2.ScoreItem(index=index, text=text, response_tokens=response_tokens, finish_reason=finish_reason)
            for index, text in enumerate(texts)
        ],
    )


async def test_a_group_is_scored_and_shaped():
    async with reward_stub() as stub:
        response = await stub.Score(request("mixadd3", "125", "#125", "#124", "?", response_tokens=60), timeout=20)
        truncated = await stub.Score(request("mixadd3", "125", "#125", finish_reason=LENGTH), timeout=20)
    assert [result.raw_score for result in response.results] == [1.0, 0.0, 0.0]
    assert [result.acc for result in response.results] == [1.0, 0.0, 0.0]
    assert [result.overlong_penalty for result in response.results] == [-0.5] * 3
    assert [result.shaped_reward for result in response.results] == [0.5, -0.5, -0.5]
    assert [result.extracted for result in response.results] == ["125", "124", ""]
    assert [result.status for result in response.results] == [
        common_pb2.REWARD_STATUS_OK,
        common_pb2.REWARD_STATUS_OK,
        common_pb2.REWARD_STATUS_UNPARSED,
    ]
    assert {(result.grader, result.grader_version) for result in response.results} == {("mixadd3", "1")}
    assert truncated.results[0].acc == 0.0


async def test_a_route_for_every_data_source_passes_the_check_at_the_start_although_it_reads_no_built_in_answer():
    async with reward_stub({"*": "numeric"}) as stub:
        response = await stub.Score(request("mixadd3", "125", "67 + 58 = 125", "#125"), timeout=20)
    assert [result.acc for result in response.results] == [1.0, 0.0]
    assert {result.grader for result in response.results} == {"numeric"}


@pytest.mark.needs("reasoning-gym")
async def test_one_gold_text_scores_right_with_every_built_in_verifier():
    import reasoning_gym

    entry = reasoning_gym.create_dataset("chain_sum", seed=2, size=1)[0]
    truths = {
        "mixadd3": ("125", "125"),
        "aime2024": ("204", "204"),
        "reasoning_gym/chain_sum": (json.dumps(entry), entry["answer"]),
    }
    async with reward_stub() as stub:
        for data_source, (ground_truth, gold) in truths.items():
            text = f"<answer>{gold}</answer>\nAnswer: {gold}\n#{gold}"
            response = await stub.Score(request(data_source, ground_truth, text, ""), timeout=60)
            assert [result.acc for result in response.results] == [1.0, 0.0], data_source


async def test_what_could_not_be_graded_is_said_and_not_scored():
    async with reward_stub() as stub:
        response = await stub.Score(request("nasty", "", "good", "regex", "raise", "good"), timeout=20)
    assert [result.status for result in response.results] == [
        common_pb2.REWARD_STATUS_OK,
        common_pb2.REWARD_STATUS_TIMEOUT,
        common_pb2.REWARD_STATUS_ERROR,
        common_pb2.REWARD_STATUS_OK,
    ]
    assert all(math.isnan(result.shaped_reward) for result in response.results[1:3])
    assert response.results[2].detail == "KeyError: 'boom'"


async def test_the_call_answers_within_its_deadline_whatever_hangs():
    async with reward_stub() as stub:
        response = await stub.Score(request("nasty", "", *["stubborn"] * 16), timeout=4)
    assert len(response.results) == 16
    assert {result.status for result in response.results} == {common_pb2.REWARD_STATUS_TIMEOUT}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (request("poetry", "", "x"), "no verifier for 'poetry'"),
        (request("mixadd3", "125", "#125", finish_reason=0), "items[0].finish_reason"),
        (request("mixadd3", "125", "#125", response_tokens=-1), "items[0].response_tokens"),
        (reward_pb2.ScoreRequest(data_source="mixadd3", extra_info_json="{"), "extra_info_json: must be JSON"),
        (reward_pb2.ScoreRequest(data_source="mixadd3", extra_info_json="[]"), "must be a JSON object"),
    ],
)
async def test_what_can_never_be_scored_is_an_invalid_argument(broken, message):
    async with reward_stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Score(broken, timeout=20)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in failure.value.details()


async def test_graders_are_listed_with_their_data_sources():
    async with reward_stub() as stub:
        response = await stub.ListGraders(reward_pb2.ListGradersRequest(), timeout=20)
    listed = {grader.name: list(grader.data_sources) for grader in response.graders}
    assert listed["math_dapo"] == ["math_dapo", "math", "math_dapo_reasoning", "aime*"]
    assert listed["integration.reward_nasty_verifier"] == ["nasty"]


@asynccontextmanager
async def serving_reward(*, by_environment: bool):
    """The coordinator and the process, which is told of it by flags or by its environment."""
    coordinator = FakeCoordinator(config=Config.model_validate(CONFIG))
    async with serving(coordinator) as address:
        given = () if by_environment else (*flags(address), "--log-format", "json")
        environment = {"SLUICE_COORDINATOR": address, "SLUICE_PORT": "0"} if by_environment else {}
        environment["PYTHONPATH"] = str(TESTS)
        async with running(sys.executable, "-m", "services.reward", *given, environ=environment) as process:
            yield coordinator, process


async def test_the_process_leaves_by_itself_when_the_run_has_ended():
    async with serving_reward(by_environment=True) as (coordinator, process):
        await coordinator.until(lambda: bool(coordinator.beats))
        coordinator.run_ended = True
        async with asyncio.timeout(20):
            assert await process.wait() == 0
        assert coordinator.beats[-1].draining


async def test_the_process_registers_serves_and_drains_on_sigterm():
    async with serving_reward(by_environment=False) as (coordinator, process):
        await coordinator.until(lambda: bool(coordinator.registrations))
        registered = coordinator.registrations[0]
        assert registered.role == coordinator_pb2.SERVICE_ROLE_REWARD
        assert registered.protocol_version == PROTOCOL_VERSION
        assert registered.capacity == 1
        assert registered.metrics_address.startswith("127.0.0.1:")

        channel = open_channel(registered.address)
        health = health_pb2_grpc.HealthStub(channel)
        status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=10)
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        found = await scrape(registered.metrics_address)
        assert asked_of("reward") <= set(found)
        assert {found[name]["service"] for name in asked_of("reward")} == {"reward"}
        running = reward_pb2_grpc.RewardServiceStub(channel).Score(request("nasty", "", *["wait"] * 4), timeout=20)
        await assert_eventually(lambda: bool(coordinator.beats) and coordinator.beats[-1].running == 1)
        process.send_signal(signal.SIGTERM)
        assert [result.acc for result in (await running).results] == [1.0] * 4
        await channel.close()
        async with asyncio.timeout(20):
            assert await process.wait() == 0
        assert coordinator.beats[-1].draining
        assert coordinator.beats[-1].service_id == "reward-0"
