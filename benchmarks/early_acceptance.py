"""What it would save to look at the first k of n samples of a group, and to give up groups in which they are all alike.

Exact sums, no run: a group of prompt p has a signal with probability s_n(p) = 1 - p^n - (1 - p)^n. A probe of k keeps it with
s_k(p), and every group that it keeps has a signal. So a kept group costs n / E[s_n] samples without a probe and
k / E[s_k] + n - k with one. The price: of the groups with a signal the share E[s_k] / E[s_n] is left, and fewest of hard and
of easy prompts: for p = .1 it is s_k(.1) / s_n(.1). ADR 0018 has what follows from the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report import Row
from sluice.dapo.signal_chance import expected_signal_chance

HARD = 0.1
"""The pass rate of a hard prompt that still teaches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """Prompts as they are drawn: a share whose pass rates are Beta(a, b); the others never have a signal."""

    name: str
    teaching: float
    a: float
    b: float

    def chance(self, n: int) -> float:
        """E[s_n]."""
        return self.teaching * expected_signal_chance(self.a, self.b, n)


POPULATIONS = (
    Population(name="shuffle, a third teaches", teaching=1 / 3, a=1.0, b=1.0),
    Population(name="shuffle, all alike", teaching=1.0, a=1.0, b=1.0),
    Population(name="difficulty", teaching=0.85, a=2.0, b=2.0),
)
GROUPS = ((8, 2), (8, 4), (16, 4), (16, 8))


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a probe of k of n samples does to a population."""

    acceptance: float
    """Of groups without a probe."""
    cost: float
    """Samples for a kept group, with the probe / without."""
    kept: float
    """Of the groups with a signal, how many the probe keeps."""
    kept_hard: float
    """The same for a prompt of pass rate HARD."""


def probe(population: Population, *, n: int, k: int) -> Probe:
    """The exact figures, for 2 <= k < n: a probe of one is always alike."""
    if not 2 <= k < n:
        raise ValueError(f"probe: k must be from 2 to n - 1 = {n - 1}, got {k}")
    whole, part = population.chance(n), population.chance(k)
    return Probe(
        acceptance=whole,
        cost=(k / part + n - k) / (n / whole),
        kept=part / whole,
        kept_hard=_signal(HARD, k) / _signal(HARD, n),
    )


def run(populations: Sequence[Population] = POPULATIONS) -> list[Row]:
    """A table for every population and size of group."""
    rows: list[Row] = []
    for population in populations:
        for n, k in GROUPS:
            found = probe(population, n=n, k=k)
            figures = (
                ("acceptance without a probe", found.acceptance),
                ("samples a kept group, probe / none", found.cost),
                ("groups with a signal that are kept", found.kept),
                (f"the same at a pass rate of {HARD}", found.kept_hard),
            )
            rows += [
                Row(what=f"{population.name}, {k} of {n}: {name}", value=value, unit="", target="", met=True)
                for name, value in figures
            ]
    return rows


def _signal(rate: float, n: int) -> float:
    return 1.0 - rate**n - (1.0 - rate) ** n
