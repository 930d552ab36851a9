"""Sums over trained tokens for a step's `loss/*` metrics: kept on the device, reduced over ranks once an update."""

import math

import torch
from torch import Tensor

from services.learner.distributed.ranks import Ranks
from services.learner.training.objective import LossStats

_SUMS = ("tokens", "loss", "entropy", "high", "low", "dual", "ratio", "truncated", "masked")

_LOG_RATIO_RANGE = 3.0
_LOG_RATIO_BINS = 6000
"""Bins of 0.1 % between e^-3 and e^3, in which ratios are counted (the outer bins take ratios beyond): quantiles of ratios
without gathering tokens."""


class Tally:
    """Sums over the tokens of one or several updates."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._log_ratios = torch.zeros(_LOG_RATIO_BINS, dtype=torch.float64, device=device)
        self._ratio_max = torch.zeros(1, device=device)

    def add(self, stats: LossStats, entropies: Tensor) -> None:
        """Counts one micro-batch: every target is a trained token. entropies: [M] nats."""
        masks = (stats.clipped_high, stats.clipped_low, stats.clipped_dual)
        parts = (stats.loss, entropies, *masks, stats.ratio, stats.truncated, stats.masked)
        self._sums[0] += len(stats.loss)
        self._sums[1:] += torch.stack([part.sum(dtype=torch.float64) for part in parts])
        if len(stats.ratio):
            edge = _LOG_RATIO_RANGE
            self._log_ratios += torch.histc(stats.ratio.log().clamp(-edge, edge), _LOG_RATIO_BINS, -edge, edge)
            self._ratio_max = torch.maximum(self._ratio_max, stats.ratio.max())

    def reduce(self, ranks: Ranks) -> None:
        """Adds up over ranks; afterwards every rank holds the same sums."""
        ranks.add_up(self._sums)
        ranks.add_up(self._log_ratios)
        ranks.largest(self._ratio_max)

    def merge(self, other: "Tally") -> None:
        """Counts another update's reduced tally."""
        self._sums += other._sums
        self._log_ratios += other._log_ratios
        self._ratio_max = torch.maximum(self._ratio_max, other._ratio_max)

    @property
    def loss(self) -> float:
        """Sum of the updates' losses."""
        return float(self._sums[1])

    @property
    def tokens(self) -> int:
        """Trained completion tokens."""
        return int(self._sums[0])

    def metrics(self, *, updates: int) -> dict[str, float]:
        """`loss/*` by catalogue name; empty when nothing was trained."""
        if not self.tokens:
            return {}
        sums = dict(zip(_SUMS, self._sums.tolist(), strict=True))
        per_token = {name: value / sums["tokens"] for name, value in sums.items()}
        return {
            "loss/policy": sums["loss"] / updates,
            "loss/entropy_nats": per_token["entropy"],
            "loss/clip_fraction_high": per_token["high"],
            "loss/clip_fraction_low": per_token["low"],
            "loss/clip_fraction_dual": per_token["dual"],
            "loss/is_truncated_fraction": per_token["truncated"],
            "loss/rs_masked_fraction": per_token["masked"],
            "loss/ratio_mean": per_token["ratio"],
            "loss/ratio_p50": self._ratio_quantile(0.5),
            "loss/ratio_p99": self._ratio_quantile(0.99),
            "loss/ratio_max": float(self._ratio_max),
        }

    def _ratio_quantile(self, share: float) -> float:
        """The middle of the bin in which `share` of all tokens is reached."""
        reached = self._log_ratios.cumsum(0)
        index = int(torch.searchsorted(reached, share * reached[-1]).clamp(max=_LOG_RATIO_BINS - 1))
        width = 2 * _LOG_RATIO_RANGE / _LOG_RATIO_BINS
        return math.exp((index + 0.5) * width - _LOG_RATIO_RANGE)
