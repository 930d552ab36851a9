"""Who is registered: replacement, loss, and coming back."""

import asyncio
import dataclasses

import pytest

from services.coordinator.run.heartbeats import sweep_forever
from services.coordinator.state.fleet import EXPECTED_S, FORGET_LOST_S, Fleet
from services.coordinator.state.member import Member, Role, State
from sluice.errors import Expired, Fenced, Unavailable
from tests.unit.coordinator.fakes import Stage, make_config


def member(incarnation: str, *, service_id: str = "rollout-0", role: Role = Role.ROLLOUT) -> Member:
    return Member(service_id=service_id, role=role, address="-", incarnation=incarnation, capacity=4, last_beat_s=0.0)


def beat(fleet: Fleet, incarnation: str) -> bool:
    return fleet.beat(service_id="rollout-0", incarnation=incarnation, running=0, draining=False, now_s=0.0)


def test_a_new_process_replaces_the_former_one_of_its_id() -> None:
    fleet, first, second = Fleet(), member("a"), member("b")
    fleet.register(first)
    assert fleet.register(second) is first
    assert first.gone.is_set()
    assert (beat(fleet, "a"), beat(fleet, "b")) == (False, True)


def test_two_processes_under_one_id_do_not_replace_each_other_for_ever() -> None:
    fleet = Fleet()
    fleet.register(member("a"))
    fleet.register(member("b"))
    with pytest.raises(Fenced, match="rollout-0"):
        fleet.register(member("a"))


def test_a_process_that_was_lost_may_register_again() -> None:
    fleet = Fleet()
    fleet.register(member("a"))
    assert [lost.incarnation for lost in fleet.sweep(now_s=11, timeout_s=10)] == ["a"]
    assert not beat(fleet, "a")
    fleet.register(member("a"))
    fleet.register(member("a"))
    assert beat(fleet, "a")


def test_ids_that_are_given_out_differ_between_processes_and_coordinators() -> None:
    ids = []
    for incarnation in ("1234567890", "abcdefghij"):
        newcomer = member(incarnation, service_id="")
        Fleet().register(newcomer)
        ids.append(newcomer.service_id)
    assert ids == ["rollout-12345678", "rollout-abcdefgh"]


def test_the_lost_are_forgotten_in_the_end() -> None:
    fleet = Fleet()
    fleet.register(member("a"))
    fleet.sweep(now_s=11, timeout_s=10)
    assert list(fleet.members) == ["rollout-0"]
    fleet.sweep(now_s=FORGET_LOST_S + 11, timeout_s=10)
    assert not fleet.members


def test_silence_does_not_count_while_nobody_could_be_heard() -> None:
    fleet, first = Fleet(), member("a")
    fleet.register(first)
    fleet.excuse(now_s=100)
    assert not fleet.sweep(now_s=110, timeout_s=10)
    assert fleet.sweep(now_s=111, timeout_s=10) == [first]


async def test_a_coordinator_that_was_stopped_declares_nobody_lost_when_it_goes_on() -> None:
    stage, rollout, going = Stage(make_config()), member("a"), member("b", service_id="rollout-1")
    clock = stage.clock
    stage.fleet.register(rollout)
    stage.fleet.register(going)
    stage.fleet.beat(service_id="rollout-1", incarnation="b", running=0, draining=True, now_s=clock.now())
    sweeping = asyncio.create_task(sweep_forever(stage.run))
    await asyncio.sleep(0)
    clock.skip(3600)
    for _ in range(10):
        await clock.advance(1)
    assert rollout.state is not State.LOST
    for _ in range(3):
        await clock.advance(1)
    assert rollout.state is State.LOST
    said = {event.message: event.kind for event in stage.run.events._kept if "rollout" in event.message}
    timeout_s = stage.run.config.coordinator.heartbeat_timeout_s
    assert said == {
        f"rollout-0: no heartbeat for {timeout_s:.0f} s": "service_lost",
        "rollout-1 has left": "service_left",
    }
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


def test_only_a_member_that_cannot_be_reached_is_lost_after_a_failed_call() -> None:
    fleet, first = Fleet(), member("a")
    fleet.register(first)
    assert not fleet.lose_if_unreachable(first, Expired("slow"), now_s=0.0)
    assert fleet.lose_if_unreachable(first, Unavailable("reset"), now_s=0.0)
    assert first.state is State.LOST
    assert not fleet.lose_if_unreachable(first, Unavailable("reset"), now_s=0.0), "only once"


def test_rewards_are_ready_when_they_register_and_rollouts_are_not() -> None:
    fleet = Fleet()
    fleet.register(member("a"))
    fleet.register(member("b", service_id="reward-0", role=Role.REWARD))
    assert not fleet.of(Role.ROLLOUT)
    assert [found.service_id for found in fleet.of(Role.REWARD)] == ["reward-0"]


async def test_a_group_wakes_no_weight_push_but_a_member_that_changes_its_state_does() -> None:
    fleet, rollout = Fleet(), member("a")
    fleet.register(rollout)
    waiting = asyncio.create_task(fleet.roster.wait())
    await asyncio.sleep(0)
    fleet.changed.notify()
    fleet.set_state(rollout, rollout.state)
    await asyncio.sleep(0)
    assert not waiting.done()
    fleet.set_state(rollout, State.READY)
    assert await waiting


