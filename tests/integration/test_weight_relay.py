"""Rollouts that pass versions on: what a chain promises when one of its rollouts dies, freezes, is slow, lies, joins or leaves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.relay_fleet import RelayFleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

CHAIN = ("a", "b", "c", "d")


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[RelayFleet]:
    """Four rollouts on four machines that hold version 0."""
    async with RelayFleet(tmp_path).standing() as fleet:
        await fleet.add(*CHAIN)
        await fleet.spread(0)
        yield fleet


async def test_a_version_goes_from_rollout_to_rollout(chain: RelayFleet) -> None:
    await chain.spread(1)
    assert chain.sources() == {"a": "learner", "b": "a", "c": "b", "d": "c"}
