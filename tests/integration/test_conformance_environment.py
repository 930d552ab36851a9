"""The conformance checks of environment servers: one that keeps the contract passes, and every check can fail."""

import asyncio
import time

import pytest

from sluice.cli.main import main
from sluice.errors import ConfigError
from sluice.testing.conformance import check_environment, environment_checks, transport
from sluice.testing.conformance.environment import meet_environment
from sluice.testing.conformance.suite import Suite
from sluice.testing.fakes import FakeEnvironment, serving
from tests.integration.broken_environment import BrokenEnvironment

pytestmark = pytest.mark.integration

ROW = '{"prompt": "Guess.", "data_source": "games", "reward_model": {"ground_truth": 3}, "env_args": {"highest": 9}}'


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_checks, "_AFTER_LEASE_S", 0.4)
    monkeypatch.setattr(environment_checks, "_SHORT_LEASE_S", 0.2)
    monkeypatch.setattr(transport, "MAX_MESSAGE_BYTES", 17 << 20)  # our limit for environments is 16 MiB


async def test_the_fake_keeps_the_contract_whether_it_scores_or_not() -> None:
    for scores in (True, False):
        async with serving(FakeEnvironment(clock=time.monotonic, scores=scores)) as address:
            verdicts = await check_environment(address, environment="guess", row=ROW)
        assert [(one.check, one.seen) for one in verdicts if one.outcome != "PASS"] == []
        assert len(verdicts) == len(environment_checks.SUITE.checks) >= 19


@pytest.mark.parametrize("check", environment_checks.SUITE.checks, ids=lambda check: check.__name__)
async def test_a_check_fails_on_a_server_that_breaks_what_it_checks(check) -> None:
    suite: Suite = Suite()
    suite.check(check)
    async with serving(BrokenEnvironment(check.__name__)) as address, transport.connected(address) as channel:
        [verdict] = await suite.run(await meet_environment(channel))
    assert (verdict.outcome, bool(verdict.seen), bool(verdict.expected)) == ("FAIL", True, True)


async def test_the_command_prints_the_verdicts_and_a_server_with_no_such_environment_fails_by_name(capsys) -> None:
    async with serving(FakeEnvironment(clock=time.monotonic)) as address:
        command = ["conformance", "environment", address]
        assert await asyncio.to_thread(main, [*command, "--row", ROW]) == 0
        assert "19 passed, 0 failed, 0 left out" in capsys.readouterr().out
        assert await asyncio.to_thread(main, [*command, "--environment", "maze"]) == 1
        assert "it lists guess, not the environment under check" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError, match=r"--row: must be a row of a data file, a JSON object .* got '\[1\]'"):
        await check_environment("127.0.0.1:1", row="[1]")
