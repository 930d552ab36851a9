"""The path of a group, with fakes: what is admitted, kept, dropped, tried again."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.state.member import Role, State
from services.coordinator.storage.prompt_places import place_before
from services.coordinator.storage.run_files import RunFiles
from sluice.errors import InvalidRequest, Overloaded, Unavailable
from sluice.policy_version import PolicyVersion
from sluice.testing import assert_eventually
from tests.unit.coordinator.fakes import (
    FakeRewards,
    FakeRollouts,
    Stage,
    make_config,
    running,
    settle,
)


async def test_with_max_staleness_1_exactly_one_batch_is_generated_ahead() -> None:
    stage = Stage(make_config())
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    async with running(stage):
        await settle()
        assert len(stage.board.queued) == 8, "next_step 0 at version 0: ranks 0..7 may start"


async def test_groups_that_start_together_are_recorded_together_and_only_then_noted_as_a_place(tmp_path: Path) -> None:
    stage, recorded = Stage(make_config(data__gen_batch_size=8)), list[tuple[list[str], str, int]]()
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    stage.conductor.admitter._files = RunFiles(tmp_path)
    admit = stage.store.admit

    async def admit_later(infos: Mapping[str, Any], *, cursor: str, admissions: int) -> None:
        await stage.conductor.admitter.note_place()
        assert place_before(tmp_path, 100) == (0, ""), "a kill now leaves groups that Redis has never heard of"
        assert not stage.rollouts.requests
        recorded.append((list(infos), cursor, admissions))
        await admit(infos, cursor=cursor, admissions=admissions)

    stage.store.admit = admit_later  # type: ignore[method-assign]
    async with running(stage):
        await assert_eventually(lambda: len(stage.board.queued) == 8)
        assert recorded == [([f"r-{number:07d}" for number in range(8)], "8", 8)]
        await stage.conductor.admitter.note_place()
        assert place_before(tmp_path, 100) == (8, "8")


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
