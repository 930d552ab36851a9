"""The rollouts' KV caches since the last commit: written by heartbeats, read by the commit."""

import math
from dataclasses import dataclass

from services.coordinator.state.member import Member

_MOST_PREEMPTIONS = 1 << 53
"""A count above is no count: a float64, in which metrics are kept, would not hold it."""


@dataclass(slots=True)
class CacheUse:
    """What all rollouts reported since the last commit."""

    _most: float | None = None
    _preemptions: int | None = None

    def add(self, member: Member, *, kv_use: float | None, preemptions: int) -> None:
        """Takes a heartbeat of a rollout: `preemptions` counts from its start. Figures that cannot be are not taken."""
        if kv_use is None or not math.isfinite(kv_use) or not 0 <= kv_use <= 1:
            return
        self._most = max(self._most or 0.0, kv_use)
        before, total = member.preemptions, min(max(preemptions, 0), _MOST_PREEMPTIONS)
        # The first heartbeat that this coordinator hears may count what lies before the step.
        self._preemptions = (self._preemptions or 0) + (0 if before is None else max(0, total - before))
        member.preemptions = total

    def clear(self) -> None:
        """Begins anew after a commit."""
        self._most = self._preemptions = None

    def metrics(self) -> dict[str, float]:
        """The fullest cache and all preemptions; empty without a report."""
        if self._most is None or self._preemptions is None:
            return {}
        return {"rollout/kv_use": self._most, "rollout/preemptions": float(self._preemptions)}
