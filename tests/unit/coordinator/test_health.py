"""The record of a service: when failures cost it a pause, how long, and what makes up for them."""

import pytest

from services.coordinator.state.health import FEWEST_FAILURES, FIRST_PAUSE_S, KEPT, LONGEST_PAUSE_S, Health


def fail(health: Health, times: int, *, now_s: float = 0.0) -> list[float | None]:
    return [health.fail(now_s=now_s) for _ in range(times)]


def test_three_failures_in_a_row_are_a_pause_and_further_ones_change_nothing() -> None:
    assert fail(Health(), 5) == [None, None, FIRST_PAUSE_S, None, None]


def test_a_member_that_answers_more_than_it_fails_gets_no_pause() -> None:
    health = Health()
    for _ in range(100):
        health.succeed()
        health.succeed()
        assert health.fail(now_s=0.0) is None


def test_a_member_of_which_every_other_answer_fails_gets_a_pause() -> None:
    health, pauses = Health(), []
    for _ in range(4):
        health.succeed()
        pauses.append(health.fail(now_s=0.0))
    assert FIRST_PAUSE_S in pauses


def test_after_a_pause_one_failure_is_enough_and_the_next_pause_is_twice_as_long() -> None:
    health, now_s = Health(), 0.0
    fail(health, FEWEST_FAILURES)
    lengths = []
    for _ in range(8):
        assert health.until_s is not None
        assert not health.end_pause(now_s=health.until_s - 0.001)
        now_s = health.until_s
        assert health.end_pause(now_s=now_s)
        lengths += fail(health, 1, now_s=now_s)
    assert lengths == [min(FIRST_PAUSE_S * 2**power, LONGEST_PAUSE_S) for power in range(1, 9)]


def test_good_answers_make_up_for_former_pauses() -> None:
    health = Health()
    fail(health, FEWEST_FAILURES)
    health.end_pause(now_s=FIRST_PAUSE_S)
    for _ in range(KEPT):
        health.succeed()
    assert fail(health, KEPT // 2)[-1] == FIRST_PAUSE_S, "as for a member that never failed"


@pytest.mark.parametrize("longest_s", [1.0, 7.0])
def test_the_longest_pause_can_be_made_shorter(longest_s: float) -> None:
    health = Health()
    fail(health, FEWEST_FAILURES - 1)
    assert health.fail(now_s=0.0, longest_pause_s=longest_s) == min(longest_s, FIRST_PAUSE_S)


def test_a_member_is_on_trial_from_the_end_of_its_pause_to_its_next_good_answer() -> None:
    health = Health()
    fail(health, FEWEST_FAILURES)
    assert (health.on_trial, health.answers) == (False, False)
    health.end_pause(now_s=FIRST_PAUSE_S)
    assert (health.on_trial, health.answers) == (True, False)
    health.succeed()
    assert (health.on_trial, health.answers) == (False, True)
