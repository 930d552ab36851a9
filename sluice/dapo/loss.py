"""The clipped token loss with decoupled bounds (DAPO, arXiv:2503.14476: eq. 8, ratio of eq. 9, clip of eq. 10).

Per token only: `aggregation` has the weights that sum token losses to one loss, `correction` has what may be done about
stale tokens beyond the clip, and the caller masks (a masked token has weight 0). There is no KL and no entropy term. GSPO
and CISPO combine the same pieces in another way; their advantages and aggregation are DAPO's unless configured otherwise.
`trust_region` and `soft_gate` have losses that replace the clip.

Letters: T packed tokens. "Proximal" is the policy in the ratio's denominator: the one that sampled, or the step's first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 nats before exp (as in verl): e^20 = 4.9e8 is finite in float32, e^89 is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """Loss of every token, and the tokens at which each clip is active."""

    loss: Tensor
    """[T] float32, the loss to be minimised; carries the gradient."""
    ratio: Tensor
    """[T] float32, learner / proximal probability of the token (for GSPO: of the token's sequence); detached."""
    clipped_high: Tensor
    """[T] bool: advantage > 0 and ratio > 1 + clip_ratio_high."""
    clipped_low: Tensor
    """[T] bool: advantage < 0 and ratio < 1 - clip_ratio_low."""
    clipped_dual: Tensor
    """[T] bool: advantage < 0 and ratio > clip_ratio_c."""


def dapo_token_loss(
    *,
    learner_logprobs: Tensor,
    proximal_logprobs: Tensor,
    advantages: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None,
) -> TokenLoss:
    """loss_t = max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(learner - proximal), in float32 for any input dtype.

    learner_logprobs: [T] nats, with gradient; proximal_logprobs: [T] nats; advantages: [T], those of eq. 9.
    The maximum is the pessimistic choice, the negative of the min in eq. 8. With `clip_ratio_c` = c (dual clip,
    arXiv:1912.09729) the loss of a token with A < 0 is at most -A c, so that a huge ratio cannot dominate the batch;
    None turns the dual clip off. A token with any clip active has no gradient. Beyond +-MAX_LOG_RATIO the clamp leaves the
    loss finite and constant, hence without gradient.

    Raises ValueError if the shapes differ or `clip_ratio_c` <= 1, which would clip on-policy tokens.
    """
    log_ratio = clamped(log_ratios(learner_logprobs, proximal_logprobs))
    return _clipped(log_ratio, advantages, clip_ratio_low, clip_ratio_high, clip_ratio_c)


def gspo_token_loss(
    *,
    learner_logprobs: Tensor,
    sequence_log_ratios: Tensor,
    advantages: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None,
) -> TokenLoss:
    """DAPO's loss with one ratio a sequence, s = exp(mean over its tokens of learner - proximal).

    GSPO-token (arXiv:2507.18071, eq. 13-14): s_t = sg[s] pi_t / sg[pi_t] has the value of s for every token, and its
    gradient reaches the token's own log-probability. sequence_log_ratios: [T] nats, log s of the token's sequence, clamped
    as a whole; any gradient of sequence_log_ratios is ignored. Otherwise as `dapo_token_loss`.
    """
    own = log_ratios(learner_logprobs, learner_logprobs.detach())  # zero, with the token's gradient
    log_ratio = sequence_log_ratios.detach().float() + own
    return _clipped(log_ratio, advantages, clip_ratio_low, clip_ratio_high, clip_ratio_c)


def cispo_token_loss(
    *,
    learner_logprobs: Tensor,
    proximal_logprobs: Tensor,
    advantages: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
) -> TokenLoss:
    """loss_t = -A sg[clip(r, 1 - low, 1 + high)] log pi_t: every token keeps a gradient (arXiv:2506.13585, eq. 4-5).

    The clip bounds a constant weight instead of cutting the gradient. `clipped_high` and `clipped_low` mark the tokens
    with a clipped weight, by the sign of the advantage as in DAPO. There is no dual clip: the weight has two bounds.
    """
    ratio = clamped(log_ratios(learner_logprobs, proximal_logprobs)).detach().exp()
    advantages = advantages.float()
    weight = ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high)
    return TokenLoss(
        loss=-advantages * weight * learner_logprobs.float(),
        ratio=ratio,
        clipped_high=(ratio > weight) & (advantages > 0),
        clipped_low=(ratio < weight) & (advantages < 0),
        clipped_dual=torch.zeros_like(ratio, dtype=torch.bool),
    )


def reinforce_token_loss(*, learner_logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor) -> TokenLoss:
    """loss_t = -A, with the gradient -A of log pi: the plain policy gradient (Williams 1992), without ratio and clip.

    On stale tokens it needs the weights of `correction.importance_weights` of the current weights, by token or sequence
    (truncated importance sampling); `ratio` is for the statistics alone. [T] each; learner_logprobs in nats, with gradient.
    """
    ratio = clamped(log_ratios(learner_logprobs, rollout_logprobs)).detach().exp()
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    return TokenLoss(
        loss=score_function_loss(learner_logprobs, advantages, torch.ones_like(ratio)),
        ratio=ratio,
        clipped_high=nothing,
        clipped_low=nothing,
        clipped_dual=nothing,
    )


def score_function_loss(learner_logprobs: Tensor, advantages: Tensor, weight: Tensor) -> Tensor:
    """[T] float32 of the value -A w and the gradient -A w of log pi, for [T] constant weights w >= 0.

    The value is that of an objective linear in the ratio, so losses of several modes compare. Raises ValueError if the
    shapes differ.
    """
    if not learner_logprobs.shape == advantages.shape == weight.shape:
        shapes = [tuple(t.shape) for t in (learner_logprobs, advantages, weight)]
        raise ValueError(f"token loss: log-probabilities, advantages and weights must have one shape, got {shapes}")
    own = log_ratios(learner_logprobs, learner_logprobs.detach())  # zero, with the token's gradient
    return -advantages.float() * weight.detach() * own.exp()


def log_ratios(learner_logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """[T] float32 learner - other, not clamped: sums over a sequence need all of it. Raises ValueError if shapes differ."""
    if learner_logprobs.shape != other_logprobs.shape:
        shapes = [tuple(t.shape) for t in (learner_logprobs, other_logprobs)]
        raise ValueError(f"log_ratios: learner's and other log-probabilities must have one shape, got {shapes}")
    return learner_logprobs.float() - other_logprobs.float()


def clamped(log_ratio: Tensor) -> Tensor:
    """[T] nats, within +-MAX_LOG_RATIO: what may go into exp, of a token or of a whole sequence."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _clipped(log_ratio: Tensor, advantages: Tensor, low: float, high: float, c: float | None) -> TokenLoss:
    """Eq. 8 and 10 with the dual clip, for [T] clamped log-ratios."""
    if log_ratio.shape != advantages.shape:
        shapes = [tuple(t.shape) for t in (log_ratio, advantages)]
        raise ValueError(f"token loss: log-ratios and advantages must have one shape, got {shapes}")
    if c is not None and c <= 1:
        raise ValueError(f"algorithm.clip_ratio_c: must be > 1, got {c}")
    advantages = advantages.float()
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    loss = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    is_dual = torch.zeros_like(is_clipped)
    if c is not None:
        ceiling = -advantages * c
        is_dual = (advantages < 0) & (loss > ceiling)
        loss = torch.where(is_dual, ceiling, loss)
    return TokenLoss(
        loss=loss,
        ratio=ratio.detach(),
        clipped_high=is_clipped & (advantages > 0),
        clipped_low=is_clipped & (advantages < 0),
        clipped_dual=is_dual,
    )
