"""The path of a group, with fakes: what is admitted, kept, dropped, tried again."""

import asyncio
import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from services.coordinator.state.fleet import Member, Role, State
from services.coordinator.state.group import Group, Reward, Sample
from services.coordinator.state.ledger import count
from services.coordinator.state.ports import WrongAnswer
from sluice.errors import Expired, InvalidRequest, Overloaded, Unavailable
from sluice.policy_version import PolicyVersion
from sluice.testing import assert_eventually
from tests.unit.coordinator.fakes import FakeCodec, FakeRewards, FakeRollouts, Stage, make_config, make_reward


@contextlib.asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[Stage]:
    task = asyncio.create_task(stage.conductor.run())
    try:
        yield stage
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert count(stage.store.counters, stage.board).closed


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_with_max_staleness_1_exactly_one_batch_is_generated_ahead() -> None:
    stage = Stage(make_config())
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 8, "next_step 0 at version 0: ranks 0..7 may start"


async def test_nothing_starts_on_a_rollout_that_is_too_far_behind() -> None:
    stage = Stage(make_config())
    stage.board.next_step = 2
    member = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert not stage.rollouts.requests
        member.version, member.granted = PolicyVersion(lineage="a", number=1), 1
        stage.fleet.changed.notify()
        await settle()
        assert len(stage.board.queued) == 4


async def test_groups_in_flight_never_exceed_gen_batch_size() -> None:
    stage = Stage(make_config(data__gen_batch_size=5), rollouts=FakeRollouts(gate=asyncio.Semaphore(0)))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.open) == 5


async def test_rejected_groups_are_replaced_one_for_one_and_counted_by_reason() -> None:
    rewards = FakeRewards(acc={"p0": [1.0, 1.0], "p1": [0.0, 0.0]})
    stage = Stage(make_config(), rewards=rewards)
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 8
        assert stage.store.counters["filtered_all_right"] == 1
        assert stage.store.counters["filtered_all_wrong"] == 1
        assert stage.board.verdicts == 10


async def test_a_member_that_cannot_be_reached_is_lost_at_once_and_gets_no_more_work() -> None:
    rollouts = FakeRollouts(failures={"r-0000000.1": Unavailable("gone")})
    stage = Stage(make_config(), rollouts=rollouts)
    first = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert first.state is State.LOST
        assert "r-0000000.2" not in rollouts.requests
        stage.add_member(Role.ROLLOUT, "rollout-1", version=0)
        await settle()
        assert "r-0000000.2" in rollouts.requests
        assert "r-0000000" in stage.board.queued


async def test_a_failed_attempt_keeps_its_samples_and_asks_only_for_the_missing_ones() -> None:
    rollouts = FakeRollouts(failures={"r-0000000.1": Overloaded("full")})
    stage = Stage(make_config(rollout__n=3), rollouts=rollouts)
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert "r-0000000.2" in rollouts.requests
        assert "r-0000000" in stage.board.queued
        assert stage.board.queued["r-0000000"].tokens == 12
        assert stage.store.counters["lost_tokens"] == 0


@pytest.mark.parametrize(("pushing", "then"), [(True, "r-0000000.1.1"), (False, "r-0000000.2")])
async def test_only_a_sample_aborted_by_a_push_under_way_uses_up_no_attempt(pushing: bool, then: str) -> None:
    rollouts = FakeRollouts(aborts={"r-0000000.1"})
    stage = Stage(make_config(rollout__n=3), rollouts=rollouts)
    member = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    member.granted += pushing
    async with running(stage):
        await settle()
        assert [name for name in rollouts.requests if name.startswith("r-0000000")] == ["r-0000000.1", then]
        assert stage.board.queued["r-0000000"].tokens == 12
        assert stage.board.queued["r-0000000"].attempt == (1 if pushing else 2)
        assert stage.store.counters["lost_tokens"] == 4


async def test_a_rollout_that_lets_its_samples_end_gets_no_new_group() -> None:
    stage = Stage(make_config())
    member = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    member.finishing = True
    async with running(stage):
        await settle()
        assert not stage.rollouts.requests
        member.finishing = False
        stage.fleet.changed.notify()
        await settle()
        assert len(stage.board.queued) == 8


