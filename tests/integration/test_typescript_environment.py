"""examples/environment-typescript: the contract, one game by hand, and how it ends."""

from pathlib import Path

import grpc
import pytest

from sluice.testing.conformance import check_environment, environment_checks, transport
from sluice.testing.conformance.environment import meet_environment
from tests.typescript_example import ENVIRONMENT_EXAMPLE, typescript_service

pytestmark = [pytest.mark.integration, pytest.mark.needs("typescript-example")]

ROW = '{"prompt": "Guess.", "env_args": {"highest": 9}}'


async def test_it_keeps_the_contract_plays_a_game_and_ends_at_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_checks, "_AFTER_LEASE_S", 0.7)
    with typescript_service(tmp_path / "node.log", example=ENVIRONMENT_EXAMPLE) as service:
        address = service.until_listening()
        verdicts = await check_environment(address, environment="guess", row=ROW)
        assert [(one.check, one.seen) for one in verdicts if one.outcome != "PASS"] == []

        async with transport.connected(address) as channel:
            server = await meet_environment(channel)
            opening = server.opening(arguments_json='{"highest": 9}', max_turns=9)
            assert "from 1 to 9" in (await server.open(opening)).messages[0].content
            answers = [await server.step(opening.episode_id, f"is it {n}", turn=n - 1) for n in range(1, 10)]
            secret = next(place for place, one in enumerate(answers) if one.done) + 1
            says = [one.messages[0].content for one in answers]
            assert says == ["Higher."] * (secret - 1) + ["Right!"] + ["Lower."] * (9 - secret)
            assert (answers[secret - 1].score.acc, answers[secret - 1].score.parts["turns"]) == (1, secret)
            with pytest.raises(grpc.aio.AioRpcError, match="highest: must be a whole number from 2 to 1000000, got 1"):
                await server.open(server.opening(arguments_json='{"highest": 1}'))
        assert service.end() == 0, service.output()
