"""The plan of a seed: the same each time, and over a round of seeds everybody is killed and frozen."""

import pytest

from tests.chaos.liar import KINDS
from tests.chaos.plan import (
    EPISODE_ROTATION,
    LAUNCHED,
    LIAR,
    ROTATION,
    Deed,
    Lie,
    Moment,
    Plan,
    Victim,
    make_episode_plan,
    make_plan,
)

STEPS = 24


def hits(plans: list[Plan]) -> set[tuple[Victim, Deed]]:
    return {(hit.victim, hit.deed) for plan in plans for strike in plan.strikes for hit in strike.hits}


def test_a_seed_says_everything() -> None:
    assert make_plan(5, steps=STEPS) == make_plan(5, steps=STEPS)
    assert len({str(make_plan(seed, steps=STEPS)) for seed in range(50)}) == 50


@pytest.mark.parametrize("first", [0, 3, 1000])
def test_twelve_seeds_in_a_row_do_each_deed_to_each_victim(first: int) -> None:
    plans = [make_plan(seed, steps=STEPS) for seed in range(first, first + 12)]
    assert hits(plans) == set(ROTATION) == {(victim, deed) for victim in LAUNCHED for deed in Deed}


def test_strikes_come_in_order_up_to_the_last_step_and_hit_one_or_two() -> None:
    plans = [make_plan(seed, steps=STEPS) for seed in range(200)]
    sizes, latest = set(), 0
    for plan in plans:
        steps = [strike.after_step for strike in plan.strikes]
        assert steps == sorted(set(steps))
        assert steps[0] >= 1
        latest = max(latest, steps[-1])
        for strike in plan.strikes:
            sizes.add(len(strike.hits))
            assert len({hit.victim for hit in strike.hits}) == len(strike.hits)
            assert all((hit.thaw_after_s is not None) == (hit.deed is Deed.FREEZE) for hit in strike.hits)
    assert sizes == {1, 2}
    assert latest == STEPS


def test_a_plan_reads_as_a_sentence() -> None:
    assert str(make_plan(0, steps=STEPS)).startswith("seed 0: after step ")
    assert "rollout killed" in str(make_plan(0, steps=STEPS))


def test_liars_are_two_a_run_and_nine_seeds_in_a_row_have_each_lie_with_and_without_boasting() -> None:
    plans = [make_plan(seed, steps=STEPS, liars=True) for seed in range(9)]
    assert {plan.liars[0].lie for plan in plans} == set(Lie) == set(KINDS)
    assert {liar.boasts for plan in plans for liar in plan.liars} == {True, False}
    assert all([liar.service_id for liar in plan.liars] == [f"{LIAR}0", f"{LIAR}1"] for plan in plans)
    assert "liar-0 is rollout-nonsense" in str(plans[0])


def test_a_run_is_struck_in_the_same_way_with_liars_and_without() -> None:
    for seed in range(20):
        assert make_plan(seed, steps=STEPS, liars=True).strikes == make_plan(seed, steps=STEPS).strikes


@pytest.mark.parametrize("first", [0, 2, 100])
def test_three_seeds_in_a_row_strike_at_everything_that_episodes_depend_on(first: int) -> None:
    plans = [make_episode_plan(seed, steps=18) for seed in range(first, first + 3)]
    struck = [(hit.victim, hit.deed, strike.moment) for p in plans for strike in p.strikes for hit in strike.hits]
    assert set(struck) == set(EPISODE_ROTATION)
    assert (Victim.ROLLOUT, Deed.KILL, Moment.THIRD_TURN) in struck
    assert all(1 <= strike.after_step < 18 for plan in plans for strike in plan.strikes)
    assert make_episode_plan(0, steps=18) == make_episode_plan(0, steps=18)
    assert "in a third turn: rollout killed" in str(make_episode_plan(0, steps=18))
