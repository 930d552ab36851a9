"""The groups with a row in the ledger's files that Redis has forgotten: a bit a group, however many there are.

Only what a repair asks of them is kept: 1e7 groups are 1.25 MB.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from services.coordinator.state.group import admission_of


class EndedGroups:
    """Groups of one run by id, and the steps that trained some of them."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._groups, self._steps = _Numbers(), _Numbers()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds ended groups, by their rows."""
        rows = list(rows)
        self._groups.add([row["admission"] for row in rows])
        self._steps.add({row["step"] for row in rows if row["term"] == "trained"})

    def __contains__(self, group_id: object) -> bool:
        number = admission_of(str(group_id), run_id=self._run_id)
        return number is not None and number in self._groups

    @property
    def newest(self) -> int:
        """The largest number of a group; -1 without a group."""
        return self._groups.largest

    def trained_in(self, step: int) -> bool:
        """Whether a group was trained in this step."""
        return step in self._steps


class _Numbers:
    """A set of numbers from 0 on, a bit each."""

    def __init__(self) -> None:
        self._bits = np.zeros(1024, np.uint8)
        self.largest = -1

    def add(self, numbers: Collection[int]) -> None:
        """Adds them."""
        if not numbers:
            return
        added = np.fromiter(numbers, np.int64, len(numbers))
        self.largest = max(self.largest, int(added.max()))
        if self.largest // 8 >= len(self._bits):
            self._bits = np.concatenate([self._bits, np.zeros(self.largest // 8 + 1, np.uint8)])
        np.bitwise_or.at(self._bits, added >> 3, (1 << (added & 7)).astype(np.uint8))

    def __contains__(self, number: int) -> bool:
        return 0 <= number <= self.largest and bool(self._bits[number >> 3] >> (number & 7) & 1)
