"""From log-probabilities of one micro-batch to a part of the loss: ratio, corrections, clip and weights, as configured.

`Packed.weights` holds the denominators already; the objective sums. `sluice.dapo.loss` and `sluice.dapo.correction` have
the losses and the corrections.

Letters: M targets of the micro-batch, C targets of one chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.learner.policy.packing import Packed
from sluice.config.schema import AlgorithmConfig
from sluice.dapo.correction import Level, broadcast_log_ratio, importance_weights, rejection_mask
from sluice.dapo.loss import TokenLoss, cispo_token_loss, dapo_token_loss, gspo_token_loss, log_ratios


@dataclass(frozen=True, kw_only=True, slots=True)
class LossStats:
    """What the loss did to the tokens of one micro-batch; all [M], without gradient."""

    loss: Tensor
    """float32, weighted token losses: the sum is the micro-batch's part of the loss."""
    ratio: Tensor
    """float32, learner / proximal."""
    clipped_high: Tensor
    """bool, as in `TokenLoss`; masked tokens are not counted."""
    clipped_low: Tensor
    clipped_dual: Tensor
    truncated: Tensor
    """bool: the token's importance weight was truncated."""
    masked: Tensor
    """bool: `rollout_rs` masks the token."""


class Objective:
    """The loss of one micro-batch, computed chunk by chunk; keeps the figures for the tally."""

    def __init__(
        self,
        algorithm: AlgorithmConfig,
        packed: Packed,
        proximal_logprobs: Tensor | None,
        *,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """proximal_logprobs: float32[M] nats under the step's first weights; None with `proximal: rollout`.

        add_up: takes sums over the tokens of each sequence here to those over all its tokens; None: the row has them all.
        """
        self._algorithm = algorithm
        self._packed = packed
        self._add_up = packed.add_up if add_up is None else add_up
        self._rollout = packed.rollout_logprobs
        self._proximal = self._rollout if proximal_logprobs is None else proximal_logprobs
        self._sequence_log_ratios: Tensor | None = None
        correction = algorithm.rollout_correction
        self._mask_level: Level | None = None if correction.rollout_rs == "none" else correction.rollout_rs
        self._upper = correction.rollout_rs_threshold
        self._lower = correction.rollout_rs_threshold_lower or 1 / self._upper
        self._weights = packed.weights
        self._kept: Tensor | None = None
        self._truncated = torch.zeros_like(packed.weights, dtype=torch.bool)
        self._parts: list[TokenLoss] = []
        if proximal_logprobs is not None:
            self._correct(proximal_logprobs)

    @property
    def wants_preview(self) -> bool:
        """Whether the loss needs a ratio of whole sequences, and so all log-probabilities first."""
        late_mask = self._mask_level is not None and self._kept is None
        return self._algorithm.loss_mode == "gspo" or late_mask

    def preview(self, logprobs: Tensor) -> None:
        """Sets the values of whole sequences: GSPO's ratio, and the mask with `proximal: rollout`."""
        if self._algorithm.loss_mode == "gspo":
            self._sequence_log_ratios = self._spread(log_ratios(logprobs, self._proximal), "geometric")
        if self._mask_level is not None and self._kept is None:
            self._mask(logprobs, self._mask_level)

    def __call__(self, logprobs: Tensor, where: slice) -> Tensor:
        """float32[C] log-probabilities of the targets `where` -> the weighted sum of their losses, a scalar."""
        part = self._token_loss(logprobs, where)
        self._parts.append(part)
        return (part.loss * self._weights[where]).sum()

    def seen(self) -> "LossStats":
        """The figures of all chunks together, without gradient."""
        parts = self._parts or [self._token_loss(self._weights[:0], slice(0))]  # a micro-batch may be empty
        kept = torch.ones_like(self._weights, dtype=torch.bool) if self._kept is None else self._kept
        return LossStats(
            loss=torch.cat([part.loss.detach() for part in parts]) * self._weights,
            ratio=torch.cat([part.ratio for part in parts]),
            clipped_high=torch.cat([part.clipped_high for part in parts]) & kept,
            clipped_low=torch.cat([part.clipped_low for part in parts]) & kept,
            clipped_dual=torch.cat([part.clipped_dual for part in parts]) & kept,
            truncated=self._truncated & kept,
            masked=~kept,
        )

    def _token_loss(self, logprobs: Tensor, where: slice) -> TokenLoss:
        algorithm = self._algorithm
        common: dict[str, Any] = {
            "learner_logprobs": logprobs,
            "advantages": self._packed.advantages[where],
            "clip_ratio_low": algorithm.clip_ratio_low,
            "clip_ratio_high": algorithm.clip_ratio_high,
        }
        if algorithm.loss_mode == "cispo":
            return cispo_token_loss(proximal_logprobs=self._proximal[where], **common)
        common["clip_ratio_c"] = algorithm.clip_ratio_c
        if algorithm.loss_mode == "gspo":
            assert self._sequence_log_ratios is not None
            return gspo_token_loss(sequence_log_ratios=self._sequence_log_ratios[where], **common)
        return dapo_token_loss(proximal_logprobs=self._proximal[where], **common)

    def _correct(self, proximal: Tensor) -> None:
        """Sets weight and mask from proximal / rollout: constants of the step, known before the first update."""
        if self._mask_level is not None:
            self._mask(proximal, self._mask_level)
        correction = self._algorithm.rollout_correction
        if correction.rollout_is != "none":
            log_ratio = self._spread(log_ratios(proximal, self._rollout), correction.rollout_is)
            self._weights = self._weights * importance_weights(log_ratio, threshold=correction.rollout_is_threshold)
            self._truncated = log_ratio.exp() > correction.rollout_is_threshold

    def _mask(self, logprobs: Tensor, level: Level) -> None:
        log_ratio = self._spread(log_ratios(logprobs, self._rollout), level)
        self._kept = rejection_mask(log_ratio, lower=self._lower, upper=self._upper)
        self._weights = torch.where(self._kept, self._weights, 0.0)

    def _spread(self, log_ratio: Tensor, level: Level) -> Tensor:
        return broadcast_log_ratio(
            log_ratio,
            level=level,
            sequence=self._packed.sequence,
            sequences=self._packed.sequences,
            add_up=self._add_up,
        )