def test_a_fleet_has_left_once_all_are_gone_and_the_learner_has_said_so() -> None:
    fleet, learner = Fleet(), member("l", service_id="learner", role=Role.LEARNER)
    assert not fleet.has_left, "nobody has come yet"
    for one in (member("a"), learner):
        fleet.register(one)
    fleet.lose(fleet.members["rollout-0"], "killed")
    fleet.lose(learner, "killed while it exported the model")
    assert not fleet.has_left
    fleet.set_state(learner, State.DRAINING)
    assert fleet.has_left


def test_a_learner_that_said_so_has_left_although_it_is_silent_since() -> None:
    fleet, learner = Fleet(), member("l", service_id="learner", role=Role.LEARNER)
    fleet.register(learner)
    fleet.beat(service_id="learner", incarnation="l", running=0, draining=True, now_s=0.0)
    assert fleet.sweep(now_s=60.0, timeout_s=10.0) == [learner]
    assert fleet.has_left


def test_who_has_asked_for_the_configuration_is_expected_until_it_comes_or_takes_too_long() -> None:
    fleet = Fleet()
    fleet.expect("rollout@ipv4:10.0.0.4", now_s=0.0)
    fleet.expect("learner@ipv4:10.0.0.5", now_s=10.0)
    fleet.has_come("learner@ipv4:10.0.0.5")
    assert fleet.expects(now_s=EXPECTED_S - 1)
    assert not fleet.expects(now_s=EXPECTED_S)
    fleet.expect("rollout@ipv4:10.0.0.4", now_s=EXPECTED_S)
    fleet.has_come("rollout@ipv4:10.0.0.4")
    assert not fleet.expects(now_s=EXPECTED_S)


def test_a_service_that_comes_and_goes_is_found_out_although_its_successors_are_faster_than_any_notice() -> None:
    told: list[str] = []
    fleet = Fleet(tell=lambda _, text: told.append(text))
    for number in range(4):
        fleet.register(member(f"life-{number}"))
    flapping = fleet.members["rollout-0"]
    assert flapping.pauses
    assert (flapping.state, [flapping.reason]) == (State.QUARANTINED, told)
    assert "3 of its last 3 answers failed, this one because its process ended without a word" in flapping.reason


def nameless(incarnation: str, *, address: str) -> Member:
    return dataclasses.replace(member(incarnation, service_id=""), address=address, gone=asyncio.Event())


def test_a_service_without_a_name_that_comes_and_goes_at_one_address_keeps_its_record() -> None:
    fleet = Fleet()
    for number in range(4):
        fleet.register(nameless(f"{number}-life", address="10.0.0.4:18051"))
    fleet.register(nameless("another", address="10.0.0.5:18051"))
    states = {found.service_id: found.state for found in fleet.members.values()}
    former = dict.fromkeys((f"rollout-{number}-life" for number in range(3)), State.LOST)
    assert states == former | {"rollout-3-life": State.QUARANTINED, "rollout-another": State.REGISTERED}
    assert all(fleet.members[name].gone.is_set() for name in former)


def test_a_service_without_a_name_that_was_lost_has_its_record_when_it_comes_again_at_its_address() -> None:
    fleet = Fleet()
    for number in range(3):
        fleet.register(nameless(f"{number}-life", address="10.0.0.4:18051"))
        fleet.lose_if_unreachable(fleet.members[f"rollout-{number}-life"], Unavailable("reset"), now_s=0.0)
    fleet.register(nameless("3-life", address="10.0.0.4:18051"))
    assert fleet.members["rollout-3-life"].pauses


def test_a_process_that_said_that_it_leaves_or_was_lost_before_is_not_blamed_for_its_end_again() -> None:
    fleet = Fleet()
    for number in range(6):
        fleet.register(member(f"life-{number}"))
        fleet.beat(service_id="rollout-0", incarnation=f"life-{number}", running=0, draining=True, now_s=0.0)
    assert fleet.members["rollout-0"].health.counts == (0, 0)
    fleet.set_state(fleet.members["rollout-0"], State.READY)
    fleet.members["rollout-0"].leaving = False
    fleet.sweep(now_s=11, timeout_s=10)
    fleet.register(member("another"))
    fleet.register(member("another"))
    assert fleet.members["rollout-0"].health.counts == (1, 1)


def test_a_service_that_was_lost_in_its_pause_comes_back_with_the_reason_of_the_pause() -> None:
    fleet = Fleet()
    for number in range(3):
        fleet.register(member(f"life-{number}"))
        fleet.lose_if_unreachable(fleet.members["rollout-0"], Unavailable("reset"), now_s=0.0)
    fleet.register(member("another"))
    assert fleet.members["rollout-0"].reason.startswith("no work for 5 s: 3 of its last 3")


def test_what_a_member_says_it_runs_is_believed_within_bounds() -> None:
    fleet = Fleet()
    fleet.register(member("a"))
    for said, believed in ((-5, 0), (7, 7), (2**31 - 1, 1 << 20)):
        assert fleet.beat(service_id="rollout-0", incarnation="a", running=said, draining=False, now_s=0.0)
        assert fleet.members["rollout-0"].running == believed
