"""Members that lie, several at a time: the run ends trained, its ledger closed, the liars quarantined.

A liar lies as often as it gets work: some ten to twenty lies a run. That every single lie is refused, and for what, is in
tests/unit/coordinator/test_answers.py; the same liars beside real services, which are killed meanwhile, are in tests/chaos.
"""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.state import health
from sluice.rpc.arrays import pack_ids
from sluice.testing.fakes import serving
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Coordinator, Serve
from tests.liars import (
    FlappingReward,
    FlappingRollout,
    Liar,
    LyingReward,
    LyingRollout,
    RefusingReward,
    RefusingRollout,
    SlowReward,
    SlowRollout,
    TricklingRollout,
)

pytestmark = pytest.mark.integration

STEPS = 12


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a liar gets work again and again while a short run lasts."""
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(health, "LONGEST_PAUSE_S", 0.05)


@pytest.mark.parametrize(
    "kinds",
    [
        (LyingRollout, LyingRollout, RefusingRollout, RefusingRollout),
        (SlowRollout, TricklingRollout, FlappingRollout, FlappingRollout),
        (LyingReward, LyingReward, RefusingReward, RefusingReward),
        (SlowReward, SlowReward, FlappingReward),
        (SlowRollout, LyingReward),
    ],
)
async def test_liars_beside_honest_members_lose_work_and_never_the_run(
    serve: Serve, cast: Cast, model: Path, kinds: tuple[type[Liar], ...]
) -> None:
    liars = [kind(service_id=f"liar-{place}", model=model, capacity=2**31 - 1) for place, kind in enumerate(kinds)]
    await _end_trained(serve, cast, liars)


async def _end_trained(serve: Serve, cast: Cast, liars: list[Liar]) -> None:
    changes: dict[str, Any] = {
        "run__total_steps": STEPS,
        "coordinator__heartbeat_interval_s": 0.05,
        "launch__check_reward": False,
    }
    changes |= {"coordinator__generate_timeout_s": 1.0, "coordinator__score_timeout_s": 1.0}
    async with serve(**changes) as run, asyncio.TaskGroup() as lives:
        for each in (cast.reward, cast.rollout):
            await each.register(run)
        living = [lives.create_task(liar.live(run.address)) for liar in liars]
        heard = asyncio.create_task(_quarantines(run))
        await run.until(lambda status: len(status.services) == 2 + len(liars))
        await cast.learner.register(run)
        await cast.learner.train(run, range(STEPS))
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert (status.step, status.ledger.trained, status.ledger.closed) == (STEPS, 4 * STEPS, True)
        assert all(liar.told >= health.FEWEST_FAILURES for liar in liars)
        assert {liar.service_id for liar in liars} <= await heard
        for life in living:
            life.cancel()


async def _quarantines(run: Coordinator) -> set[str]:
    """The members that were quarantined until the run's end."""
    found: set[str] = set()
    async for event in run.stub.WatchEvents(pb.WatchEventsRequest(), timeout=60):
        if event.kind == "service_quarantined":
            found.add(event.labels["service_id"])
    return found


async def test_the_status_names_a_liar_with_what_it_did(
    serve: Serve, cast: Cast, model: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 60.0)
    monkeypatch.setattr(health, "LONGEST_PAUSE_S", 60.0)
    liar = LyingRollout(service_id="liar", model=model)
    liar.lies = itertools.repeat({"token_ids": pack_ids([5, 999_999, 2])})
    async with serving(liar), serve(launch__check_reward=False) as run:
        for each in (cast.reward, cast.rollout, liar, cast.learner):
            await each.register(run)

        def is_named(status: pb.GetStatusResponse) -> bool:
            return any(service.state == pb.SERVICE_STATE_QUARANTINED for service in status.services)

        status = await run.until(is_named)
        [named] = [service for service in status.services if service.state == pb.SERVICE_STATE_QUARANTINED]
        waits = [f"{wait.who} {wait.why}" for wait in status.waits]
        assert named.service_id == "liar"
        assert any(
            "liar quarantined: no work for 60 s: 3 of its last 3" in wait and "token id 999999" in wait
            for wait in waits
        )
