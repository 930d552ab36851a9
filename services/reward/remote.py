"""Calls of a service that may be away: jittered backoff within a sample's deadline, and a circuit breaker an endpoint.

    closed -> `open_after` failures in a row -> open: no call is made -> after a pause one call probes
       ^-------------------- the probe is answered ----------------------------'  (a failed probe: a longer pause)

A failure that passes by itself ends as `Busy`: back-pressure, which costs the group no attempt. A refusal, or an answer
that is none, may be the fault of its one question. When different questions get such answers in a row, without a good
answer between them, the server is at fault, and the breaker opens too. A breaker belongs to a process and is shared by
the process's concurrent calls, on one event loop at a time; a group's other calls wait for the probe.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from services.reward.ports import Busy
from sluice.clock import Clock

T = TypeVar("T")

LONGEST_PAUSE_S: Final = 60.0
"""The longest pause between two probes, however often probes failed; a Retry-After may ask for more."""

LONGEST_RETRY_AFTER_S: Final = 300.0
"""The longest Retry-After that is honoured."""

REFUSED_QUESTIONS: Final = 2
"""How many different questions must be refused in a row for the server to be at fault."""

_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 4.0
# The margin before the deadline, so that the call's own limit strikes first and says why; the shortest call worth making.
_MARGIN_S = 0.2
_SHORTEST_CALL_S = 0.3


class Away(Exception):
    """A call that failed for a reason that passes by itself; `retry_after_s` is the server's Retry-After, or 0."""

    def __init__(self, why: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = min(max(retry_after_s, 0.0), LONGEST_RETRY_AFTER_S)


class Breaker:
    """The circuit breaker of one endpoint."""

    def __init__(self, *, open_after: int, pause_s: float, clock: Clock, chance: random.Random) -> None:
        self._open_after, self._pause_s = open_after, pause_s
        self._clock, self._chance = clock, chance
        self._failures = 0
        """Failures in a row."""
        self._openings = 0
        """Openings in a row."""
        self._refused: set[str] = set()
        """Questions that were refused since the last good answer."""
        self._until_s: float | None = None
        """The time until which no call is made; None while the breaker is closed."""
        self._probe: asyncio.Future[None] | None = None
        self._why = ""

    @property
    def closed(self) -> bool:
        """Whether calls are made."""
        return self._until_s is None

    @asynccontextmanager
    async def attempt(self, question: str) -> AsyncIterator[None]:
        """Wraps one call; Away, TimeoutError or cancellation count as a failure, another error as a refusal of the question.

        Raises Busy when no call may be made.
        """
        while self._probe is not None:
            await asyncio.wait((self._probe,))
        if self._until_s is not None and self._until_s > self._clock.now():
            raise Busy(f"{self._why}; asked again in {self._until_s - self._clock.now():.1f} s")
        probe = None if self.closed else asyncio.get_running_loop().create_future()
        self._probe = probe
        try:
            yield
        except (Away, TimeoutError, asyncio.CancelledError) as error:
            self._failed(str(error) or "the call took too long", probing=probe is not None)
            raise
        except Exception as error:
            self._is_refused(question, str(error), probing=probe is not None)
            raise
        else:
            self._answered()
        finally:
            if probe is not None:
                self._probe = None
                probe.set_result(None)

    def hold(self, seconds: float, why: str) -> None:
        """Opens the breaker for at least `seconds`."""
        self._until_s, self._why = max(self._until_s or 0.0, self._clock.now() + seconds), why

    def _answered(self) -> None:
        self._failures = self._openings = 0
        self._until_s = None
        self._refused.clear()

    def _is_refused(self, question: str, why: str, *, probing: bool) -> None:
        """Counts a refusal, which comes from a server that is there."""
        if not self.closed and not probing:
            return
        self._failures, self._until_s = 0, None
        self._refused.add(question)
        if len(self._refused) >= REFUSED_QUESTIONS:
            self._open(f"{why} ({len(self._refused)} different questions in a row)")

    def _failed(self, why: str, *, probing: bool) -> None:
        """Counts a failure. A call that was under way when the breaker opened does not make the pause longer."""
        if not self.closed and not probing:
            return
        self._failures += 1
        if self._failures >= self._open_after:
            self._open(f"{why} ({self._failures} failures in a row)")

    def _open(self, why: str) -> None:
        """Opens the breaker, for longer each time."""
        longest_s = max(self._pause_s, LONGEST_PAUSE_S)
        pause_s = min(self._pause_s * 2**self._openings, longest_s) * self._chance.uniform(0.5, 1.0)
        self._openings = min(self._openings + 1, 10)
        self.hold(pause_s, why)


async def patiently(
    ask: Callable[[float], Awaitable[T]],
    *,
    question: str,
    breaker: Breaker,
    limit_s: float,
    deadline_s: float,
    clock: Clock,
    chance: random.Random,
) -> T:
    """The answer of `ask(limit in s)`, asked again after Away and TimeoutError while `deadline_s` (monotonic) permits.

    `question` is the same for calls that may fail for the same reason of their own: those of one group.

    Raises:
        Busy: the server is away, answers no call at all in time, or refuses different questions.
        TimeoutError: this call alone took too long.
        Exception: every other error of `ask`, at once.
    """
    backoff_s = _FIRST_BACKOFF_S
    while True:
        try:
            async with breaker.attempt(question):
                return await ask(max(min(limit_s, deadline_s - clock.now() - _MARGIN_S), 0.0))
        except (Away, TimeoutError) as error:
            failure = error
        except Exception as error:
            if isinstance(error, Busy) or breaker.closed:
                raise
            raise Busy(str(error)) from error
        asked_s = failure.retry_after_s if isinstance(failure, Away) else 0.0
        # Never earlier than the server's Retry-After; without a Retry-After anywhere in the second half of the backoff.
        wait_s = asked_s * chance.uniform(1.0, 1.25) if asked_s else backoff_s * chance.uniform(0.5, 1.0)
        if not breaker.closed or clock.now() + wait_s + _MARGIN_S + _SHORTEST_CALL_S > deadline_s:
            if asked_s:
                breaker.hold(wait_s, str(failure))
            if isinstance(failure, Away) or not breaker.closed:
                raise Busy(str(failure)) from failure
            raise failure
        await clock.sleep(wait_s)
        backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
