"""Rewards that lie, push back or cannot grade lose work or one group, never the run."""

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from services.coordinator.state.group import Group, Reward
from services.coordinator.state.ledger import count
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.ports import WrongAnswer
from sluice.errors import Expired, InvalidRequest, Overloaded
from sluice.testing import assert_eventually
from tests.unit.coordinator.fakes import (
    FakeCodec,
    FakeRewards,
    FakeRollouts,
    Stage,
    make_config,
    make_reward,
    running,
    settle,
)


@dataclasses.dataclass
class LyingRewards(FakeRewards):
    lies: Mapping[str, Exception] = dataclasses.field(default_factory=dict)

    async def score(self, member: Member, **call: Any) -> list[Reward]:
        if lie := self.lies.get(member.service_id):
            raise lie
        return await super().score(member, **call)


@pytest.mark.parametrize("lie", [InvalidRequest("no"), WrongAnswer("nonsense"), Expired("late")])
async def test_rewards_that_fail_at_once_lose_no_group_and_get_no_more_work(lie: Exception) -> None:
    stage = Stage(make_config(), rewards=LyingRewards(lies={"reward-1": lie}))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    liar = stage.add_member(Role.REWARD, "reward-1")
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 8
        assert not any(term.startswith("failed") for term in stage.store.counters)
        assert liar.state is State.QUARANTINED
        for _ in range(6):
            await stage.clock.advance(1.0)
        stage.fleet.end_pauses(now_s=stage.clock.now())
        assert liar.state is State.READY


async def test_rewards_that_refuse_everything_together_lose_no_group_of_an_honest_one() -> None:
    refusal = {"reward-1": InvalidRequest("no"), "reward-2": InvalidRequest("no")}
    stage = Stage(make_config(), rewards=LyingRewards(lies=refusal))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    for name in refusal:
        stage.add_member(Role.REWARD, name)
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 8
        assert not any(term.startswith("failed") for term in stage.store.counters)


async def test_rewards_that_refuse_everything_are_not_believed_while_the_honest_one_is_started_again() -> None:
    stage = Stage(make_config(), rewards=LyingRewards(lies={"reward-1": InvalidRequest("no")}))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    stage.fleet.lose(stage.fleet.members["reward-0"], "killed")
    stage.add_member(Role.REWARD, "reward-1")
    async with running(stage):
        await settle()
        assert not any(term.startswith("failed") for term in stage.store.counters)
        stage.add_member(Role.REWARD, "reward-0")
        await settle()
        assert len(stage.board.queued) == 8
        assert not any(term.startswith("failed") for term in stage.store.counters)


@dataclasses.dataclass
class HangingRewards(FakeRewards):
    """Never answers."""

    async def score(self, member: Member, **call: Any) -> list[Reward]:
        await asyncio.Event().wait()
        return []


async def test_a_reward_that_claims_a_huge_capacity_gets_at_most_four_times_the_work() -> None:
    stage = Stage(make_config(data__gen_batch_size=50, coordinator__max_staleness=9), rewards=HangingRewards())
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    stage.fleet.members["reward-0"].capacity = 2
    liar = stage.add_member(Role.REWARD, "reward-1", capacity=2_000_000_000)
    async with running(stage):
        await settle()
        assert stage.fleet.members["reward-0"].outstanding == 2
        assert liar.outstanding == 8


async def test_a_reward_that_always_pushes_back_holds_up_no_group_while_another_is_there() -> None:
    stage = Stage(make_config(), rewards=LyingRewards(lies={"reward-1": Overloaded("busy")}))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    stage.add_member(Role.REWARD, "reward-1")
    async with running(stage):
        for _ in range(5):
            await settle()
            await stage.clock.advance(1.0)
        await settle()
        assert len(stage.board.queued) == 8


async def test_a_group_that_waited_long_for_a_reward_has_the_whole_time_of_back_pressure() -> None:
    gate = asyncio.Semaphore(0)
    stage = Stage(
        make_config(coordinator__score_wait_s=60.0),
        rollouts=FakeRollouts(gate=gate),
        rewards=LyingRewards(lies={"reward-0": Overloaded("busy")}),
    )
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        stage.fleet.lose(stage.fleet.members["reward-0"], "killed")
        for _ in range(8):
            gate.release()
        await settle()
        stage.clock.skip(1000.0)  # without any reward
        stage.add_member(Role.REWARD, "reward-0")
        for _ in range(40):
            await settle()
            await stage.clock.advance(1.0)
        assert stage.store.counters["failed:reward_overloaded"] == 0
        for _ in range(40):
            await settle()
            await stage.clock.advance(1.0)
        assert stage.store.counters["failed:reward_overloaded"] > 0


