"""The built-in environments, hosted by the reward process, keep the contract of environment servers."""

import asyncio
from pathlib import Path

import pytest

from services.reward.environments.servicer import infos
from sluice.testing.conformance import environment_checks
from sluice.testing.conformance.environment_server import EnvironmentServer, row_fields
from sluice.testing.conformance.suite import Suite
from tests.integration.test_environment_hosting import stub_of

pytestmark = pytest.mark.integration

HUNT = Path(__file__).parent.parent / "unit" / "reward" / "test_reset_step.py"


async def test_every_built_in_environment_passes_the_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment_checks, "_AFTER_LEASE_S", 0.8)
    monkeypatch.setattr(environment_checks, "_SHORT_LEASE_S", 0.2)
    (tmp_path / "a.txt").write_text("The Rhine is a river.")
    settings = {
        "calculator": {},
        "gymnasium": {"make": f"{HUNT}:Hunt"},
        "python": {},
        "search": {"folder": str(tmp_path)},
        "second-try": {"tries": 3},
    }
    environments = {
        name: {"environment": name, "workers": 1, "episodes": 12, "settings": given} for name, given in settings.items()
    }
    async with stub_of(environments, turn_timeout_s=60.0) as (stub, host, channel):
        listed = infos(host)
        servers = [EnvironmentServer(channel=channel, stub=stub, info=one, row=row_fields("")) for one in listed]
        suite: Suite[EnvironmentServer] = Suite()
        suite.checks = environment_checks.SUITE.checks[:-1]  # a message over the limit is no matter of an environment
        found = await asyncio.gather(*map(suite.run, servers))
    wrong = {
        (info.name, one.check, one.seen)
        for info, verdicts in zip(listed, found, strict=True)
        for one in verdicts
        if one.outcome != "PASS"
    }
    assert (len(found), wrong) == (5, set())
