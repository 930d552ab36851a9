"""Pass rates with the half-life that has told outcomes best: prompts are learnt fast in one run and slowly in another. Pure.

For each of HALF_LIVES the rates are kept side by side. Before an outcome is taken, each is asked how likely the outcome was;
the one with the smallest loss over the newest groups is believed (prequential model choice; Dawid 1984).
"""

import math

from services.coordinator.prompts.pass_rates import PassRates

HALF_LIVES = (8.0, 2.0, 32.0, 128.0)
"""In versions; the first one is believed while nothing speaks for another."""
LOSS_GROUPS = 200.0
"""Groups over which losses are summed, about: their weight falls to 1/e."""


class FadingRates:
    """The posterior of every row; 48 bytes a row."""

    def __init__(self, rows: int, n: int) -> None:
        """`n` samples make a group."""
        self._rates = [PassRates(rows, n, half_life) for half_life in HALF_LIVES]
        self._losses = [0.0] * len(HALF_LIVES)

    @property
    def best(self) -> PassRates:
        """The rates that are believed."""
        return self._rates[min(range(len(HALF_LIVES)), key=self._losses.__getitem__)]

    def family(self, source: str, characters: int) -> int:
        """The number of the family of a prompt; the same for every half-life."""
        numbers = [rates.family(source, characters) for rates in self._rates]
        return numbers[0]

    def observe(self, row: int, *, family: int, right: float, samples: int, version: int, chosen: bool) -> None:
        """Adds an outcome, as `PassRates.observe` does."""
        for place, rates in enumerate(self._rates):
            a, b = rates.of_row(row, family, version=version)
            loss = -_log_chance(a, b, right, samples - right)
            self._losses[place] = self._losses[place] * (1 - 1 / LOSS_GROUPS) + loss
            rates.observe(row, family=family, right=right, samples=samples, version=version, chosen=chosen)


def _log_chance(a: float, b: float, right: float, wrong: float) -> float:
    """log B(a + right, b + wrong) / B(a, b): a beta-binomial outcome, up to what is the same for every a and b."""
    return _log_beta(a + right, b + wrong) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
