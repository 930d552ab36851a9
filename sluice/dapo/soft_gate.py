"""A gate in place of the clip: SAPO (Gao et al. 2025, arXiv:2511.20347). Not in the paper of DAPO; off by default.

A clip keeps a token's gradient whole up to its bound and cuts it off there. The gate lets the gradient fade as the ratio leaves
1 in either direction, faster for tokens with a negative advantage, whose gradients raise many other tokens.

Letters: T packed tokens.
"""

import torch
from torch import Tensor

from sluice.dapo.loss import TokenLoss, clamped, log_ratios


def sapo_token_loss(
    *, learner_logprobs: Tensor, proximal_logprobs: Tensor, advantages: Tensor, tau_pos: float, tau_neg: float
) -> TokenLoss:
    """loss_t = -A f(r), f(r) = 4 / tau * sigmoid(tau (r - 1)), tau = `tau_pos` where A > 0 and `tau_neg` elsewhere.

    The derivative of f at r = 1 is 1 for any tau, so on-policy gradients are DAPO's; elsewhere it is 4 s (1 - s) with s the
    sigmoid. The value of f has an offset of 2 / tau, so `loss/policy` is not comparable with other losses'. The paper has
    1 and 1.05. learner_logprobs: [T] nats, with gradient; proximal_logprobs, advantages: [T]. Nothing is clipped.
    """
    ratio = clamped(log_ratios(learner_logprobs, proximal_logprobs)).exp()
    advantages = advantages.float()
    tau = torch.where(advantages > 0, tau_pos, tau_neg)
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    return TokenLoss(
        loss=-advantages * torch.sigmoid(tau * (ratio - 1)) * 4 / tau,
        ratio=ratio.detach(),
        clipped_high=nothing,
        clipped_low=nothing,
        clipped_dual=nothing,
    )