async def test_a_group_that_keeps_failing_is_failed_and_its_rank_is_freed() -> None:
    failures = {f"r-0000000.{attempt}": Overloaded("full") for attempt in (1, 2, 3)}
    stage = Stage(make_config(rollout__n=5), rollouts=FakeRollouts(failures=failures))
    for name in ("rollout-0", "rollout-1"):
        stage.add_member(Role.ROLLOUT, name, version=0)
    async with running(stage):
        await settle()
        assert stage.store.counters["failed:generation"] == 1
        assert len(stage.board.queued) == 8


async def test_an_answer_that_ends_short_of_samples_is_a_failed_attempt_and_not_asked_for_ever() -> None:
    stage = Stage(make_config(rollout__n=5), rollouts=FakeRollouts(short=True))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await assert_eventually(lambda: "r-0000000.3" in stage.rollouts.requests)
        await settle()
        assert stage.rollouts.requests.count("r-0000000.1") == 1
        assert stage.store.counters["failed:generation"] >= 1


async def test_a_refused_request_is_not_tried_again() -> None:
    rollouts = FakeRollouts(failures={"r-0000000.1": InvalidRequest("prompt too long")})
    stage = Stage(make_config(), rollouts=rollouts)
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert stage.store.counters["failed:refused"] == 1
        assert "r-0000000.2" not in rollouts.requests


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


async def test_a_kept_group_that_comes_too_late_is_stale() -> None:
    gate = asyncio.Semaphore(0)
    stage = Stage(make_config(), rollouts=FakeRollouts(gate=gate))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        stage.board.next_step = 2
        for _ in range(4):
            gate.release()
        await settle()
        assert stage.store.counters["stale"] == 4


async def test_at_staleness_0_the_rest_of_an_over_generated_wave_is_surplus() -> None:
    gate = asyncio.Semaphore(0)
    stage = Stage(make_config(coordinator__max_staleness=0, data__gen_batch_size=6), rollouts=FakeRollouts(gate=gate))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.open) == 6
        stage.board.next_step = 1
        for _ in range(6):
            gate.release()
        await settle()
        assert stage.store.counters["surplus"] == 6


async def test_nothing_is_admitted_for_steps_that_will_not_come() -> None:
    stage = Stage(make_config(run__total_steps=1))
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert stage.store.counters["admitted"] == 4


async def test_no_group_starts_while_no_reward_is_ready() -> None:
    stage = Stage(make_config())
    stage.fleet.set_state(stage.fleet.members["reward-0"], State.LOST)
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert not stage.rollouts.requests


async def test_work_goes_to_the_least_loaded_rollout() -> None:
    stage = Stage(make_config(), rollouts=FakeRollouts(gate=asyncio.Semaphore(0)))
    members = [stage.add_member(Role.ROLLOUT, f"rollout-{i}", version=0, capacity=10) for i in range(2)]
    async with running(stage):
        await settle()
        assert [member.outstanding for member in members] == [4, 4]


async def test_a_full_queue_holds_back_what_is_not_of_the_next_batch_and_never_that_batch() -> None:
    payload_bytes = len("r-0000000")
    stage = Stage(make_config(coordinator__queue_max_bytes=4 * 2 * 8 * 10))  # the least that is allowed
    stage.board.queued_bytes = stage.config.coordinator.queue_max_bytes - 2 * payload_bytes
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 4, "ranks 0 to 3 come in though two of them fill the queue; 4 to 7 wait"
        stage.board.queued_bytes = 0
        stage.board.changed.notify()
        await settle()
        assert len(stage.board.queued) == 8


async def test_a_group_that_no_message_can_carry_fails_by_name_before_it_is_accepted() -> None:
    stage = Stage(make_config())
    stage.codec.too_large = "r-0000001"
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert stage.store.counters["failed:too_large"] == 1
        assert stage.store.rows_[0]["fault"] == "too large"
        assert len(stage.board.queued) == 8


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
