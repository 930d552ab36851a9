"""How likely a prompt's next group has a signal, by what its former groups came to. Pure.

Each row of the data is in one of STATES: never seen; its newest groups all wrong, or all right, for one, two or three groups
and more; or mixed, with a low, middle or high share of right samples. A group whose samples all have the same part of a point
has no signal, and counts as all wrong or all right, whichever is nearer. For each state it is counted how often a row in it
had a signal the next time, over the newest RECENT groups. So nothing is assumed of how fast pass rates change: where
hopeless prompts stay hopeless and solved ones are forgotten within ten versions, the counts say both. A state with few groups
leans on the mean of all states. Rows share what is known by their state, across data sources.

Letters: N rows of the data.
"""

import numpy as np

STREAK = 3
"""Groups in a row without a signal, from which on more make no difference."""
LOW, HIGH = 0.4, 0.8
"""Shares of right samples between which a mixed group is neither hard nor easy."""
UNSEEN, WRONG, RIGHT, MIXED = 0, 1, 1 + STREAK, 1 + 2 * STREAK
"""The first state of each kind."""
STATES = MIXED + 3
RECENT = 300.0
"""Groups over which is counted: the weight of a group falls to 1/e. Chosen: some ten steps of the demo."""
LEAN = 4.0
"""Groups that the mean of all states weighs in that of a state, and one half in the mean of all."""


class OutcomeStates:
    """States of all rows, a byte a row, and what became of rows in each state."""

    def __init__(self, rows: int) -> None:
        self._state = np.zeros(rows, np.int8)
        """[N]"""
        self._groups = np.zeros(STATES)
        """[STATES] float64: weighed groups of rows that were in this state."""
        self._signals = np.zeros(STATES)
        """[STATES] float64: those of them that had a signal."""

    def observe(self, row: int, *, right: float, signal: bool) -> None:
        """Adds a group: `right` from 0 to 1 is the mean of its samples' accuracy, `signal` whether they differ in it."""
        state, keep = int(self._state[row]), 1 - 1 / RECENT
        self._groups *= keep
        self._signals *= keep
        self._groups[state] += 1
        self._signals[state] += signal
        self._state[row] = _after(state, right, signal)

    def chances(self, rows: list[int]) -> list[float]:
        """For each row the chance that its next group has a signal."""
        mean = (self._signals.sum() + LEAN / 2) / (self._groups.sum() + LEAN)
        table = (self._signals + LEAN * mean) / (self._groups + LEAN)
        return table[self._state[rows]].tolist()


def _after(state: int, right: float, signal: bool) -> int:
    """The state of a row that was in `state`, after a group with this share of right samples."""
    if signal:
        return MIXED + (right >= LOW) + (right >= HIGH)
    first = WRONG if right < 0.5 else RIGHT
    return min(state + 1, first + STREAK - 1) if first <= state < first + STREAK else first
