"""The conformance checks of reward servers: ours passes, and every check can fail."""

import asyncio
import sys

import pytest

from services.reward.app import make_reward_server
from services.reward.routing import Router
from services.reward.sandbox.grader_handle import Limits
from services.reward.sandbox.pool import GraderPool
from sluice.config.schema import Config
from sluice.errors import Unavailable
from sluice.telemetry.prometheus import Exporter
from sluice.testing.conformance import check_reward, reward_checks, transport
from sluice.testing.conformance.reward import meet_reward
from sluice.testing.conformance.suite import Suite
from sluice.testing.fakes import serving
from tests.integration.broken_reward import BrokenReward

pytestmark = pytest.mark.integration

CONFIG = {
    "model": {"path": "unused"},
    "data": {"train_files": ["mixadd3:train"], "max_prompt_length": 16, "max_response_length": 72},
    "reward": {"workers": 1, "overlong_buffer": {"enable": True, "len": 24, "penalty_factor": 1.0}},
}


async def test_our_reward_service_keeps_the_contract() -> None:
    limits = Limits(timeout_s=10.0, memory_bytes=2 << 30, file_bytes=1 << 28, max_processes=256, recycle_after=1000)
    async with GraderPool.open(workers=1, limits=limits) as pool:
        config = Config.model_validate(CONFIG)
        router = Router(config.reward.routes)
        server = await make_reward_server(config, router, pool, Exporter(service="reward"))
        verdicts = await check_reward(f"127.0.0.1:{await server.start(bind='127.0.0.1', port=0)}")
        await server.stop(grace_s=0)
    assert [(verdict.check, verdict.seen) for verdict in verdicts if verdict.outcome != "PASS"] == []


async def test_the_fake_keeps_the_contract_too() -> None:
    async with serving(BrokenReward()) as address:
        verdicts = await check_reward(address)
    assert {verdict.outcome for verdict in verdicts} == {"PASS"}
    assert len(verdicts) == len(reward_checks.SUITE.checks) > 20


@pytest.mark.parametrize("check", reward_checks.SUITE.checks, ids=lambda check: check.__name__)
async def test_a_check_fails_on_a_server_that_breaks_what_it_checks(check, monkeypatch) -> None:
    monkeypatch.setattr(reward_checks, "_GROUP_TIMEOUT_S", 1.0)  # for the server that never answers
    monkeypatch.setattr(transport, "MAX_MESSAGE_BYTES", 1 << 20)  # for the server that takes any size
    suite: Suite = Suite()
    suite.check(check)
    async with serving(BrokenReward(check.__name__)) as address, transport.connected(address) as channel:
        [verdict] = await suite.run(await meet_reward(channel))
    assert (verdict.outcome, bool(verdict.seen)) == ("FAIL", True)
    assert verdict.check == check.__name__.replace("_", " ")
    assert verdict.expected


async def test_an_address_where_nothing_answers_is_named(monkeypatch) -> None:
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1: nothing answers there"):
        await check_reward("127.0.0.1:1")


@pytest.mark.parametrize(
    ("broken", "code", "says"),
    [("", 0, "22 passed, 0 failed, 0 left out"), ("garbage_is_not_right", 1, "FAIL  garbage is not right")],
)
async def test_the_command_prints_a_table_and_ends_with_the_verdict(broken: str, code: int, says: str) -> None:
    async with serving(BrokenReward(broken)) as address:
        command = ["-m", "sluice.cli.main", "conformance", "reward", address]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
    assert process.returncode == code
    assert says in output.decode()
