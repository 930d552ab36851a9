"""What a run knows of each prompt's pass rate: a Beta distribution a row, from the outcomes of the row's groups. Pure.

A row's own outcomes lose weight with the age of the policy that made them: half of it every half-life, in versions. What is
missing comes from the row's *family*: the rows of one data source whose prompts are about as long (`length_band`). A family's
prior is fitted by moments: the mean, which leans on the source's, and how far its groups' pass rates lie apart, beyond what n
draws of one rate would: where prompts are either known or hopeless, one outcome says more than where all are alike. Only
groups whose prompt came in its order tell of a family, because those that were chosen are not like the others.

How fast pass rates change is the policy's business (fading_rates.py chooses the half-life). Sums of decayed outcomes do not
depend on their order, so that a restarted coordinator that reads them from the ledger knows what its predecessor knew.

Letters: N rows of the data, K of them.
"""

import math
from dataclasses import dataclass, field

import numpy as np

PRIOR_SAMPLES = 2.0
"""How many samples a family's mean weighs in a row's Beta before anything is known: uniform at a mean of one half."""
LEAST_SAMPLES, MOST_SAMPLES = 0.25, 16.0
"""Bounds of that weight when it is fitted."""
PRIOR_GROUPS = 4.0
"""How many groups the source's mean weighs in a family's, one half in a source's, and PRIOR_SAMPLES in the fitted weight."""
MOST_FAMILIES = 4096
"""Families with a mean of their own; the rows of later ones share one. Bounds memory where every row names its own source."""
NEVER = np.iinfo(np.int32).min // 2


def length_band(characters: int) -> int:
    """The band of a prompt's length; a band is a factor of the square root of two wide."""
    return round(2 * math.log2(max(1, characters)))


@dataclass(slots=True)
class _Moments:
    """Decayed sums over groups, as of the newest version among them."""

    half_life: float
    groups: float = 0.0
    rates: float = 0.0
    squares: float = 0.0
    """Of the rates."""
    version: int = NEVER

    def add(self, rate: float, version: int) -> None:
        """Adds the pass rate of one group that `version` sampled."""
        if version > self.version:
            self.groups, self.rates, self.squares = self.at(version)
            self.version = version
        weight = _weight(self.version - version, self.half_life)
        self.groups += weight
        self.rates += weight * rate
        self.squares += weight * rate * rate

    def at(self, version: int) -> tuple[float, float, float]:
        """The sums as they weigh at `version`."""
        weight = _weight(version - self.version, self.half_life)
        return weight * self.groups, weight * self.rates, weight * self.squares

    def mean(self, version: int, *, towards: float) -> float:
        """The mean at `version`, where `towards` weighs PRIOR_GROUPS groups."""
        groups, rates, _ = self.at(version)
        return (rates + PRIOR_GROUPS * towards) / (groups + PRIOR_GROUPS)


@dataclass(slots=True)
class PassRates:
    """The posterior of every row; 12 bytes a row."""

    rows: int
    n: int
    """Samples of a group."""
    half_life: float
    """Versions after which an outcome weighs half."""
    _right: np.ndarray = field(init=False)
    _wrong: np.ndarray = field(init=False)
    """[N] float32 each: decayed samples at version `_version`."""
    _version: np.ndarray = field(init=False)
    """[N] int32: the newest version whose outcome a row has; NEVER without one."""
    _families: dict[tuple[str, int], int] = field(default_factory=dict)
    _sources: list[str] = field(default_factory=list)
    """The source of each family."""
    _moments: list[_Moments] = field(default_factory=list)
    _source_moments: dict[str, _Moments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._right = np.zeros(self.rows, np.float32)
        self._wrong = np.zeros(self.rows, np.float32)
        self._version = np.full(self.rows, NEVER, np.int32)

    def family(self, source: str, characters: int) -> int:
        """The number of the family of a prompt."""
        key = (source, length_band(characters))
        known = self._families.get(key)
        if known is None and len(self._families) >= MOST_FAMILIES:
            key = ("", 0)
            known = self._families.get(key)
        if known is None:
            known = self._families[key] = len(self._sources)
            self._sources.append(key[0])
            self._moments.append(_Moments(self.half_life))
            self._source_moments.setdefault(key[0], _Moments(self.half_life))
        return known

    def observe(self, row: int, *, family: int, right: float, samples: int, version: int, chosen: bool) -> None:
        """Adds the outcome of a group: `right` of `samples` > 0, sampled by `version`; `chosen` for a row drawn again."""
        known = int(self._version[row])
        newest = max(known, version)
        old, new = (_weight(newest - one, self.half_life) for one in (known, version))
        self._right[row] = self._right[row] * old + right * new
        self._wrong[row] = self._wrong[row] * old + (samples - right) * new
        self._version[row] = newest
        if not chosen:
            self._moments[family].add(right / samples, version)
            self._source_moments[self._sources[family]].add(right / samples, version)

    def prior(self, family: int, *, version: int) -> tuple[float, float]:
        """The Beta of a row without outcomes. Both are > 0, because one half always has a weight in the mean."""
        source = self._source_moments[self._sources[family]].mean(version, towards=0.5)
        mean = self._moments[family].mean(version, towards=source)
        samples = self._prior_samples(self._moments[family], mean, version)
        return samples * mean, samples * (1.0 - mean)

    def posterior(self, rows: np.ndarray, families: np.ndarray, *, version: int) -> tuple[np.ndarray, np.ndarray]:
        """The Beta of each row at policy version `version`: two [K] float64, both > 0, for [K] rows with their families."""
        kinds, kind = np.unique(families, return_inverse=True)
        priors = np.array([self.prior(int(family), version=version) for family in kinds])[kind]
        ages = np.maximum(0, version - self._version[rows].astype(np.int64))
        weights = 0.5 ** (ages / self.half_life)
        return priors[:, 0] + weights * self._right[rows], priors[:, 1] + weights * self._wrong[rows]

    def of_row(self, row: int, family: int, *, version: int) -> tuple[float, float]:
        """The `posterior` of one row, for a tenth of the time."""
        right, wrong = self.prior(family, version=version)
        weight = _weight(version - int(self._version[row]), self.half_life)
        return right + weight * float(self._right[row]), wrong + weight * float(self._wrong[row])

    def _prior_samples(self, moments: _Moments, mean: float, version: int) -> float:
        """The weight s of the mean m by which the groups' pass rates lie as far apart as they do.

        A pass rate p ~ Beta(s m, s (1 - m)) and k ~ Binomial(n, p) give Var(k / n) = m (1 - m) (1 + (n - 1) r) / n with
        r = 1 / (s + 1) (Griffiths 1973; the correlation of a beta-binomial).
        """
        if self.n < 2:
            return PRIOR_SAMPLES
        groups, rates, squares = moments.at(version)
        apart = max(0.0, squares - rates * rates / groups) if groups > 0 else 0.0
        expected = (1 + (self.n - 1) / (PRIOR_SAMPLES + 1)) / self.n
        ratio = (apart / (mean * (1.0 - mean)) + PRIOR_GROUPS * expected) / (groups + PRIOR_GROUPS)
        correlation = (self.n * ratio - 1) / (self.n - 1)
        return min(MOST_SAMPLES, max(LEAST_SAMPLES, 1 / correlation - 1)) if correlation > 0 else MOST_SAMPLES


def _weight(age: int, half_life: float) -> float:
    """What an outcome of this age in versions weighs; one of a version that a rollback gave up weighs like a new one."""
    return 0.5 ** min(max(0, age) / half_life, 64.0)
