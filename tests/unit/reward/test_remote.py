"""The breaker and the backoff of remote graders, on a clock that stands still: every wait is worked out by hand."""

import asyncio
import random

import pytest

from services.reward.ports import Busy
from services.reward.remote import Away, Breaker, patiently
from sluice.testing.manual_clock import ManualClock


class Longest(random.Random):
    """Draws the upper end."""

    def uniform(self, a, b):
        return b


class Judge:
    """Fails while it has failures left; `asked` are the times of the calls."""

    def __init__(self, clock, *failures, forever=None):
        self.clock, self.failures, self.forever, self.asked = clock, list(failures), forever, []

    async def __call__(self, limit_s):
        self.asked.append(self.clock.now())
        failure = self.failures.pop(0) if self.failures else self.forever
        if failure is not None:
            raise failure
        return limit_s


def made(clock, *, open_after=3, pause_s=5.0):
    return Breaker(open_after=open_after, pause_s=pause_s, clock=clock, chance=Longest())


async def ask(judge, breaker, *, within_s=10.0, step_s=0.25, question="1 + 1"):
    """What comes of one call while the clock runs."""
    clock = judge.clock
    call = asyncio.create_task(
        patiently(
            judge,
            question=question,
            breaker=breaker,
            limit_s=8.0,
            deadline_s=clock.now() + within_s,
            clock=clock,
            chance=Longest(),
        )
    )
    await asyncio.sleep(0)
    while not call.done():
        await clock.advance(step_s)
    return await call


async def test_a_call_that_fails_is_made_again_after_longer_and_longer_waits():
    clock = ManualClock()
    judge = Judge(clock, Away("gone"), Away("gone"), TimeoutError("slow"))
    assert await ask(judge, made(clock, open_after=9)) == 8.0
    assert judge.asked == [0.0, 0.25, 0.75, 1.75]


async def test_a_call_has_the_time_that_its_deadline_leaves():
    clock = ManualClock()
    assert await ask(Judge(clock), made(clock), within_s=2.0) == pytest.approx(1.8)


async def test_the_servers_own_word_goes_before_the_backoff():
    clock = ManualClock()
    judge = Judge(clock, Away("HTTP 429", retry_after_s=4.0))
    await ask(judge, made(clock))
    assert judge.asked == [0.0, 5.0]


async def test_a_server_that_asks_for_more_time_than_there_is_is_left_alone_until_then():
    clock = ManualClock()
    judge, breaker = Judge(clock, Away("HTTP 429", retry_after_s=40.0)), made(clock)
    for _ in range(2):
        with pytest.raises(Busy, match="HTTP 429"):
            await ask(judge, breaker)
    await clock.advance(50.0)
    await ask(judge, breaker)
    assert judge.asked == [0.0, 50.0]


async def test_failures_in_a_row_open_it_and_one_probe_a_pause_goes_out():
    clock = ManualClock()
    judge, breaker = Judge(clock, forever=Away("gone")), made(clock)
    with pytest.raises(Busy, match="gone"):
        await ask(judge, breaker)
    assert judge.asked == [0.0, 0.25, 0.75]
    for pause_s in (5.0, 10.0, 20.0, 40.0, 60.0, 60.0):
        opened_s = judge.asked[-1]
        await clock.advance(opened_s + pause_s - 0.01 - clock.now())
        with pytest.raises(Busy, match=r"failures in a row\); asked again in 0.0 s"):
            await ask(judge, breaker)
        assert judge.asked[-1] == opened_s
        await clock.advance(0.01)
        with pytest.raises(Busy):
            await ask(judge, breaker)
        assert judge.asked[-1] == pytest.approx(opened_s + pause_s)


async def test_an_answer_closes_it_and_failures_count_from_one_again():
    clock = ManualClock()
    breaker = made(clock)
    with pytest.raises(Busy):
        await ask(Judge(clock, forever=Away("gone")), breaker)
    await clock.advance(5.0)
    await ask(Judge(clock), breaker)
    assert breaker.closed
    await ask(Judge(clock, Away("gone"), Away("gone")), breaker)
    assert breaker.closed