async def test_a_sample_that_could_not_be_graded_is_a_failure_never_a_zero() -> None:
    stage = Stage(make_config(), rewards=FakeRewards(status="timeout"))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await assert_eventually(lambda: stage.store.counters["failed:reward_timeout"] >= 1)
        assert not stage.board.queued
        assert stage.store.counters["filtered_all_wrong"] == 0


class RememberedGroups(FakeCodec):
    def __init__(self) -> None:
        self.encoded: dict[str, Group] = {}

    def encode(self, group: Group) -> bytes:
        self.encoded[group.group_id] = group
        return super().encode(group)


class SomeUngraded(FakeRewards):
    """Of four samples the second cannot be graded, of every other group the third neither."""

    async def score(self, member: Any, *, group_id: str, **others: Any) -> list[Reward]:
        rewards = await super().score(member, group_id=group_id, **others)
        bad = (1,) if int(group_id[-1]) % 2 == 0 else (1, 2)
        return [make_reward(0.0, status="timeout") if index in bad else one for index, one in enumerate(rewards)]


async def test_a_group_may_be_trained_without_the_samples_that_could_not_be_graded_if_it_is_told_so() -> None:
    stage, codec = (
        Stage(make_config(rollout__n=4, algorithm__min_group_size=3), rewards=SomeUngraded()),
        RememberedGroups(),
    )
    stage.conductor._codec = codec
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await assert_eventually(lambda: len(stage.board.queued) >= 2)
        await assert_eventually(lambda: stage.store.counters["failed:reward_timeout"] >= 2)
    trained = codec.encoded["r-0000000"]
    assert sorted(trained.samples) == [0, 2, 3]
    assert [reward.acc for reward in trained.rewards] == [1.0, 0.0, 0.0]
    tokens = len(trained.samples[0].token_ids)
    assert (trained.response_tokens, trained.lost_tokens) == (3 * tokens, tokens)
    assert {group_id[-1] for group_id in stage.board.queued} <= set("02468")
    assert stage.conductor.window.statuses["timeout"] > 0
    assert count(stage.store.counters, stage.board).closed


@dataclasses.dataclass
class PushingBack(FakeRewards):
    """Graders that are full until the clock says otherwise."""

    until_s: float = math.inf
    now: Callable[[], float] = lambda: 0.0
    asked: int = 0

    async def score(self, member: Member, **call: Any) -> list[Reward]:
        self.asked += 1
        if self.now() < self.until_s:
            raise Overloaded("the judge is away")
        return await super().score(member, **call)


async def test_graders_that_push_back_make_groups_wait_and_cost_no_attempt() -> None:
    rewards = PushingBack(until_s=60.0)
    stage = Stage(make_config(), rewards=rewards)
    rewards.now = stage.clock.now
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        for _ in range(59):
            await stage.clock.advance(1.0)
        waiting = len(stage.board.open)
        assert rewards.asked > 3 * waiting, "more often than max_attempts"
        assert rewards.asked < 12 * waiting, "and less and less often"
        assert not stage.board.queued
        assert [member.outstanding for member in stage.fleet.of(Role.REWARD)] == [0], "others may be graded meanwhile"
        for _ in range(40):  # a pause may be 15 s, and ends a turn of the loop later than the clock says
            await stage.clock.advance(1.0)
        await settle()
        assert len(stage.board.queued) == 8
        assert not any(term.startswith("failed") for term in stage.store.counters)


async def test_graders_that_push_back_for_too_long_fail_the_group_by_name() -> None:
    stage = Stage(make_config(coordinator__score_wait_s=30.0), rewards=PushingBack())
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await stage.clock.advance(14.0)
        assert not any(term.startswith("failed") for term in stage.store.counters)
        for _ in range(60):  # the last pause may end after the limit, and the clock is seen a turn of the loop later
            await stage.clock.advance(1.0)
        await settle()
        faults = [row["fault"] for row in stage.store.rows_ if row["term"] == "failed:reward_overloaded"]
        assert faults
        assert all("coordinator.score_wait_s is 30" in fault for fault in faults)


async def test_a_full_fleet_means_waiting_and_no_reward_is_over_its_capacity() -> None:
    release = asyncio.Event()

    now, most = Counter[str](), Counter[str]()

    class Slow(FakeRewards):
        async def score(self, member: Member, **call: Any) -> list[Reward]:
            now[member.service_id] += 1
            most.update({member.service_id: int(now[member.service_id] > most[member.service_id])})
            await release.wait()
            now[member.service_id] -= 1
            return await super().score(member, **call)

    stage = Stage(make_config(), rewards=Slow())
    for member in stage.fleet.of(Role.REWARD):
        member.capacity = 2
    stage.add_member(Role.REWARD, "reward-1").capacity = 1
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert most == {"reward-0": 2, "reward-1": 1}
        release.set()
        await settle()
        assert len(stage.board.queued) == 8
        assert most == {"reward-0": 2, "reward-1": 1}
