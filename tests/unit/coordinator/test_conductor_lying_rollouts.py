"""Rollouts that refuse, lie or claim too much lose work, and no group of an honest one."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from services.coordinator.state.group import Sample
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.ports import WrongAnswer
from sluice.errors import Expired, InvalidRequest, Overloaded
from sluice.policy_version import PolicyVersion
from sluice.testing import assert_eventually
from tests.unit.coordinator.fakes import (
    FakeRollouts,
    Stage,
    make_config,
    running,
    settle,
)


@dataclasses.dataclass
class Liars(FakeRollouts):
    """The named rollouts answer every request at once with an error of their own; the others are honest."""

    lies: Mapping[str, Exception] = dataclasses.field(default_factory=dict)
    asked: Counter[str] = dataclasses.field(default_factory=Counter)

    async def generate(self, member: Member, **call: Any) -> AsyncIterator[Sample]:
        self.asked[member.service_id] += 1
        if lie := self.lies.get(member.service_id):
            raise lie
        async for sample in super().generate(member, **call):
            yield sample


@pytest.mark.parametrize("lie", [InvalidRequest("no"), WrongAnswer("nonsense"), Overloaded("full"), Expired("late")])
async def test_rollouts_that_fail_at_once_lose_no_group_and_get_no_more_work(lie: Exception) -> None:
    rollouts = Liars(lies={"rollout-0": lie})
    stage = Stage(make_config(), rollouts=rollouts)
    liar = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    stage.add_member(Role.ROLLOUT, "rollout-1", version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 8
        assert not any(term.startswith("failed") for term in stage.store.counters)
        assert liar.state is State.QUARANTINED
        assert "no work for 5 s: 3 of its last" in liar.reason
        assert rollouts.asked["rollout-0"] < 9


async def test_a_liar_among_the_rollouts_is_tried_again_after_its_pause_and_then_for_a_longer_one() -> None:
    stage = Stage(make_config(), rollouts=Liars(lies={"rollout-0": WrongAnswer("nonsense")}))
    liar = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    stage.add_member(Role.ROLLOUT, "rollout-1", version=0)
    async with running(stage):
        for pause_s in (5, 10, 20):
            await assert_eventually(lambda: liar.state is State.QUARANTINED)
            assert f"no work for {pause_s} s" in liar.reason
            await stage.clock.advance(pause_s - 0.1)
            stage.fleet.end_pauses(now_s=stage.clock.now())
            assert liar.pauses
            await stage.clock.advance(0.2)
            stage.fleet.end_pauses(now_s=stage.clock.now())
            assert not liar.pauses
            stage.fleet.set_state(liar, State.READY)  # as a weight push does
            stage.board.next_step += 1
            for group in list(stage.board.queued.values()):
                stage.board.remove(group)
                stage.store.state.pop(group.group_id)
                stage.store.counters.update({"queued": -1, "trained": 1})
            for member in stage.fleet.of(Role.ROLLOUT):
                number = stage.board.next_step
                member.version, member.granted = PolicyVersion(lineage="a", number=number), number
            stage.fleet.changed.notify()


async def test_a_request_is_refused_when_every_rollout_says_so() -> None:
    names = ("rollout-0", "rollout-1", "rollout-2")
    stage = Stage(make_config(), rollouts=Liars(lies=dict.fromkeys(names, InvalidRequest("prompt too long"))))
    for name in names:
        stage.add_member(Role.ROLLOUT, name, version=0)
    async with running(stage):
        await settle()
        rows = [row for row in stage.store.rows_ if row["term"] == "failed:refused"]
        assert rows
        assert all({attempt["rollout"] for attempt in row["attempts"]} == {*names} for row in rows)
        assert len(stage.fleet.of(Role.ROLLOUT)) == 3, "nobody is to blame"


async def test_rollouts_that_refuse_everything_together_lose_no_group_of_an_honest_one() -> None:
    refusal = {"rollout-0": InvalidRequest("no"), "rollout-1": InvalidRequest("no")}
    stage = Stage(make_config(), rollouts=Liars(lies=refusal))
    for name in ("rollout-0", "rollout-1", "rollout-2"):
        stage.add_member(Role.ROLLOUT, name, version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 8
        assert not any(term.startswith("failed") for term in stage.store.counters)
        assert {member.service_id for member in stage.fleet.of(Role.ROLLOUT)} == {"rollout-2"}


async def test_rollouts_that_refuse_everything_are_not_believed_while_the_honest_one_is_started_again() -> None:
    refusal = {"rollout-0": InvalidRequest("no"), "rollout-1": InvalidRequest("no")}
    stage = Stage(make_config(), rollouts=Liars(lies=refusal))
    honest = stage.add_member(Role.ROLLOUT, "rollout-2", version=0)
    stage.fleet.lose(honest, "killed")
    for name in refusal:
        stage.add_member(Role.ROLLOUT, name, version=0)
    async with running(stage):
        await settle()
        assert not any(term.startswith("failed") for term in stage.store.counters)
        stage.add_member(Role.ROLLOUT, "rollout-2", version=0)
        await settle()
        assert len(stage.board.queued) == 8
        assert not any(term.startswith("failed") for term in stage.store.counters)


async def test_the_refusal_of_a_rollout_that_answers_well_waits_for_nobody_who_may_come_back() -> None:
    stage = Stage(make_config(), rollouts=FakeRollouts(failures={"r-0000003.1": InvalidRequest("prompt too long")}))
    stage.fleet.lose(stage.add_member(Role.ROLLOUT, "rollout-1", version=0), "killed")
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert stage.store.counters["failed:refused"] == 1


async def test_a_rollout_after_its_pause_gets_one_group_until_it_has_answered_well() -> None:
    stage = Stage(make_config())
    slow = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    for _ in range(3):
        stage.fleet.fail(slow, "it answers too late", now_s=0.0)
    stage.fleet.end_pauses(now_s=5.0)
    stage.fleet.set_state(slow, State.READY)  # as a weight push does
    stage.rollouts.gate = asyncio.Semaphore(0)
    async with running(stage):
        await settle()
        assert stage.rollouts.requests == ["r-0000000.1"]
        stage.rollouts.gate.release()
        await settle()
        assert len(stage.rollouts.requests) > 2


async def test_a_rollout_that_claims_a_huge_capacity_wins_at_most_four_times_the_work() -> None:
    stage = Stage(make_config(data__gen_batch_size=50, coordinator__max_staleness=9))
    stage.rollouts.gate = asyncio.Semaphore(0)
    honest = stage.add_member(Role.ROLLOUT, "rollout-0", version=0, capacity=64)
    liar = stage.add_member(Role.ROLLOUT, "rollout-1", version=0, capacity=2_000_000_000)
    async with running(stage):
        await settle()
        assert honest.outstanding >= 4
        assert liar.outstanding <= 4 * honest.outstanding + 2
