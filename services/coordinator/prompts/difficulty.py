"""`data.sampler: difficulty`: the order of prompts (order.py), in which prompts that hardly can have a signal are passed over.

The first pass through the data takes every prompt, as `shuffle` does. From then on a draw looks at the next WINDOW rows
of the order. The draw takes the first row whose chance of a signal (outcome_states.py) is at least LEAST of the mean of
the WINDOW; the rows before it are passed over until the next pass. Each row has one pass of PASSES in which it is taken
whatever its chance (`in_turn`). So prompts come as evenly as in the order, none comes twice in a pass (but after a
Redis that forgot choices), and each has come at least once in PASSES passes, which are at most PASSES x N groups.

The choice is the position in the order, which is durable with the admission. Nothing is random, and what is known is rebuilt
from the ledger. A draw costs the same whatever the number of rows; the state is two bytes a row.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from services.coordinator.prompts.outcome_states import OutcomeStates
from services.coordinator.state.group import Group
from sluice.dapo.dynamic_sampling import SIGNAL_RANGE

WINDOW = 32
LEAST = 0.75
"""Chosen on ledgers of `shuffle` (docs/lab-notes.md): .5 passes over half of the rows out of reach, .9 half of all rows."""
PASSES = 10
CALIBRATED_GROUPS = 1000
"""Groups behind the calibration error: the newest ones."""
BINS = 10
_SCATTER = 0x9E3779B1
"""An odd number near 2**32 over the golden ratio: rows that lie at a fixed distance do not have their turn together."""


class Rows(Protocol):
    """The data, by row and by position in the order (PromptStream)."""

    @property
    def size(self) -> int | None: ...
    def place(self, position: int) -> tuple[int, int]: ...
    def fits(self, row: int) -> bool: ...
    def id_of(self, row: int) -> str: ...


class Difficulty:
    """The draws of one run; a part of the coordinator's memory."""

    def __init__(self, rows: Rows, *, is_submitted: Callable[[str], bool] = lambda _: False) -> None:
        """`is_submitted` says whether a submitted prompt comes next, which nothing overtakes."""
        assert rows.size, "endless data have no prompt to draw again (Config.problems)"
        self._rows, self._size = rows, rows.size
        self._is_submitted = is_submitted
        self.states = OutcomeStates(self._size)
        self._fits = np.zeros(self._size, np.int8)
        """1 for a row that became a prompt, -1 for one that cannot, 0 for one that nobody tried."""
        self._open = Counter[int]()
        """Rows with groups that have not ended."""
        self._judged: deque[tuple[float, bool]] = deque(maxlen=CALIBRATED_GROUPS)

    def in_turn(self, epoch: int, row: int) -> bool:
        """Whether a row is taken in this pass whatever its chance: in the first one, and in one of PASSES."""
        return epoch == 0 or ((row * _SCATTER >> 16) + epoch) % PASSES == 0

    def choose(self, cursor: str) -> str:
        """The cursor of the next group's prompt: `cursor`, that of the next prompt of the order, or one further on."""
        position, submitted = (int(part) for part in (cursor or "0:0").split(":"))
        if position < self._size or self._is_submitted(cursor):
            return cursor
        places = [self._rows.place(position + ahead) for ahead in range(WINDOW)]
        chances = self.states.chances([row for _, row in places])
        least = LEAST * sum(chances) / WINDOW
        for ahead, ((epoch, row), chance) in enumerate(zip(places, chances, strict=True)):
            wanted = chance >= least and row not in self._open
            if (wanted or self.in_turn(epoch, row)) and self._is_a_prompt(row):
                return f"{position + ahead}:{submitted}"
        return cursor

    def admitted(self, row: int) -> float:
        """Notes that a group has the prompt of `row`; returns the expected chance that it will have a signal."""
        self._open[row] += 1
        self._fits[row] = 1
        return self.states.chances([row])[0]

    def ended(self, group: Group) -> None:
        """Takes the outcome of a group of the data that was graded, or that has failed."""
        admitted = group.admitted
        if admitted is None or admitted.epoch < 0 or admitted.row >= self._size:
            return
        self._open[admitted.row] -= 1
        if self._open[admitted.row] <= 0:
            del self._open[admitted.row]
        accs = [reward.acc for reward in group.rewards if reward.graded]
        if not accs:
            return
        signal = max(accs) - min(accs) > SIGNAL_RANGE
        self.states.observe(admitted.row, right=sum(accs) / len(accs), signal=signal)
        if admitted.predicted >= 0:
            self._judged.append((admitted.predicted, signal))

    def remember(self, row: Mapping[str, Any]) -> None:
        """Takes a group of the ledger, by its row (ledger_row.py); one of other data, or without facts, is left out."""
        epoch, place = (_number(row, name) for name in ("prompt_epoch", "prompt_row"))
        if epoch < 0 or not 0 <= place < self._size or row["prompt_id"] != self._rows.id_of(place):
            return
        right = row.get("acc_mean")
        if right is not None and 0 <= right <= 1:  # -1 stands for a group that was not graded
            signal = 0 < right < 1 and not (row.get("term") or "").startswith("filtered_")
            self.states.observe(place, right=right, signal=signal)

    def reopened(self, group: Group) -> None:
        """Takes a group that was open when the coordinator ended."""
        if group.admitted is not None and 0 <= group.admitted.row < self._size and group.admitted.epoch >= 0:
            self._open[group.admitted.row] += 1

    def metrics(self, cursor: str) -> dict[str, float]:
        """The catalogue's metrics of the draws, where `cursor` is that of the next prompt of the order."""
        values = {"sampling/coverage": min(1.0, int((cursor or "0").split(":")[0]) / self._size)}
        if self._judged:
            values["sampling/calibration_error"] = calibration_error(self._judged)
        return values

    def _is_a_prompt(self, row: int) -> bool:
        if self._fits[row] == 0:
            self._fits[row] = 1 if self._rows.fits(row) else -1
        return self._fits[row] > 0


def _number(row: Mapping[str, Any], name: str) -> int:
    """A whole number of a row; -1 where an older version of Sluice did not write it."""
    value = row.get(name)
    return -1 if value is None else int(value)


def calibration(judged: Sequence[tuple[float, bool]]) -> list[tuple[int, float, float]]:
    """The curve: for each of BINS equal bins of the predicted chance, groups, mean prediction, share with a signal."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for predicted, signal in judged:
        bins.setdefault(min(BINS - 1, int(predicted * BINS)), []).append((predicted, signal))
    return [
        (len(some), sum(one for one, _ in some) / len(some), sum(signal for _, signal in some) / len(some))
        for _, some in sorted(bins.items())
    ]


def calibration_error(judged: Sequence[tuple[float, bool]]) -> float:
    """The mean distance of the curve from the diagonal, weighted by groups (Naeini et al. 2015, expected calibration error)."""
    return sum(groups * abs(seen - predicted) for groups, predicted, seen in calibration(judged)) / len(judged)
