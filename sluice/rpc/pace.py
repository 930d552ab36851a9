"""A token bucket a caller: so many calls a second, and a burst of a few seconds' worth."""

from collections import OrderedDict
from dataclasses import dataclass, field

from sluice.clock import Clock

MAX_CALLERS = 4096
"""How many of the latest callers are remembered; a forgotten caller starts with a full bucket."""


@dataclass(kw_only=True, slots=True)
class Pace:
    """The buckets of all callers. Not thread-safe: used by one event loop."""

    clock: Clock
    calls_per_s: float
    burst_s: float = 2.0
    """The burst that a silent caller may take at once, in seconds of the caller's rate."""
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    """By caller: calls left, and the time of that count."""

    def take(self, caller: str) -> float:
        """Takes one call and returns 0.0; for an empty bucket takes nothing and returns the seconds until the next call."""
        now, full = self.clock.now(), max(1.0, self.calls_per_s * self.burst_s)
        left, counted = self._buckets.pop(caller, (full, now))
        left = min(full, left + (now - counted) * self.calls_per_s)
        wait_s = 0.0 if left >= 1.0 else (1.0 - left) / self.calls_per_s
        self._buckets[caller] = (left - 1.0 if not wait_s else left, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return wait_s
