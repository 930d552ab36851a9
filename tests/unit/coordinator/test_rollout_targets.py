"""Rollouts that state how much they take now: no new group while as much is unfinished, within bounds that are believed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import Sample
from tests.unit.coordinator.fakes import FakeRollouts, Stage, make_config, running, settle


def beat(stage: Stage, member: Member, target: int) -> None:
    stage.fleet.beat(
        service_id=member.service_id,
        incarnation=member.incarnation,
        running=0,
        draining=False,
        now_s=stage.clock.now(),
        target=target,
    )


async def test_no_new_group_starts_while_as_many_samples_are_unfinished_as_the_rollout_takes() -> None:
    stage = Stage(make_config(), rollouts=FakeRollouts(gate=asyncio.Semaphore(0)))
    member = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    beat(stage, member, 3)
    async with running(stage):
        await settle()
        assert (len(stage.rollouts.requests), member.outstanding) == (2, 4)  # groups of 2: less than one beyond 3
        beat(stage, member, 6)
        await settle()
        assert member.outstanding == 6
        beat(stage, member, 2)
        stage.rollouts.gate.release()  # type: ignore[union-attr]
        await settle()
        assert (len(stage.rollouts.requests), member.outstanding) == (3, 4)
        beat(stage, member, 0)  # as registered: then data.gen_batch_size alone is the bound
        await settle()
        assert member.outstanding == 8


async def test_a_small_target_lets_a_whole_group_start_and_a_huge_one_is_bounded_by_the_capacity() -> None:
    stage = Stage(make_config(), rollouts=FakeRollouts(gate=asyncio.Semaphore(0)))
    member = stage.add_member(Role.ROLLOUT, "rollout-0", version=0, capacity=4)
    beat(stage, member, 1)
    async with running(stage):
        await settle()
        assert member.outstanding == 2
        for target in (2_000_000_000, -7):
            beat(stage, member, target)
            await settle()
            assert member.takes == 4
            if target > 0:
                assert member.outstanding == 4


async def test_a_place_is_free_when_its_sample_has_come_and_the_last_one_when_the_request_has_ended() -> None:
    class Half(FakeRollouts):
        async def generate(self, member: Member, **request: Any) -> AsyncIterator[Sample]:
            assert self.gate is not None
            async for sample in FakeRollouts().generate(member, **request):
                await self.gate.acquire()
                yield sample

    stage = Stage(make_config(data__gen_batch_size=4), rollouts=Half(gate=asyncio.Semaphore(0)))
    paced = stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    beat(stage, paced, 2)
    async with running(stage):
        await settle()
        assert (len(stage.board.open), paced.outstanding) == (1, 2)
        stage.rollouts.gate.release()  # type: ignore[union-attr]
        await settle()
        assert (len(stage.board.open), paced.outstanding) == (2, 3)  # one sample came, and one group could start
        for _ in range(7):
            stage.rollouts.gate.release()  # type: ignore[union-attr]
        await settle()
    assert paced.outstanding >= 0


async def test_a_rollout_that_takes_little_makes_no_other_take_less() -> None:
    stage = Stage(make_config(data__gen_batch_size=8), rollouts=FakeRollouts(gate=asyncio.Semaphore(0)))
    small, large = (stage.add_member(Role.ROLLOUT, f"rollout-{i}", version=0, capacity=64) for i in range(2))
    beat(stage, small, 1)
    beat(stage, large, 64)
    async with running(stage):
        await settle()
        assert small.outstanding == 2
        assert large.outstanding == 14
