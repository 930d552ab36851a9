"""Warns when too many recent samples could not be graded: such samples cost their groups, and so bias what is trained."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

import structlog

from services.reward.scoring import Reward

log = structlog.get_logger(__name__)

WINDOW: Final = 1000
"""Samples in the window of recent samples."""
LEAST: Final = 100
"""Samples before the first warning: one slow import is no rate."""


class GradingAlarm:
    """Logs `samples_not_graded` when timeouts or errors reach a share of the window; then logs nothing for a window."""

    def __init__(self, *, fraction: float) -> None:
        self._fraction = fraction
        self._window: deque[str] = deque(maxlen=WINDOW)
        self._silent_samples = LEAST

    def note(self, rewards: Sequence[Reward]) -> None:
        """Takes in the results of one group."""
        self._window.extend(reward.status for reward in rewards)
        self._silent_samples -= len(rewards)
        if self._silent_samples > 0:
            return
        seen, counts = len(self._window), Counter(self._window)
        late = {status: counts[status] / seen for status in ("timeout", "error")}
        if max(late.values()) < self._fraction:
            return
        self._silent_samples = WINDOW
        log.warning(
            "samples_not_graded",
            timeout_fraction=round(late["timeout"], 4),
            error_fraction=round(late["error"], 4),
            samples=seen,
            limit=self._fraction,
            newest=next((reward.detail for reward in reversed(rewards) if reward.detail), ""),
            fix="their groups are graded again, then dropped, never zeroed: see `detail` of a sample (GetGroup); timeouts "
            "that are honest work want a higher reward.timeout_s",
        )
