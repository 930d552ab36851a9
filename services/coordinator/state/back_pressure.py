"""Waits out back-pressure: a member that answers RESOURCE_EXHAUSTED is asked again after a pause that grows."""

import random
from typing import Final

from sluice.clock import Clock
from sluice.errors import Overloaded

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 15.0


class Patience:
    """The pauses of one piece of work, from its first refusal on."""

    def __init__(self, clock: Clock, *, limit_s: float, setting: str) -> None:
        """`setting` names the key that gives `limit_s`."""
        self._clock, self._limit_s, self._setting = clock, limit_s, setting
        self._since_s, self._pause_s = float("inf"), FIRST_PAUSE_S

    def refused(self, error: Overloaded) -> float:
        """Takes a refusal; returns the seconds waited so far. Raises Overloaded when the next pause would be past the limit."""
        self._since_s = min(self._since_s, self._clock.now())
        waited_s = self._clock.now() - self._since_s
        if waited_s + self._pause_s > self._limit_s:
            raise Overloaded(f"{error}; for {waited_s:.0f} s ({self._setting} is {self._limit_s:g})") from error
        return waited_s

    async def pause(self) -> None:
        """The next pause, jittered."""
        await self._clock.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
