"""Calls of a service that may be away: jittered backoff within a sample's deadline, and a circuit breaker an endpoint.

    closed -> `open_after` failures in a row -> open: calls are refused unasked -> after a pause one call probes
       ^------------------------- it is answered -----------------------------------'  (failed: a longer pause)

What passes by itself ends as `Busy`: back-pressure, which costs its group no attempt. A breaker belongs to a process and
is shared by its concurrent calls, on one event loop at a time; the others of a group wait for the probe.
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
"""Between two probes, however often they failed; a Retry-After may ask for more."""

LONGEST_RETRY_AFTER_S: Final = 300.0
"""What a server may ask for."""

_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 4.0
# Kept from the deadline, so that the call's own limit strikes first and says why; and the shortest call worth making.
_MARGIN_S = 0.2
_SHORTEST_CALL_S = 0.3


class Away(Exception):
    """A call that failed for a reason that passes by itself; `retry_after_s` is the server's own word, 0 without."""

    def __init__(self, why: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = min(max(retry_after_s, 0.0), LONGEST_RETRY_AFTER_S)


class Breaker:
    """Of one endpoint."""

    def __init__(self, *, open_after: int, pause_s: float, clock: Clock, chance: random.Random) -> None:
        self._open_after, self._pause_s = open_after, pause_s
        self._clock, self._chance = clock, chance
        self._failures = 0
        """In a row."""
        self._openings = 0
        """In a row."""
        self._until_s: float | None = None
        """Until when no call goes; None while it is closed."""
        self._probe: asyncio.Future[None] | None = None
        self._why = ""

    @property
    def closed(self) -> bool:
        """Whether calls go out."""
        return self._until_s is None

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Around one call, whose Away, TimeoutError or cancellation is a failure. Raises Busy when none may go."""
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
        except Exception:
            self._answered()  # refused for good, by somebody who is there
            raise
        else:
            self._answered()
        finally:
            if probe is not None:
                self._probe = None
                probe.set_result(None)

    def hold(self, seconds: float, why: str) -> None:
        """Opens it for at least that long."""
        self._until_s, self._why = max(self._until_s or 0.0, self._clock.now() + seconds), why

    def _answered(self) -> None:
        self._failures = self._openings = 0
        self._until_s = None

    def _failed(self, why: str, *, probing: bool) -> None:
        """Calls that were under way when it opened fail into an open breaker: they do not make its pause longer."""
        if not self.closed and not probing:
            return
        self._failures += 1
        if self._failures >= self._open_after:
            longest_s = max(self._pause_s, LONGEST_PAUSE_S)
            pause_s = min(self._pause_s * 2**self._openings, longest_s) * self._chance.uniform(0.5, 1.0)
            self._openings = min(self._openings + 1, 10)
            self.hold(pause_s, f"{why} ({self._failures} failures in a row)")


async def patiently(
    ask: Callable[[float], Awaitable[T]],
    *,
    breaker: Breaker,
    limit_s: float,
    deadline_s: float,
    clock: Clock,
    chance: random.Random,
) -> T:
    """The answer of `ask(limit in s)`, asked again after Away and TimeoutError while `deadline_s` (monotonic) permits.

    Raises:
        Busy: it is away, or answers no call at all in time.
        TimeoutError: this call alone took too long.
        Exception: what `ask` raises else, at once.
    """
    backoff_s = _FIRST_BACKOFF_S
    while True:
        try:
            async with breaker.attempt():
                return await ask(max(min(limit_s, deadline_s - clock.now() - _MARGIN_S), 0.0))
        except (Away, TimeoutError) as error:
            failure = error
        asked_s = failure.retry_after_s if isinstance(failure, Away) else 0.0
        # Never earlier than the server asks for; without its word anywhere in the second half of the backoff.
        wait_s = asked_s * chance.uniform(1.0, 1.25) if asked_s else backoff_s * chance.uniform(0.5, 1.0)
        if not breaker.closed or clock.now() + wait_s + _MARGIN_S + _SHORTEST_CALL_S > deadline_s:
            if asked_s:
                breaker.hold(wait_s, str(failure))
            if isinstance(failure, Away) or not breaker.closed:
                raise Busy(str(failure)) from failure
            raise failure
        await clock.sleep(wait_s)
        backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
