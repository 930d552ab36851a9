"""`data.sampler: difficulty`: draws the prompts whose groups are likely to have a signal, and forgets none.

A draw either takes the next prompt of the order (order.py), as `shuffle` does, or a row that was seen before. CANDIDATES rows
are drawn evenly from the data. For each that was seen, a pass rate is drawn from the row's posterior (fading_rates.py), and
with it the chance that n samples differ (Thompson sampling; Thompson 1933). The best wins. Rows that were not seen yet have
one candidate together, the next one of the order, so that new prompts come in their order. Every FLOOR_EVERY-th group takes
the next of the order whatever its chance: in FLOOR_EVERY x N admissions each of N prompts comes at least once.

A row rests after a draw: until its group has ended, and until a quarter as many groups as there are seen rows were admitted.

The choice is a cursor of three parts, `<data position>:<submitted position>:<row>`, which is durable with the admission. So
nobody has to draw again what was drawn, and the state here may be rebuilt without being exactly what it was. A draw costs the
same whatever the number of rows; the state is 61 bytes a row.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from services.coordinator.prompts.fading_rates import FadingRates
from services.coordinator.state.group import Group
from sluice.dapo.dynamic_sampling import SIGNAL_RANGE
from sluice.dapo.signal_chance import expected_signal_chance, signal_chance

CANDIDATES = 16
FLOOR_EVERY = 10
REST = 4
"""A row rests for a quarter of as many admissions as rows were seen."""
CALIBRATED_GROUPS = 1000
"""Groups behind the calibration error: the newest ones."""
BINS = 10
_DRAWS = 0xD1FF
"""Keeps the stream of random numbers apart from others of the same seed."""
_LONG_AGO = np.iinfo(np.int64).min // 2


class Rows(Protocol):
    """The data, by row and by position in the order (PromptStream)."""

    @property
    def size(self) -> int | None: ...
    def place(self, position: int) -> tuple[int, int]: ...
    def fits(self, row: int) -> bool: ...
    def features(self, row: int) -> tuple[str, int]: ...
    def id_of(self, row: int) -> str: ...


class Difficulty:
    """The draws of one run; a part of the coordinator's memory."""

    def __init__(self, rows: Rows, *, seed: int, n: int, is_submitted: Callable[[str], bool] = lambda _: False) -> None:
        """`n` samples make a group; `is_submitted` says whether a submitted prompt comes next, which nothing overtakes."""
        assert rows.size, "endless data have no prompt to draw again (Config.problems)"
        self._rows, self._seed, self._n, self._size = rows, seed, n, rows.size
        self._is_submitted = is_submitted
        self.rates = FadingRates(self._size, n)
        self._family = np.full(self._size, -1, np.int32)
        self._fits = np.zeros(self._size, np.int8)
        """1 for a row that became a prompt, -1 for one that cannot, 0 for one that nobody tried."""
        self._drawn_at = np.full(self._size, _LONG_AGO, np.int64)
        """The number of the newest group of each row."""
        self._open = Counter[int]()
        """Rows with groups that have not ended."""
        self._judged: deque[tuple[float, bool]] = deque(maxlen=CALIBRATED_GROUPS)

    @property
    def size(self) -> int:
        """Number of rows of the data."""
        return self._size

    def choose(self, cursor: str, *, admission: int, version: int) -> str:
        """The cursor of group `admission`'s prompt, where `cursor` is that of the next prompt of the order."""
        position, submitted = (int(part) for part in (cursor or "0:0").split(":"))
        seen = min(position, self._size)
        if admission % FLOOR_EVERY == 0 or not seen or self._is_submitted(cursor):
            return cursor
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, admission, _DRAWS])))
        rows = self._rested(random.integers(0, self._size, CANDIDATES), seen=seen, admission=admission)
        if not rows:
            return cursor
        chances = self._chances(rows, random, version)
        bar = self._chance_of_new(position, random, version) if seen < self._size else -1.0
        for place in np.argsort(-chances, kind="stable"):
            if chances[place] <= bar:
                break
            if self._is_a_prompt(rows[place]):
                return f"{position}:{submitted}:{rows[place]}"
        return cursor

    def admitted(self, row: int, *, admission: int, version: int) -> float:
        """Notes that group `admission` has the prompt of `row`; returns the expected chance that it will have a signal."""
        self._note(row, admission)
        self._fits[row] = 1
        right, wrong = self.rates.best.of_row(row, self._family_of(row), version=version)
        return expected_signal_chance(right, wrong, self._n)

    def ended(self, group: Group) -> None:
        """Takes the outcome of a group of the data that was graded, or that has failed."""
        admitted = group.admitted
        if admitted is None or admitted.epoch < 0 or admitted.row >= self._size:
            return
        self._open[admitted.row] -= 1
        if self._open[admitted.row] <= 0:
            del self._open[admitted.row]
        accs, version = [reward.acc for reward in group.rewards if reward.graded], group.oldest_version
        if not accs or version is None:
            return
        right = sum(min(1.0, max(0.0, acc)) for acc in accs)
        self._observe(admitted.row, right=right, samples=len(accs), version=version, chosen=admitted.chosen)
        if admitted.predicted >= 0:
            self._judged.append((admitted.predicted, max(accs) - min(accs) > SIGNAL_RANGE))

    def remember(self, row: Mapping[str, Any]) -> None:
        """Takes a group of the ledger, by its row (ledger_row.py); one of other data, or without facts, is left out."""
        epoch, place = (_number(row, name) for name in ("prompt_epoch", "prompt_row"))
        if epoch < 0 or not 0 <= place < self._size or row["prompt_id"] != self._rows.id_of(place):
            return
        self._drawn_at[place] = max(self._drawn_at[place], row["admission"])
        samples, version = _number(row, "samples"), _number(row, "oldest_version")
        rate = row.get("acc_mean")
        if rate is not None and 0 <= rate <= 1 and samples > 0 and version >= 0:
            chosen = bool(row.get("chosen"))
            self._observe(place, right=rate * samples, samples=samples, version=version, chosen=chosen)

    def reopened(self, group: Group) -> None:
        """Takes a group that was open when the coordinator ended."""
        if group.admitted is not None and 0 <= group.admitted.row < self._size and group.admitted.epoch >= 0:
            self._note(group.admitted.row, group.admission)

    def metrics(self, cursor: str) -> dict[str, float]:
        """The catalogue's metrics of the draws, where `cursor` is that of the next prompt of the order."""
        values = {"sampling/coverage": min(1.0, int((cursor or "0").split(":")[0]) / self._size)}
        if self._judged:
            values["sampling/calibration_error"] = calibration_error(self._judged)
        return values

    def _rested(self, places: np.ndarray, *, seen: int, admission: int) -> list[int]:
        """The rows at those of `places` in the first pass that were seen and may come again."""
        rows = {self._rows.place(int(place))[1] for place in places if place < seen}
        drawn_before = admission - seen // REST
        return sorted(
            row for row in rows if self._drawn_at[row] < drawn_before and row not in self._open and self._fits[row] >= 0
        )

    def _chances(self, rows: list[int], random: np.random.Generator, version: int) -> np.ndarray:
        """[K] float64: for each row the chance of a signal at a pass rate drawn from the row's posterior."""
        families = np.array([self._family_of(row) for row in rows])
        right, wrong = self.rates.best.posterior(np.array(rows), families, version=version)
        return signal_chance(random.beta(right, wrong), self._n)

    def _chance_of_new(self, position: int, random: np.random.Generator, version: int) -> float:
        right, wrong = self.rates.best.prior(self._family_of(self._rows.place(position)[1]), version=version)
        return float(signal_chance(random.beta(right, wrong, 1), self._n)[0])

    def _is_a_prompt(self, row: int) -> bool:
        if self._fits[row] == 0:
            self._fits[row] = 1 if self._rows.fits(row) else -1
        return self._fits[row] > 0

    def _note(self, row: int, admission: int) -> None:
        self._drawn_at[row] = max(self._drawn_at[row], admission)
        self._open[row] += 1

    def _observe(self, row: int, *, right: float, samples: int, version: int, chosen: bool) -> None:
        family = self._family_of(row)
        self.rates.observe(row, family=family, right=right, samples=samples, version=version, chosen=chosen)

    def _family_of(self, row: int) -> int:
        if self._family[row] < 0:
            self._family[row] = self.rates.family(*self._rows.features(row))
        return int(self._family[row])


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
