"""How many samples run at once: up while the cache has room, down when samples are put back, within bounds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated.paged_engine import PagedEngine, Simulated
from services.rollout.concurrency import CUT, FIRST_SAMPLES, GROWTH, HIGH, LOW, Concurrency, handed_over

MOST = 200


def grown(limit: int) -> Concurrency:
    """A controller that has grown to `limit`."""
    concurrency = Concurrency(most=MOST)
    while concurrency.limit < limit:
        concurrency.after_step(use=LOW / 2, running=concurrency.limit, waiting=1, preemptions=0)
    concurrency.take_largest()
    return concurrency


def test_it_begins_with_a_group_and_grows_by_a_sample_every_other_step_while_the_cache_has_room() -> None:
    concurrency = Concurrency(most=MOST)
    assert concurrency.limit == FIRST_SAMPLES
    for _ in range(round(4 / GROWTH)):
        concurrency.after_step(use=0.1, running=concurrency.limit, waiting=1, preemptions=0)
    assert concurrency.limit == FIRST_SAMPLES + 4
    assert Concurrency(most=4).limit == 4


def test_it_does_not_grow_on_what_nobody_used() -> None:
    idle = grown(40)
    for running, waiting in (
        (40, 0),
        (20, 9),
        (0, 0),
    ):  # none waits; places are free; weights were changed, all starts anew
        for _ in range(100):
            assert idle.after_step(use=0.1, running=running, waiting=waiting, preemptions=0) == 40


def test_between_the_marks_one_that_ends_makes_room_for_one_and_above_for_none() -> None:
    concurrency = grown(40)
    assert concurrency.after_step(use=(LOW + HIGH) / 2, running=38, waiting=9, preemptions=0) == 40
    assert concurrency.after_step(use=HIGH, running=38, waiting=9, preemptions=0) == 38
    assert concurrency.after_step(use=1.0, running=0, waiting=1, preemptions=0) == 1


def test_samples_that_were_put_back_cut_it_once_a_step() -> None:
    concurrency = grown(50)
    assert concurrency.after_step(use=0.99, running=40, waiting=10, preemptions=7) == int(CUT * 40)
    assert concurrency.after_step(use=(LOW + HIGH) / 2, running=40, waiting=10, preemptions=7) == int(CUT * 40)


def test_at_least_one_sample_more_is_handed_over_than_runs_or_nothing_would_grow() -> None:
    assert all(limit < handed_over(limit) <= 2 * limit for limit in range(1, 1025))


def test_a_heartbeat_hears_the_largest_limit_since_the_one_before() -> None:
    concurrency = grown(40)
    concurrency.after_step(use=0.1, running=40, waiting=1, preemptions=0)
    concurrency.after_step(use=0.1, running=40, waiting=1, preemptions=0)
    concurrency.after_step(use=HIGH, running=30, waiting=1, preemptions=0)
    assert (concurrency.take_largest(), concurrency.take_largest()) == (41, 30)


steps = st.tuples(st.floats(0, 1), st.integers(0, 3 * MOST), st.integers(0, 9), st.integers(0, 3))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, MOST), st.lists(steps, max_size=60))
def test_it_keeps_its_bounds_moves_up_slowly_and_always_recovers(
    most: int, seen: list[tuple[float, int, int, int]]
) -> None:
    concurrency, preemptions = Concurrency(most=most), 0
    for use, running, waiting, lost in seen:
        before, preemptions = concurrency.limit, preemptions + lost
        limit = concurrency.after_step(use=use, running=running, waiting=waiting, preemptions=preemptions)
        assert 1 <= limit <= min(most, before + 1)
        assert limit >= int(CUT * min(before, running))
    for _ in range(round(most / GROWTH)):
        concurrency.after_step(use=0.0, running=concurrency.limit, waiting=1, preemptions=preemptions)
    assert concurrency.limit == most


def test_a_cache_too_small_by_4_is_used_without_thrash() -> None:
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(5.0, 0.7, 480)), 1, 800).astype(int).tolist()
    made, used = {}, []
    for fixed in (128, 32, None):
        engine, concurrency = PagedEngine(blocks=round(128 * 190 / 4 / 16), capacity=128), Concurrency(most=128)
        engine.limit = fixed or concurrency.limit
        for place, tokens in enumerate(lengths):
            engine.add(Simulated(group=place // 16, prompt_tokens=64, tokens=tokens, max_tokens=800))
        while engine.running or engine.waiting:
            engine.step()
            if fixed is None:
                engine.limit = concurrency.after_step(
                    use=engine.kv_use,
                    running=len(engine.running),
                    waiting=len(engine.waiting),
                    preemptions=engine.preemptions,
                )
                used.append(engine.kv_use)
        made[fixed] = (engine.preemptions, engine.now_s)
    assert made[None][0] < 0.2 * made[128][0]
    assert made[None][1] < 1.1 * min(seconds for _, seconds in made.values())
    steady = used[len(used) // 4 : -len(used) // 3]
    assert np.mean([use > 0.6 for use in steady]) > 0.95  # no swing empties the cache
