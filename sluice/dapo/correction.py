"""What may be done about tokens that another policy sampled, beyond the ratio's clip. Not in the paper; off by default.

With `proximal: recompute` (decoupled PPO, Hilton et al. 2021, arXiv:2110.00641, eq. 6) the clip is centred on the step's
first policy and the loss is weighted by proximal / rollout. Truncating that weight is TIS, by token (Yao et al. 2025) or
by the sequence's product; masking ratios outside two bounds is IcePop by token, MIS by sequence; masking bad sequences alone
that the learner has left is OPSM. No gradient flows through weight or mask. A masked token has loss zero and stays in every
denominator, so the gradient cannot depend on the layout. With `loss_mode: reinforce` the weight is learner / rollout under the
current weights, which needs no second forward pass.

Letters: T packed tokens, S sequences of a micro-batch.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sluice.dapo.loss import clamped

Level = Literal["token", "sequence", "geometric"]
"""Whose ratio: the token's own, its sequence's product, or its sequence's geometric mean."""


def broadcast_log_ratio(
    log_ratio: Tensor,
    *,
    level: Level,
    sequence: Tensor,
    sequences: int,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """[T] nats: the log-ratio at `level` of every token, clamped to +-MAX_LOG_RATIO after it is summed.

    log_ratio: [T] nats, not clamped, because a sequence with one huge ratio would get another sum.
    sequence: [T] int64, the index in [0, sequences) of each token's sequence. add_up: takes [S] sums over the tokens here
    to those over all tokens, where other processes have other tokens of the same sequences.
    """
    if level == "token":
        return clamped(log_ratio)
    sums = add_up(log_ratio.new_zeros(sequences).index_add(0, sequence, log_ratio))
    if level == "geometric":
        counts = add_up(log_ratio.new_zeros(sequences).index_add(0, sequence, torch.ones_like(log_ratio)))
        sums = sums / counts.clamp(min=1)
    return clamped(sums)[sequence]


def importance_weights(log_ratio: Tensor, *, threshold: float) -> Tensor:
    """[T] float32 min(exp(log_ratio), threshold) of [T] log-ratios at any level: truncated importance sampling."""
    return log_ratio.exp().clamp(max=threshold)


def rejection_mask(log_ratio: Tensor, *, lower: float, upper: float) -> Tensor:
    """[T] bool: lower <= exp(log_ratio) <= upper. Tokens with False, among them tokens with a NaN ratio, are masked."""
    ratio = log_ratio.exp()
    return (ratio >= lower) & (ratio <= upper)


def off_policy_sequence_mask(log_ratio: Tensor, advantages: Tensor, *, delta: float) -> Tensor:
    """[T] bool: not (A < 0 and -log_ratio > delta); tokens with False are masked, among them A < 0 with a NaN ratio.

    OPSM (DeepSeek-V3.2, arXiv:2512.02556, eq. 9): a sequence with a negative advantage is left out once the learner finds it
    less likely than the policy that sampled it did, by more than `delta` nats a token on average. log_ratio: [T] nats,
    learner - rollout at level `geometric`; advantages: [T].
    """
    return (advantages >= 0) | (-log_ratio <= delta)
