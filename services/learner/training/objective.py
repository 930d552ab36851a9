"""From log-probabilities of one micro-batch to a part of the loss: ratio, corrections, clip and weights, as configured.

`Packed.weights` holds the denominators already; the objective sums. `sluice.dapo.loss`, `trust_region` and `soft_gate` have the
losses, `sluice.dapo.correction` the corrections. Weights and masks compare the step's first weights with the rollout where
those were recomputed, else the current weights, whose log-probabilities come by `preview`.

Letters: M targets of the micro-batch, C targets of one chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.learner.policy.packing import Packed
from sluice.config.schema import AlgorithmConfig
from sluice.dapo.correction import (
    Level,
    broadcast_log_ratio,
    importance_weights,
    off_policy_sequence_mask,
    rejection_mask,
)
from sluice.dapo.loss import (
    TokenLoss,
    cispo_token_loss,
    dapo_token_loss,
    gspo_token_loss,
    log_ratios,
    reinforce_token_loss,
)
from sluice.dapo.soft_gate import sapo_token_loss
from sluice.dapo.trust_region import dppo_token_loss, ipo_token_loss


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
    """bool: `rollout_rs` or `opsm_delta` masks the token."""


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
        self._correction = algorithm.rollout_correction
        self._weights = packed.weights
        self._kept: Tensor | None = None
        self._truncated = torch.zeros_like(packed.weights, dtype=torch.bool)
        self._parts: list[TokenLoss] = []
        self._corrects_late = proximal_logprobs is None and algorithm.corrects
        if proximal_logprobs is not None:
            self._correct(proximal_logprobs)

    @property
    def wants_preview(self) -> bool:
        """Whether the loss needs a ratio of whole sequences, and so all log-probabilities first."""
        return self._algorithm.loss_mode == "gspo" or self._corrects_late

    def preview(self, logprobs: Tensor) -> None:
        """Sets the values of whole sequences: GSPO's ratio, and weight and mask with `proximal: rollout`."""
        if self._algorithm.loss_mode == "gspo":
            self._sequence_log_ratios = self._spread(log_ratios(logprobs, self._proximal), "geometric")
        if self._corrects_late:
            self._correct(logprobs)

    def __call__(self, logprobs: Tensor, where: slice) -> Tensor:
        """float32[C] log-probabilities of the targets `where` -> the weighted sum of their losses, a scalar."""
        part = self._token_loss(logprobs, where)
        self._parts.append(part)
        return (part.loss * self._weights[where]).sum()

    def stats(self) -> "LossStats":
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
        algorithm, proximal = self._algorithm, self._proximal[where]
        given: dict[str, Any] = {"learner_logprobs": logprobs, "advantages": self._packed.advantages[where]}
        clip: dict[str, Any] = {
            "clip_ratio_low": algorithm.clip_ratio_low,
            "clip_ratio_high": algorithm.clip_ratio_high,
        }
        c = algorithm.clip_ratio_c
        match algorithm.loss_mode:
            case "vanilla":
                return dapo_token_loss(proximal_logprobs=proximal, **given, **clip, clip_ratio_c=c)
            case "gspo":
                assert self._sequence_log_ratios is not None
                ratios = self._sequence_log_ratios[where]
                return gspo_token_loss(sequence_log_ratios=ratios, **given, **clip, clip_ratio_c=c)
            case "cispo":
                return cispo_token_loss(proximal_logprobs=proximal, **given, **clip)
            case "dppo_tv" | "dppo_kl":
                divergence = "tv" if algorithm.loss_mode == "dppo_tv" else "kl"
                return dppo_token_loss(
                    rollout_logprobs=proximal, divergence=divergence, **given, **clip, clip_ratio_c=c
                )
            case "ipo":
                return ipo_token_loss(rollout_logprobs=proximal, **given, **clip, clip_ratio_c=c)
            case "sapo":
                given |= {"tau_pos": algorithm.tau_pos, "tau_neg": algorithm.tau_neg}
                return sapo_token_loss(proximal_logprobs=proximal, **given)
            case "reinforce":
                return reinforce_token_loss(rollout_logprobs=proximal, **given)

    def _correct(self, logprobs: Tensor) -> None:
        """Sets mask and weight from the ratio of [M] log-probabilities to the rollout's, which get no gradient."""
        correction, found = self._correction, log_ratios(logprobs, self._rollout)
        if correction.rollout_rs != "none":
            upper = correction.rollout_rs_threshold
            lower = correction.rollout_rs_threshold_lower or 1 / upper
            self._keep(rejection_mask(self._spread(found, correction.rollout_rs), lower=lower, upper=upper))
        if correction.opsm_delta is not None:
            drift = self._spread(found, "geometric")
            self._keep(off_policy_sequence_mask(drift, self._packed.advantages, delta=correction.opsm_delta))
        if correction.rollout_is != "none":
            log_ratio = self._spread(found, correction.rollout_is)
            self._weights = self._weights * importance_weights(log_ratio, threshold=correction.rollout_is_threshold)
            self._truncated = log_ratio.exp() > correction.rollout_is_threshold

    def _keep(self, kept: Tensor) -> None:
        """Takes the [M] tokens with False out of the loss, besides those that are out already."""
        self._kept = kept if self._kept is None else self._kept & kept
        self._weights = torch.where(self._kept, self._weights, 0.0)

    def _spread(self, log_ratio: Tensor, level: Level) -> Tensor:
        return broadcast_log_ratio(
            log_ratio,
            level=level,
            sequence=self._packed.sequence,
            sequences=self._packed.sequences,
            add_up=self._add_up,
        )
