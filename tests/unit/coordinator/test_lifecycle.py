"""The limit on a role without a service runs from when the role lost its last service, not from the last progress, and only
while the coordinator looks.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.coordinator.groups.failures import TRY_AGAIN_S
from services.coordinator.run.absences import LONGEST_GAP_S
from services.coordinator.run.lifecycle import Lifecycle
from services.coordinator.state.member import Role, State
from services.coordinator.state.places import FORGOTTEN_S, Place
from sluice.errors import Expired, LaunchError, SluiceError, Unavailable
from sluice.testing import assert_eventually
from tests.unit.coordinator.fakes import Stage, make_config

LIMIT_S = 12.0


@pytest.fixture
def stage() -> Stage:
    """A run with every role, which has stood still for longer than the limit: it was paused."""
    made = Stage(make_config(coordinator__no_service_timeout_s=LIMIT_S))
    made.add_member(Role.ROLLOUT, "rollout-0", version=0)
    made.fleet.set_state(made.add_member(Role.LEARNER, "learner"), State.READY)
    made.clock.skip(1.5 * LIMIT_S)
    return made


@pytest.fixture
def lifecycle(stage: Stage) -> Lifecycle:
    return made_of(stage)


def made_of(stage: Stage) -> Lifecycle:
    async def nothing() -> None:
        """Checks no reward."""

    parts: dict[str, object] = {"assigner": None, "evaluator": None, "check_reward": nothing}
    return Lifecycle(stage.run, stage.records(), conductor=stage.conductor, **parts)  # type: ignore[arg-type]


def look_for(stage: Stage, lifecycle: Lifecycle, seconds: float) -> None:
    """Looks once a second."""
    for _ in range(round(seconds)):
        lifecycle._raise_if_stuck()
        stage.clock.skip(1.0)
    lifecycle._raise_if_stuck()


@pytest.mark.parametrize("name", ["rollout-0", "reward-0", "learner"])
def test_a_service_that_dies_after_a_long_pause_has_the_whole_limit_to_come_back(
    stage: Stage, lifecycle: Lifecycle, name: str
) -> None:
    lifecycle._raise_if_stuck()
    member = stage.fleet.members[name]
    stage.fleet.lose(member, "killed")
    for _ in range(int(LIMIT_S)):
        lifecycle._raise_if_stuck()
        stage.clock.skip(1.0)
    lifecycle._raise_if_stuck()
    stage.clock.skip(1.0)
    with pytest.raises(Expired, match=f"no {member.role.value} for 12 s"):
        lifecycle._raise_if_stuck()


def test_a_service_that_came_back_starts_the_limit_anew(stage: Stage, lifecycle: Lifecycle) -> None:
    for _ in range(5):
        stage.fleet.lose(stage.fleet.members["rollout-0"], "killed")
        for _ in range(int(LIMIT_S) - 1):
            lifecycle._raise_if_stuck()
            stage.clock.skip(1.0)
        stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
        lifecycle._raise_if_stuck()


def test_progress_of_other_services_does_not_hide_that_a_role_is_missing(stage: Stage, lifecycle: Lifecycle) -> None:
    stage.fleet.lose(stage.fleet.members["learner"], "killed")
    look_for(stage, lifecycle, LIMIT_S)
    stage.conductor.last_progress_s = stage.clock.now()
    with pytest.raises(Expired, match="no learner for 12 s"):
        look_for(stage, lifecycle, 1)


def test_time_in_which_the_coordinator_did_not_run_does_not_count(stage: Stage, lifecycle: Lifecycle) -> None:
    stage.fleet.lose(stage.fleet.members["rollout-0"], "killed")
    look_for(stage, lifecycle, 2)
    stage.clock.skip(100 * LIMIT_S)
    look_for(stage, lifecycle, LIMIT_S - 2 - LONGEST_GAP_S)
    with pytest.raises(Expired, match="no rollout for 12 s"):
        look_for(stage, lifecycle, LIMIT_S)


def test_a_learner_that_dies_again_and_again_is_never_quarantined(stage: Stage) -> None:
    for _ in range(5):
        stage.fleet.lose_if_unreachable(stage.fleet.members["learner"], Unavailable("killed"), now_s=stage.clock.now())
        stage.fleet.set_state(stage.add_member(Role.LEARNER, "learner"), State.READY)
    assert stage.fleet.learner is not None
    assert not stage.fleet.learner.pauses


def test_members_that_are_quarantined_are_named_with_the_reason(stage: Stage, lifecycle: Lifecycle) -> None:
    member = stage.fleet.members["rollout-0"]
    for _ in range(3):
        stage.fleet.fail(member, "it answered nonsense", now_s=stage.clock.now())
    with pytest.raises(Expired, match=r"no rollout for 12 s .* rollout-0 is quarantined: no work for .* nonsense"):
        look_for(stage, lifecycle, LIMIT_S + 1)


READY_S = 20


@pytest.fixture
def starting() -> Stage:
    """A run to which only a reward has come."""
    return Stage(make_config(launch__ready_timeout_s=float(READY_S)))


async def looks(stage: Stage, seconds: int) -> None:
    """Lets so many seconds pass, with a look in each."""
    for _ in range(seconds):
        for _ in range(3):
            await asyncio.sleep(0)
        stage.clock.skip(1.0)
        stage.fleet.notify_all()
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_start_without_a_role_ends_after_the_limit_and_names_that_role_alone(starting: Stage) -> None:
    waiting = asyncio.create_task(made_of(starting)._are_here(Role.ROLLOUT, Role.REWARD, Role.LEARNER))
    starting.add_member(Role.ROLLOUT, "rollout-0", version=0)
    await looks(starting, READY_S)
    assert not waiting.done()
    starting.fleet.lose(starting.fleet.members["rollout-0"], "killed")
    await looks(starting, 2)
    with pytest.raises(LaunchError, match=r"^no learner became ready within 20 s"):
        await waiting


async def test_the_wait_for_a_place_does_not_use_up_the_time_that_services_have_to_come(starting: Stage) -> None:
    waiting = asyncio.create_task(made_of(starting)._are_here(Role.LEARNER))
    for _ in range(3):
        starting.run.places.report([Place(service_id="learner-1", waits_for="no node has 2 free GPUs")])
        await looks(starting, READY_S)
    assert not waiting.done()
    starting.run.places.report([Place(service_id="learner-1", node="n2")])
    await looks(starting, READY_S - 1)
    assert not waiting.done()
    await looks(starting, 3)
    with pytest.raises(LaunchError, match=r"^no learner became ready within 20 s"):
        await waiting


def test_a_role_that_waits_for_a_place_is_not_missed_until_its_launcher_is_silent(
    stage: Stage, lifecycle: Lifecycle
) -> None:
    stage.fleet.lose(stage.fleet.members["rollout-0"], "its node is gone")
    stage.run.places.report([Place(service_id="rollout-0", waits_for="no node has 2 free GPUs")])
    look_for(stage, lifecycle, FORGOTTEN_S + LIMIT_S)
    with pytest.raises(Expired, match="no rollout for 12 s"):
        look_for(stage, lifecycle, 3)


async def test_a_service_that_dies_late_in_a_start_has_the_whole_limit_to_come_back(starting: Stage) -> None:
    waiting = asyncio.create_task(made_of(starting)._are_here(Role.ROLLOUT, Role.REWARD))
    starting.fleet.lose(starting.fleet.members["reward-0"], "killed")
    await looks(starting, READY_S - 1)
    starting.add_member(Role.REWARD, "reward-0")
    starting.add_member(Role.ROLLOUT, "rollout-0")  # and waits for its weights
    await looks(starting, 3 * READY_S)
    assert not waiting.done()
    starting.fleet.lose(starting.fleet.members["reward-0"], "killed")
    await looks(starting, READY_S - 1)
    assert not waiting.done()
    starting.add_member(Role.REWARD, "reward-0")
    starting.fleet.set_state(starting.fleet.members["rollout-0"], State.READY)
    await waiting


async def test_a_repair_of_any_length_does_not_use_up_the_time_that_services_have_to_come(starting: Stage) -> None:
    starting.progress.repairing = True
    waiting = asyncio.create_task(made_of(starting)._are_here(Role.ROLLOUT, Role.REWARD, Role.LEARNER))
    await looks(starting, 5 * READY_S)
    assert not waiting.done()
    starting.progress.repairing = False
    await looks(starting, READY_S + 2)
    with pytest.raises(LaunchError, match="no learner became ready"):
        await waiting


async def test_a_rollout_that_waited_for_the_weights_of_a_late_learner_has_a_limit_of_its_own(starting: Stage) -> None:
    waiting = asyncio.create_task(made_of(starting)._are_here(Role.ROLLOUT, Role.REWARD, Role.LEARNER))
    starting.add_member(Role.ROLLOUT, "rollout-0")
    await looks(starting, READY_S - 1)
    starting.add_member(Role.LEARNER, "learner")
    await looks(starting, READY_S - 1)
    assert not waiting.done()
    await looks(starting, 4)
    with pytest.raises(LaunchError, match=r"^no rollout became ready within 20 s"):
        await waiting


FAILURES = 16


@pytest.fixture
async def failing() -> AsyncIterator[tuple[Stage, Lifecycle]]:
    """A run whose graders grade nothing; its conductor runs."""
    stage = Stage(make_config(coordinator__no_service_timeout_s=LIMIT_S, coordinator__max_attempts=1))
    stage.rewards.status = "error"
    stage.fleet.set_state(stage.add_member(Role.LEARNER, "learner"), State.READY)
    conducting = asyncio.create_task(stage.conductor.run())
    stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    await assert_eventually(lambda: stage.conductor.admitter.failures.have_a_cause and not stage.board.open)
    yield stage, made_of(stage)
    conducting.cancel()
    await asyncio.gather(conducting, return_exceptions=True)


def failed(stage: Stage) -> int:
    return stage.store.counters["failed:reward_error"]


async def test_while_groups_fail_one_after_the_other_one_is_tried_at_a_time_until_one_ends_well(
    failing: tuple[Stage, Lifecycle],
) -> None:
    stage, lifecycle = failing
    lifecycle._raise_if_stuck()
    before = failed(stage)
    assert before < FAILURES + stage.board.gen_batch_size
    await looks(stage, int(TRY_AGAIN_S) - 1)
    assert failed(stage) == before
    await looks(stage, 1)
    await assert_eventually(lambda: failed(stage) == before + 1)
    lifecycle._raise_if_stuck()
    stage.rewards.status = "ok"
    await looks(stage, int(TRY_AGAIN_S))
    await assert_eventually(lambda: len(stage.board.queued) == 8)
    assert not stage.conductor.admitter.failures.have_a_cause
    look_for(stage, lifecycle, 3 * LIMIT_S)


async def test_a_run_in_which_no_group_ends_well_ends_after_the_limit_and_says_why(
    failing: tuple[Stage, Lifecycle],
) -> None:
    stage, lifecycle = failing
    look_for(stage, lifecycle, LIMIT_S)
    with pytest.raises(SluiceError, match=r"groups failed in a row; the last: reward_error: .* ended well for 12 s"):
        look_for(stage, lifecycle, 2)
