"""The limit on a role without a service runs from when the role lost its last service, not from the last progress."""

import asyncio

import pytest

from services.coordinator.run.lifecycle import Lifecycle
from services.coordinator.state.fleet import Role, State
from sluice.errors import Expired, LaunchError, Unavailable
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
    async def nothing() -> None:
        """Checks no reward."""

    parts: dict[str, object] = {"assigner": None, "evaluator": None, "check_reward": nothing}
    return Lifecycle(stage.run, stage.records(), conductor=stage.conductor, **parts)  # type: ignore[arg-type]


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
    lifecycle._raise_if_stuck()
    stage.clock.skip(LIMIT_S + 1)
    stage.conductor.last_progress_s = stage.clock.now()
    with pytest.raises(Expired, match="no learner for 12 s"):
        lifecycle._raise_if_stuck()


def test_a_learner_that_dies_again_and_again_is_never_quarantined(stage: Stage) -> None:
    for _ in range(5):
        stage.fleet.lose_if_unreachable(stage.fleet.members["learner"], Unavailable("killed"), now_s=stage.clock.now())
        stage.fleet.set_state(stage.add_member(Role.LEARNER, "learner"), State.READY)
    assert stage.fleet.learner is not None
    assert not stage.fleet.learner.pauses


async def test_a_repair_of_any_length_does_not_use_up_the_time_that_services_have_to_come(
    stage: Stage, lifecycle: Lifecycle
) -> None:
    limit_s = stage.config.launch.ready_timeout_s
    stage.fleet.lose(stage.fleet.members["learner"], "restarted")
    stage.progress.repairing = True
    waiting = asyncio.ensure_future(lifecycle._are_here(*Role))
    for _ in range(5):
        await asyncio.sleep(0)
        stage.clock.skip(limit_s - 1)
        stage.fleet.changed.notify()
    await asyncio.sleep(0)
    assert not waiting.done()
    stage.progress.repairing = False
    stage.clock.skip(limit_s + 1)
    stage.fleet.changed.notify()
    with pytest.raises(LaunchError, match="no learner became ready"):
        await asyncio.wait_for(waiting, 5)


def test_members_that_are_quarantined_are_named_with_the_reason(stage: Stage, lifecycle: Lifecycle) -> None:
    member = stage.fleet.members["rollout-0"]
    for _ in range(3):
        stage.fleet.fail(member, "it answered nonsense", now_s=stage.clock.now())
    lifecycle._raise_if_stuck()
    stage.clock.skip(LIMIT_S + 1)
    with pytest.raises(Expired, match=r"no rollout for 12 s .* rollout-0 is quarantined: no work for .* nonsense"):
        lifecycle._raise_if_stuck()
