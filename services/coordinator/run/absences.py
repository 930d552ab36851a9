"""How long roles have been without a usable service, as far as this process was looking. Pure: time comes from the clock.

A role's time begins when the role is first seen to be missing, and anew whenever it was there again. Time without looks does
not count: a coordinator that was stopped, or whose machine slept, could not see who came.
"""

from collections.abc import Collection
from typing import Final

from sluice.clock import Clock

LONGEST_GAP_S: Final = 5.0
"""The most time between two looks that counts. Chosen: looks come every second, and later on a busy machine."""


class Absences:
    """The times of one wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._looked_s = clock, clock.now()
        self._missing_s: dict[str, float] = {}

    def look(self, missing: Collection[str], *, limit_s: float) -> list[str]:
        """Notes the roles that are missing now; returns those that have been missing for longer than `limit_s`."""
        now_s = self._clock.now()
        passed_s, self._looked_s = min(now_s - self._looked_s, LONGEST_GAP_S), now_s
        self._missing_s = {
            role: self._missing_s[role] + passed_s if role in self._missing_s else 0.0 for role in missing
        }
        return [role for role, missing_s in self._missing_s.items() if missing_s > limit_s]
