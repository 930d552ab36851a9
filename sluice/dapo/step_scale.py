"""How much of a mini-batch its importance weights really use, and how long a step that allows. Off by default.

VCPO (Huang et al. 2026, arXiv:2602.17616) multiplies the learning rate by the square root of the share of effective samples:
few samples that outweigh the others make a noisy gradient, and AdamW's steps are long whatever the gradient's size. VCPO's
other half, a baseline from gradient norms of single samples, is left out: it needs a backward pass a sample.

Letters: Q samples of a mini-batch.
"""

import numpy as np


def effective_share(log_weights: np.ndarray) -> float:
    """(sum w)^2 / (Q sum w^2) in (0, 1] of [Q] log-weights in nats: Kish's effective sample size, as a share.

    Free of any clamp: a factor common to all weights cancels, so the largest weight counts as 1. NaN where a weight is.
    """
    relative = np.exp(log_weights - log_weights.max())
    return float(relative.sum() ** 2 / (relative.size * np.square(relative).sum()))


def ess_step_scale(log_weights: np.ndarray) -> float:
    """sqrt(ESS / Q), the factor of the learning rate, from [Q] log-weights of whole samples, learner over rollout, in nats.

    VCPO's rule for optimizers like Adam (its section on ESS-guided steps), with weights that are not truncated and a share
    of 1 as the reference. Raises ValueError unless the weights are a vector of one or more.
    """
    log_weights = np.asarray(log_weights, np.float64)
    if log_weights.ndim != 1 or log_weights.size == 0:
        raise ValueError(f"ess_step_scale: log_weights must be a vector of one or more, got shape {log_weights.shape}")
    return effective_share(log_weights) ** 0.5
