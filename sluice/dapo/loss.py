"""The clipped token loss with decoupled bounds (DAPO, arXiv:2503.14476: eq. 8, ratio of eq. 9, clip of eq. 10).

Per token only: the weights that make it one loss are in `aggregation`, masking is the caller's (masked tokens have
no weight). There is no KL and no entropy term. The ratio is learner / behaviour, the behaviour logprobs being those
the rollout sampled with: no third, recomputed policy stands between.

Letters: T packed tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 nats before exp (as in verl): e^20 = 4.9e8 is finite in float32, e^89 is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """Loss of every token, and where which clip is active. A token with any of the three flags has no gradient."""

    loss: Tensor
    """[T] float32, to be minimised; carries the gradient."""
    ratio: Tensor
    """[T] float32, learner / behaviour probability; detached."""
    clipped_high: Tensor
    """[T] bool: advantage > 0 and ratio > 1 + clip_ratio_high."""
    clipped_low: Tensor
    """[T] bool: advantage < 0 and ratio < 1 - clip_ratio_low."""
    clipped_dual: Tensor
    """[T] bool: advantage < 0 and ratio > clip_ratio_c."""


def dapo_token_loss(
    *,
    learner_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    advantages: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None,
) -> TokenLoss:
    """loss_t = max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(learner - behaviour), in float32 whatever comes in.

    learner_logprobs: [T] nats, with gradient; behaviour_logprobs: [T] nats; advantages: [T], those of eq. 9.
    The maximum is the pessimistic choice, the negative of the min in eq. 8. With `clip_ratio_c` = c (dual clip,
    arXiv:1912.09729) the loss of a token with A < 0 is at most -A c, so that a huge ratio cannot dominate the batch;
    None turns it off. Beyond +-MAX_LOG_RATIO the clamp leaves the loss finite and constant, hence without gradient.

    Raises ValueError if the shapes differ or `clip_ratio_c` <= 1, which would clip on-policy tokens.
    """
    if not learner_logprobs.shape == behaviour_logprobs.shape == advantages.shape:
        shapes = [tuple(t.shape) for t in (learner_logprobs, behaviour_logprobs, advantages)]
        raise ValueError(f"dapo_token_loss: learner, behaviour and advantages must have one shape, got {shapes}")
    if clip_ratio_c is not None and clip_ratio_c <= 1:
        raise ValueError(f"algorithm.clip_ratio_c: must be > 1, got {clip_ratio_c}")
    advantages = advantages.float()
    log_ratio = learner_logprobs.float() - behaviour_logprobs.float()
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high)
    loss = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    is_dual = torch.zeros_like(is_clipped)
    if clip_ratio_c is not None:
        ceiling = -advantages * clip_ratio_c
        is_dual = (advantages < 0) & (loss > ceiling)
        loss = torch.where(is_dual, ceiling, loss)
    return TokenLoss(
        loss=loss,
        ratio=ratio.detach(),
        clipped_high=is_clipped & (advantages > 0),
        clipped_low=is_clipped & (advantages < 0),
        clipped_dual=is_dual,
    )
