"""Trust regions measured in probability instead of in ratio: DPPO and IPO. Not in the paper; off by default.

A ratio of 1.28 is a change of .0028 for a token of probability .01 and of .14 for one of .5: a clip of ratios stops rare tokens
early and frequent ones late. DPPO (Qi et al. 2026, arXiv:2602.04879) takes a token out of the loss when the learner has left
the policy that sampled by more than a threshold, and the token's gradient would lead further away. Of the two distributions
only the sampled token's probability is known, so the divergence is that of "this token or another one" (section "Binary
approximation"): a lower bound of the whole divergence. IPO (PrimeIntellect's prime-rl, its default loss) takes both directions
out: with stale tokens a step may lead back across the region as well.

Both regions are around the policy that sampled. A token inside has the ratio as a constant weight, truncated at
`clip_ratio_c`.

Letters: T packed tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from sluice.dapo.loss import TokenLoss, clamped, log_ratios, score_function_loss

Divergence = Literal["tv", "kl"]

_EPS = 1e-8
"""Added to the probability of every other token, as in verl, so that a certain token has a finite divergence."""


def dppo_token_loss(
    *,
    learner_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    divergence: Divergence,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None,
) -> TokenLoss:
    """loss_t = -A M sg[min(r, c)], with the gradient -A M min(r, c) of log pi; r = pi / mu, mu the policy that sampled.

    The mask M is 0 where the token is outside and led further out: A > 0 with pi > mu and D > `clip_ratio_high`, or A <= 0
    with pi < mu and D > `clip_ratio_low`. With p and m the probabilities of the token under pi and mu, D is |p - m| (`tv`,
    total variation) or m log(m / p) + (1 - m) log((1 - m) / (1 - p)) (`kl`). verl's names for the thresholds and for c; the
    paper's runs took .15 (`tv`) and .05 (`kl`).

    learner_logprobs: [T] nats, with gradient; rollout_logprobs, advantages: [T]. No gradient flows through M and r.
    `clipped_high` and `clipped_low` mark masked tokens by the sign of the advantage, `clipped_dual` truncated weights.
    """
    learner, rollout = learner_logprobs.detach().float(), rollout_logprobs.float()
    found = _binary_kl(learner, rollout) if divergence == "kl" else (learner.exp() - rollout.exp()).abs()
    too_high = (learner > rollout) & (found > clip_ratio_high)
    too_low = (learner < rollout) & (found > clip_ratio_low)
    outside = torch.where(advantages > 0, too_high, too_low)
    return _masked(learner_logprobs, rollout_logprobs, advantages, outside, clip_ratio_c)


def ipo_token_loss(
    *,
    learner_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None,
) -> TokenLoss:
    """`dppo_token_loss` with M = 1 where -`clip_ratio_low` <= p - m <= `clip_ratio_high`, whatever the advantage's sign.

    prime-rl has one threshold for both, `eps` (.3, before .1), no truncation (c None) and, off by default, a squared
    log-ratio as a penalty, which is left out here.
    """
    moved = learner_logprobs.detach().float().exp() - rollout_logprobs.float().exp()
    outside = (moved > clip_ratio_high) | (moved < -clip_ratio_low)
    return _masked(learner_logprobs, rollout_logprobs, advantages, outside, clip_ratio_c)


def _binary_kl(learner: Tensor, rollout: Tensor) -> Tensor:
    """[T] KL(mu || pi) of "this token or another one", from [T] log-probabilities; 1 - p without cancellation."""
    others_learner, others_rollout = (-torch.expm1(logprobs) + _EPS for logprobs in (learner, rollout))
    of_token = rollout.exp() * (rollout - learner)
    return of_token + (1 - rollout.exp()) * (others_rollout / others_learner).log()


def _masked(
    learner_logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, outside: Tensor, c: float | None
) -> TokenLoss:
    ratio = clamped(log_ratios(learner_logprobs, rollout_logprobs)).detach().exp()
    weight = ratio if c is None else ratio.clamp(max=c)
    return TokenLoss(
        loss=score_function_loss(learner_logprobs, advantages, torch.where(outside, 0.0, weight)),
        ratio=ratio,
        clipped_high=outside & (advantages > 0),
        clipped_low=outside & (advantages < 0),
        clipped_dual=(weight < ratio) & ~outside,
    )
