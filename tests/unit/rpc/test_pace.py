"""So many calls a second and caller, by a clock that stands still."""

from sluice.rpc.pace import MAX_CALLERS, Pace
from sluice.testing import ManualClock


def pace(clock: ManualClock, *, calls_per_s: float = 10.0) -> Pace:
    return Pace(clock=clock, calls_per_s=calls_per_s, burst_s=1.0)


def test_a_burst_is_taken_then_the_wait_is_that_for_one_call() -> None:
    paced = pace(ManualClock())
    assert [paced.take("a") for _ in range(10)] == [0.0] * 10
    assert paced.take("a") == 0.1


def test_asking_too_early_costs_nothing_and_time_gives_calls_back() -> None:
    clock = ManualClock()
    paced = pace(clock)
    for _ in range(50):
        paced.take("a")
    clock.skip(0.25)
    assert [paced.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_a_long_silence_gives_no_more_than_one_burst() -> None:
    clock = ManualClock()
    paced = pace(clock)
    paced.take("a")
    clock.skip(3600.0)
    assert sum(paced.take("a") == 0.0 for _ in range(100)) == 10


def test_callers_do_not_use_up_each_others_calls() -> None:
    paced = pace(ManualClock())
    for _ in range(50):
        paced.take("loud")
    assert paced.take("quiet") == 0.0


def test_a_rate_below_one_a_second_still_lets_one_through() -> None:
    paced = pace(ManualClock(), calls_per_s=0.1)
    assert paced.take("a") == 0.0
    assert paced.take("a") == 10.0


def test_callers_without_number_take_bounded_memory() -> None:
    paced = pace(ManualClock())
    for number in range(3 * MAX_CALLERS):
        paced.take(str(number))
    assert len(paced._buckets) == MAX_CALLERS
