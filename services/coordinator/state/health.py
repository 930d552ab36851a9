"""How well a member answers: its last attempts, and the pauses that failures cost. Pure: time comes in as an argument.

A member whose answers fail would win nearly every placement, because it is never busy. So a member with FEWEST_FAILURES or
more among its last attempts, and no fewer failures than successes, gets no work for a pause; the next pause is twice as
long, up to LONGEST_PAUSE_S, until the member has answered well for KEPT attempts. After a pause the member is on trial until
it has answered well: it gets one piece of work at a time, and one failure is enough for the next pause. So a member whose
answers only come too late holds little work up, however much room it has.
"""

from collections import deque
from typing import Final

KEPT: Final = 16
"""Attempts that are remembered."""
FEWEST_FAILURES: Final = 3
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 120.0


class Health:
    """The record of one service, which outlives the service's processes."""

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=KEPT)
        self._pauses = 0
        self.until_s: float | None = None
        """The end of the present pause; None outside pauses."""
        self.why = ""
        """Why the newest pause began, for people."""
        self.on_trial = False
        """Whether no attempt has ended well since the newest pause."""

    def succeed(self) -> None:
        """Counts an attempt that ended well."""
        self._failed.append(False)
        self.on_trial = False
        if len(self._failed) == KEPT and not any(self._failed):
            self._pauses = 0

    def fail(self, *, now_s: float, longest_pause_s: float = LONGEST_PAUSE_S) -> float | None:
        """Counts a failed attempt; returns the length of the pause that begins with it, None without a pause."""
        if self.until_s is not None:
            return None  # an attempt that was under way when the pause began
        self._failed.append(True)
        failures = sum(self._failed)
        if failures < FEWEST_FAILURES or 2 * failures < len(self._failed):
            return None
        pause_s = min(FIRST_PAUSE_S * 2**self._pauses, LONGEST_PAUSE_S, longest_pause_s)
        self._pauses += 1
        self.until_s = now_s + pause_s
        return pause_s

    def end_pause(self, *, now_s: float) -> bool:
        """Ends a pause whose time is over; False where there is no such pause."""
        if self.until_s is None or now_s < self.until_s:
            return False
        self.until_s, self.on_trial = None, True
        self._failed.clear()
        self._failed.extend([True] * (FEWEST_FAILURES - 1))
        return True

    @property
    def answers(self) -> bool:
        """Whether one of the last attempts ended well."""
        return not all(self._failed)

    @property
    def counts(self) -> tuple[int, int]:
        """Failures among the last attempts, and the number of these attempts."""
        return sum(self._failed), len(self._failed)
