"""How many of the groups without a verdict will be kept: a bound from recent verdicts. Pure: no clock, no randomness.

Verdicts are coins of one unknown chance. Older verdicts count less, because the chance moves with the policy. The number kept
among m groups is beta-binomial then (Johnson, Kemp and Kotz, Univariate Discrete Distributions, 6.2.2); its quantile is taken
from the normal distribution of the same mean and variance, which takes constant time and is off by a group or two.
"""

import math
from statistics import NormalDist
from typing import Final, Self

from sluice.config.schema import Config

BATCHES_REMEMBERED: Final = 8
"""Batches of verdicts after which a verdict counts 1/e. Chosen: some steps, in which acceptance moves by a few points."""

FEWEST_REMEMBERED: Final = 64
"""The same for small batches, in verdicts: 64 coins tell a chance to 6 points."""


class Acceptance:
    """The share of groups that are kept, and what it says of groups whose verdicts are still to come."""

    def __init__(self, *, confidence: float, train_batch_size: int) -> None:
        """`confidence` in (0, 1): the chance that `most_kept` is not exceeded."""
        self._margin = NormalDist().inv_cdf(confidence)
        self._stays = 1.0 - 1.0 / max(FEWEST_REMEMBERED, BATCHES_REMEMBERED * train_batch_size)
        self._kept, self._judged = 1.0, 1.0
        """One kept group before any verdict: without evidence every group counts as kept."""

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """None where no group starts ahead of a verdict."""
        confidence = config.coordinator.refill_confidence
        if confidence == 1.0:
            return None
        return cls(confidence=confidence, train_batch_size=config.data.train_batch_size)

    def judged(self, *, kept: bool) -> None:
        """Takes a verdict."""
        self._kept = self._kept * self._stays + kept
        self._judged = self._judged * self._stays + 1.0

    def most_kept(self, groups: int) -> int:
        """How many of `groups` groups without a verdict are kept at most, with this object's confidence; 0 to `groups`."""
        share = self._kept / self._judged
        spread = groups * share * (1.0 - share) * (self._judged + groups) / (self._judged + 1.0)
        bound = groups * share + self._margin * math.sqrt(max(0.0, spread))
        return max(0, min(groups, math.floor(bound + 0.5)))