async def test_others_wait_for_the_probe_and_go_when_it_is_answered():
    clock = ManualClock()
    breaker = made(clock, open_after=1)
    with pytest.raises(Busy):
        await ask(Judge(clock, forever=Away("gone")), breaker)
    await clock.advance(5.0)
    answered, asked = asyncio.Event(), []

    async def judge(limit_s):
        asked.append(limit_s)
        await answered.wait()

    async def call():
        await patiently(judge, question="", breaker=breaker, limit_s=8, deadline_s=99.0, clock=clock, chance=Longest())

    calls = [asyncio.create_task(call()) for _ in range(4)]
    await clock.advance(0.0)
    assert len(asked) == 1
    answered.set()
    await asyncio.gather(*calls)
    assert len(asked) == 4


async def test_a_probe_that_is_cancelled_lets_others_find_out():
    clock = ManualClock()
    breaker = made(clock, open_after=1)
    with pytest.raises(Busy):
        await ask(Judge(clock, forever=Away("gone")), breaker)
    await clock.advance(5.0)

    async def never(limit_s):
        await asyncio.Event().wait()

    probe = asyncio.create_task(
        patiently(never, question="", breaker=breaker, limit_s=8, deadline_s=99.0, clock=clock, chance=Longest())
    )
    await clock.advance(0.0)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    with pytest.raises(Busy):
        await ask(Judge(clock), breaker)
    await clock.advance(10.0)
    await ask(Judge(clock), breaker)


async def test_one_slow_call_is_late_and_only_a_judge_that_answers_nobody_is_busy():
    clock = ManualClock()
    with pytest.raises(TimeoutError, match="slow"):
        await ask(Judge(clock, forever=TimeoutError("slow")), made(clock, open_after=99), within_s=0.6)
    with pytest.raises(Busy, match="slow"):
        await ask(Judge(clock, forever=TimeoutError("slow")), made(clock, open_after=1), within_s=0.6)


async def test_what_is_refused_for_good_is_not_asked_again():
    clock = ManualClock()
    judge = Judge(clock, forever=RuntimeError("HTTP 401"))
    with pytest.raises(RuntimeError, match="HTTP 401"):
        await ask(judge, made(clock))
    assert judge.asked == [0.0]


async def test_a_refusal_comes_from_somebody_who_is_there():
    clock = ManualClock()
    breaker = made(clock)
    with pytest.raises(RuntimeError):
        await ask(Judge(clock, Away("gone"), Away("gone"), RuntimeError("HTTP 401")), breaker)
    await ask(Judge(clock, Away("gone"), Away("gone")), breaker)
    assert breaker.closed


NONSENSE = RuntimeError("no score in the reply")


async def test_one_question_that_is_refused_again_and_again_holds_up_no_other():
    clock = ManualClock()
    breaker = made(clock)
    for _ in range(20):
        with pytest.raises(RuntimeError, match="no score"):
            await ask(Judge(clock, forever=NONSENSE), breaker)
    assert breaker.closed


async def test_a_server_that_refuses_different_questions_is_away_until_it_gives_a_good_answer():
    clock = ManualClock()
    breaker, judge = made(clock), Judge(clock, forever=NONSENSE)
    with pytest.raises(RuntimeError, match="no score"):
        await ask(judge, breaker, question="1 + 1")
    with pytest.raises(Busy, match="no score"):
        await ask(judge, breaker, question="2 + 2")
    for pause_s in (5.0, 10.0, 20.0):
        with pytest.raises(Busy, match=r"2 different questions in a row\); asked again"):
            await ask(judge, breaker)
        await clock.advance(pause_s)
        with pytest.raises(Busy, match="no score"):
            await ask(judge, breaker, question="1 + 1")
    assert len(judge.asked) == 5
    await clock.advance(40.0)
    assert await ask(Judge(clock), breaker) == 8.0
    assert breaker.closed
    with pytest.raises(RuntimeError):
        await ask(judge, breaker, question="3 + 3")
    assert breaker.closed, "questions count from one again"


async def test_good_answers_between_refusals_keep_it_closed():
    clock = ManualClock()
    breaker = made(clock)
    for number in range(10):
        with pytest.raises(RuntimeError):
            await ask(Judge(clock, forever=NONSENSE), breaker, question=f"{number}")
        await ask(Judge(clock), breaker)
    assert breaker.closed
