"""Sums over trained tokens that become a step's `loss/*` metrics: on the device, reduced over ranks once an update."""

import torch
from torch import Tensor

from services.learner.packing import Packed
from services.learner.ranks import Ranks
from sluice.dapo.loss import TokenLoss

_SUMS = ("tokens", "loss", "entropy", "high", "low", "dual", "ratio")


class Tally:
    """What one or several updates saw."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._ratio_max = torch.zeros(1, device=device)

    def add(self, packed: Packed, token: TokenLoss, entropies: Tensor) -> None:
        """Counts one micro-batch: every target is a trained token."""
        values = (token.loss.detach() * packed.weights, entropies)
        masks = (token.clipped_high, token.clipped_low, token.clipped_dual)
        self._sums[0] += len(packed.targets)
        self._sums[1:] += torch.stack([part.sum(dtype=torch.float64) for part in (*values, *masks, token.ratio)])
        if len(packed.targets):
            self._ratio_max = torch.maximum(self._ratio_max, token.ratio.max())

    def reduce(self, ranks: Ranks) -> None:
        """Adds up over ranks; afterwards every rank holds the same."""
        ranks.add_up(self._sums)
        ranks.largest(self._ratio_max)

    def merge(self, other: "Tally") -> None:
        """Counts another update's reduced tally."""
        self._sums += other._sums
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
            "loss/ratio_mean": per_token["ratio"],
            "loss/ratio_max": float(self._ratio_max),
        }
